"""A real Triton for a laptop: install, start, sample models.

Owns everything that puts a genuine ``tritonserver`` on a machine without a container. It must
not know the governor's loop, and nothing of the server's environment (NumPy 1, ONNX Runtime)
is ever imported here.
"""
