"""How good a variant's answers are, measured on the server that serves them."""
