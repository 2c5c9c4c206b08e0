"""Serve one engine of a fixed shape in Triton's Python backend.

Copied beside the engine's model.onnx. Whatever a batch holds, the network runs on as many rows as
the engine was made for, as an engine does that was compiled for one shape. Must not do anything
else per request but slice.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

# Which processor is the device; unset: any. Triton's own threads are none of its work.
DEVICE = "TRITON_GOVERNOR_DEVICE"


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Compile the network for one shape, on one thread that never spins."""
        if core := os.environ.get(DEVICE):
            os.sched_setaffinity(0, {int(core)})
        folder = Path(args["model_repository"]) / args["model_version"]
        self._rows = int(json.loads(args["model_config"])["max_batch_size"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_free_dimension_override_by_name("rows", self._rows)
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        number = int((folder / "number").read_text(encoding="utf-8"))
        self._variant = np.full((self._rows, 1), number, np.int32)
        # The first run allocates; it must not be a client's.
        shape = self._session.get_inputs()[0].shape
        self._batch = np.zeros((self._rows, *shape[1:]), np.uint8)
        self._session.run(None, {"page": self._batch})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a batch from one run of the whole shape."""
        pages = [pb_utils.get_input_tensor_by_name(item, "page").as_numpy() for item in requests]
        start = 0
        for page in pages:
            self._batch[start : start + len(page)] = page
            start += len(page)
        (scores,) = self._session.run(None, {"page": self._batch})
        responses, start = [], 0
        for page in pages:
            end = start + len(page)
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("scores", scores[start:end]),
                        pb_utils.Tensor("variant", self._variant[: len(page)]),
                    ]
                )
            )
            start = end
        return responses
