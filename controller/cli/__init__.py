"""The `governor` command. Thin: it talks to the daemon's socket with the standard library."""
