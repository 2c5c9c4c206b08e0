"""Sends rows to one Triton model at a time, gently, and brings its answers back.

Owns the requests: how many at once, how fast, and the waiting while clients use the model. It must
not change anything on the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import tritonclient.grpc.aio as triton
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from controller.quality.data import Rows

_ANSWER_S: Final = 3.0
_LOOK_S: Final = 0.5  # between looks at whether clients use the model
_QUIET_S: Final = 2.0  # without a client's request it is idle


class AskError(Exception):
    """A model that cannot be asked, or that did not answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How gently the server is asked."""

    rows: int = 8  # of a request, or what the model takes
    at_once: int = 1  # requests
    per_s: float = 20.0  # requests begun in a second, at most
    when_idle: bool = False  # wait while clients send requests to the alias
    deadline_s: float = 30.0  # of a request


class Asker:
    """Asks the models of one server.

    Args:
        client: a connection to it.
        headers: sent with each call.
        alias: what clients call.
        manner: how gently.
    """

    def __init__(self, client: Any, headers: dict[str, str], alias: str, manner: Manner) -> None:
        self._client = client
        self._headers = headers
        self._alias = alias
        self._manner = manner
        self._next_s = 0.0
        self._looked_s = self._busy_s = float("-inf")
        self._counted: int | None = None

    async def states(self) -> dict[str, str]:
        """Return the state of each model in the repository. Raises AskError."""
        answer = await self._call(
            "repository index",
            self._client.get_model_repository_index(
                headers=self._headers, client_timeout=_ANSWER_S
            ),
        )
        found: dict[str, str] = {}
        for model in answer.models:
            if model.state == "READY" or model.name not in found:
                found[model.name] = model.state
        return found

    async def config(self, model: str) -> dict[str, Any]:
        """Return a loaded model's config. Raises AskError."""
        answer = await self._call(
            f"config of {model}",
            self._client.get_model_config(model, headers=self._headers, client_timeout=_ANSWER_S),
        )
        config: dict[str, Any] = MessageToDict(answer.config, preserving_proto_field_name=True)
        return config

    async def load(self, model: str, *, deadline_s: float = 600.0) -> None:
        """Load a variant. Raises AskError."""
        await self._call(
            f"load {model}",
            self._client.load_model(model, headers=self._headers, client_timeout=deadline_s),
        )

    async def unload(self, model: str) -> None:
        """Unload what was loaded for this. Raises AskError."""
        await self._call(
            f"unload {model}",
            self._client.unload_model(model, headers=self._headers, client_timeout=_ANSWER_S),
        )

    async def answers(
        self,
        config: Mapping[str, Any],
        rows: Rows,
        output: str,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> NDArray[Any]:
        """Return a model's answers to all rows, in their order.

        Args:
            config: the model's.
            rows: with the model's own names of inputs.
            output: which of its outputs.
            progress: is told how many rows were answered.

        Raises:
            AskError: it does not take these rows, or did not answer one.
        """
        limit = int(config.get("max_batch_size", 0))
        each = min(self._manner.rows, limit) if limit > 0 else 1
        gate, done = asyncio.Semaphore(self._manner.at_once), 0
        parts: dict[int, NDArray[Any]] = {}

        async def ask(start: int) -> None:
            nonlocal done
            async with gate:
                await self._wait()
                piece = {name: v[start : start + each] for name, v in rows.inputs.items()}
                count = len(next(iter(piece.values())))
                tensors = [_tensor(config, n, v, batched=limit > 0) for n, v in piece.items()]
                answer = await self._infer(str(config["name"]), tensors, output)
                parts[start] = answer if limit > 0 else answer[np.newaxis]
                if len(parts[start]) != count:
                    raise AskError(f"{output} has {len(parts[start])} rows for {count} sent")
                done += count
                progress(done)

        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(rows), each):
                    group.create_task(ask(start))
        except* AskError as errors:
            raise _first(errors) from None
        return np.concatenate([parts[start] for start in sorted(parts)])

    async def _infer(self, model: str, tensors: list[Any], output: str) -> NDArray[Any]:
        wanted = [triton.InferRequestedOutput(output)]
        answer = await self._call(
            f"a request to {model}",
            self._client.infer(
                model,
                tensors,
                outputs=wanted,
                headers=self._headers,
                client_timeout=self._manner.deadline_s,
            ),
        )
        found = answer.as_numpy(output)
        if found is None:
            raise AskError(f"{model} answers without {output}")
        return np.asarray(found)

    async def _wait(self) -> None:
        """Wait for one's turn, and while clients use the model."""
        now_s = time.monotonic()
        begin_s = max(self._next_s, now_s)
        self._next_s = begin_s + 1.0 / self._manner.per_s
        await asyncio.sleep(begin_s - now_s)
        if not self._manner.when_idle:
            return
        while True:
            if not await self._is_busy():
                return
            await asyncio.sleep(_LOOK_S)

    async def _is_busy(self) -> bool:
        """Return whether clients called the alias of late, as Triton counted it."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            count = await self._requests()
            known, self._counted = self._counted, count
            # A single one is the governor's, which asks an alias that nobody calls now and then.
            if count is not None and (known is None or abs(count - known) > 1):
                self._busy_s = now_s
        return now_s - self._busy_s < _QUIET_S

    async def _requests(self) -> int | None:
        """Return how many requests the alias had; None: there is none that anybody could call."""
        try:
            answer = await self._call(
                f"statistics of {self._alias}",
                self._client.get_inference_statistics(
                    self._alias, headers=self._headers, client_timeout=_ANSWER_S
                ),
            )
        except AskError:
            return None
        stats = [entry.inference_stats for entry in answer.model_stats]
        return sum(int(s.success.count + s.fail.count) for s in stats)

    @staticmethod
    async def _call(what: str, awaitable: Any) -> Any:
        try:
            return await awaitable
        except InferenceServerException as error:
            words = " ".join((error.message() or "no reason given").split())
            raise AskError(f"{what}: {words}") from error


def unfit(config: Mapping[str, Any]) -> str | None:
    """Return why a model cannot be measured with single requests; None: it can."""
    if config.get("model_transaction_policy", {}).get("decoupled"):
        return "it streams its answers, and one answer a row is what is compared"
    if "sequence_batching" in config:
        return "it takes sequences: its answers depend on more than one request"
    return None


def inputs_of(config: Mapping[str, Any]) -> list[str]:
    """Return the inputs that a request needs."""
    return [str(one["name"]) for one in config.get("input", ()) if not one.get("optional")]


def outputs_of(config: Mapping[str, Any]) -> list[str]:
    """Return what a model answers with."""
    return [str(one["name"]) for one in config.get("output", ())]


def _tensor(config: Mapping[str, Any], name: str, values: NDArray[Any], *, batched: bool) -> Any:
    """Return rows as an input. Raises AskError where they are of another kind."""
    declared = next(one for one in config["input"] if one["name"] == name)
    data_type = declared["data_type"].removeprefix("TYPE_")
    data_type = "BYTES" if data_type == "STRING" else data_type
    dtype = triton_to_np_dtype(data_type)
    if dtype is None:
        raise AskError(f"input {name}: {data_type} cannot be sent from a file")
    dims = [int(size) for size in declared.get("dims", ())]
    if values.ndim == 1 and dims in ([1], [-1]):
        values = values[:, np.newaxis]  # one value a row
    if data_type == "BYTES":
        values = np.frompyfunc(_bytes, 1, 1)(values)
    elif not _suits(values, np.dtype(dtype)):
        raise AskError(f"input {name} is {data_type}, the data {values.dtype}")
    row = list(values.shape[1:])
    if len(row) != len(dims) or any(
        want not in (-1, got) for want, got in zip(dims, row, strict=True)
    ):
        raise AskError(f"input {name} has {dims} a row, the data {row}")
    sent = np.ascontiguousarray(values if batched else values[0], dtype=dtype)
    tensor = triton.InferInput(name, list(sent.shape), data_type)
    tensor.set_data_from_numpy(sent)
    return tensor


def _suits(values: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Return whether nothing but digits of a fraction is lost when values are sent as a type."""
    if values.dtype.kind in "iu" and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return not values.size or bool(values.min() >= bounds.min and values.max() <= bounds.max)
    return values.dtype.kind in "fiub" and dtype.kind in ("f", values.dtype.kind)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _first(errors: BaseExceptionGroup[AskError]) -> AskError:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, AskError) else AskError(str(found))
