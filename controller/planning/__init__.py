"""What to do: candidates, objective, budgets, stability. Pure."""
