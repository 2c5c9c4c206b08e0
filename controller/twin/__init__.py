"""A simulated Triton in virtual time: replay of traces, rival policies, oracle."""
