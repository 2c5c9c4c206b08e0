"""Requests and answers of the sample model as bytes of Triton's gRPC protocol.

Owns which pages a request carries and how an answer is read: who served it, how many rows are
right. It must not send or measure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Tensors:
    """The names of a sample model's tensors."""

    pages: str  # input, uint8, rows x height x width
    scores: str  # output, float32, rows x classes
    variant: str  # output, int32: the number of the variant that answered


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request, serialised once and sent many times."""

    rows: int
    message: bytes
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says."""

    variant: int
    correct_rows: int


def prepare(
    model: str,
    tensors: Tensors,
    pages: NDArray[np.uint8],
    labels: NDArray[np.int64],
    sizes: Sequence[int],
) -> Mapping[int, Sequence[Prepared]]:
    """Build requests of each size from held-out pages, each page used about once per size.

    Args:
        model: the name that clients call.
        tensors: the model's tensors.
        pages: rows x height x width.
        labels: what the pages show.
        sizes: rows of a request.

    Returns:
        For each size its requests, none without at least one.
    """
    prepared: dict[int, list[Prepared]] = {}
    for rows in sizes:
        starts = range(0, max(len(pages) - rows + 1, 1), rows)
        prepared[rows] = [
            Prepared(
                rows,
                message(model, tensors, pages[start : start + rows]),
                labels[start : start + rows],
            )
            for start in starts
        ]
    return prepared


def message(model: str, tensors: Tensors, pages: NDArray[np.uint8]) -> bytes:
    """Serialise one request."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add()
    tensor.name = tensors.pages
    tensor.datatype = "UINT8"
    tensor.shape.extend(pages.shape)
    request.raw_input_contents.append(np.ascontiguousarray(pages).tobytes())
    serialised: bytes = request.SerializeToString()
    return serialised


def read(answer: bytes, tensors: Tensors, labels: NDArray[np.int64]) -> Reading:
    """Read an answer.

    Raises:
        ValueError: it is not an answer of a sample model.
    """
    try:
        response: Any = service_pb2.ModelInferResponse.FromString(answer)
    except Exception as error:  # protobuf's DecodeError is no stable name
        raise ValueError(f"not a ModelInferResponse: {error}") from error
    raw = {
        output.name: content
        for output, content in zip(response.outputs, response.raw_output_contents, strict=False)
    }
    try:
        variant = int(np.frombuffer(raw[tensors.variant], np.int32)[0])
        scores = np.frombuffer(raw[tensors.scores], np.float32).reshape(len(labels), -1)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"an answer without {tensors.variant} and {tensors.scores}") from error
    return Reading(variant, int((scores.argmax(axis=1) == labels).sum()))
