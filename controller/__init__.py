"""Triton Governor: keeps a Triton Inference Server on the best operating point in its objective."""

__version__ = "0.1.0"
