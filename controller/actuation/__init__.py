"""Doing it: transactions on Triton's model control."""
