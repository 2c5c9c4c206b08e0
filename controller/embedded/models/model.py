"""Serve one sample model in Triton's Python backend.

Copied beside each variant's model.onnx. Answers a batch of requests with one run of ONNX
Runtime, and says in each row which variant it was. Must not do anything per request but slice.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the network once, on one thread that never spins: the cores are shared."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        rows = int(args_max_batch_size(args))
        self._variant = np.full((rows, 1), int(metadata["variant"]), np.int32)
        # The first run allocates; it must not be a client's.
        shape = self._session.get_inputs()[0].shape[1:]
        for count in {1, rows}:
            self._session.run(None, {"page": np.zeros((count, *shape), np.uint8)})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a batch from one run."""
        pages = [pb_utils.get_input_tensor_by_name(item, "page").as_numpy() for item in requests]
        batch = pages[0] if len(pages) == 1 else np.concatenate(pages)
        (scores,) = self._session.run(None, {"page": batch})
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


def args_max_batch_size(args: dict[str, Any]) -> int:
    """Return the batch size that Triton promised not to exceed."""
    import json

    return max(1, int(json.loads(args["model_config"])["max_batch_size"]))
