"""Triton's model control over gRPC, every call bounded in time and every error named.

Owns the wire: names that may be sent, the secret header, deadlines, the mapping of errors to a
small closed set. It must not decide anything, retry anything, or send any file but the constant
one that lets an alias exist without a folder.

gRPC only: Triton runs an HTTP load on a worker of its HTTP server, where a slow one stalls
inference; a gRPC load has a thread of its own.
"""

from __future__ import annotations

import contextlib
import enum
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from controller.policy.model import TritonPolicy
from controller.telemetry.channel import KeyFileError, Link, read_headers
from controller.telemetry.tls import TlsError

# A file beside the config is what allows a load without a folder in the repository.
_ALIAS_FILES = {"file:1/alias": b"x"}
# Tensors of a dispatcher's that are the governor's alone, as in dispatch/server/model.py.
CONTROL, REPORT = "GOVERNOR_CONTROL", "GOVERNOR_REPORT"
_PROOFS: Final = 256  # between two ticks
_LONGEST_MESSAGE = 1000  # of Triton's words: a model may answer with all of its traceback
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Fault(enum.StrEnum):
    """What went wrong with a call. Append only."""

    UNREACHABLE = "unreachable"  # nobody answers; whether the call arrived is not known
    REFUSED = "refused"  # the server does not allow this to us
    NOT_FOUND = "not_found"  # no such model, or none of its versions serves
    UNKNOWN = "unknown"  # outlasted its deadline; it may well go on and succeed
    OVERLOADED = "overloaded"  # a queue is full, or was too long: the model lives
    INVALID = "invalid"  # the server understood and said no


class TritonError(Exception):
    """A call that failed: `fault` says how, the text what the server said."""

    def __init__(self, fault: Fault, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.fault = fault
        self._sent = sent

    @property
    def may_have_happened(self) -> bool:
        """Whether the call may have taken effect, or may yet, although nobody heard of it."""
        if self.fault is Fault.UNREACHABLE:
            return self._sent and _NEVER_SENT not in str(self).lower()
        return self.fault is Fault.UNKNOWN


_NEVER_SENT = "failed to connect"  # gRPC's words for a call that found no connection to leave by
# The words by which Triton tells apart what it sends under one status code.
_TEXTS = (
    ("protocol is restricted", Fault.REFUSED),
    ("polling is enabled", Fault.REFUSED),
    ("explicit model load / unload is not allowed", Fault.REFUSED),
    ("maximum queue size", Fault.OVERLOADED),
    ("request timeout expired", Fault.OVERLOADED),
    ("unknown model", Fault.NOT_FOUND),
)
_CODES = {
    "UNAVAILABLE": Fault.UNREACHABLE,
    "CANCELLED": Fault.UNREACHABLE,
    "DEADLINE_EXCEEDED": Fault.UNKNOWN,
    "NOT_FOUND": Fault.NOT_FOUND,
    "PERMISSION_DENIED": Fault.REFUSED,
    "UNAUTHENTICATED": Fault.REFUSED,
    "RESOURCE_EXHAUSTED": Fault.OVERLOADED,
}


def classify(code: str, message: str) -> Fault:
    """Return the fault behind a gRPC status code and Triton's words."""
    lowered = message.lower()
    for words, fault in _TEXTS:
        if words in lowered:
            return fault
    return _CODES.get(code.rpartition(".")[2], Fault.INVALID)


def check_name(name: str) -> str:
    """Return a model name that is safe to send. Raises TritonError for any other."""
    if _NAME.fullmatch(name) is None or set(name) == {"."}:
        raise TritonError(
            Fault.INVALID, f"model name {name!r}: only letters, digits, '_', '.', '-'"
        )
    return name


@contextlib.contextmanager
def _named_errors(what: str) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        message = " ".join((error.message() or "no reason given").split())[:_LONGEST_MESSAGE]
        fault = classify(error.status() or "", message)
        raise TritonError(fault, f"{what}: {message}") from error
    except grpc.RpcError as error:
        code = error.code() if hasattr(error, "code") else ""
        raise TritonError(classify(str(code), str(error)), f"{what}: {error}") from error
    except TlsError as error:
        raise TritonError(Fault.UNREACHABLE, f"{what}: {error}", sent=False) from error
    except grpc.aio.UsageError as error:  # the channel was closed under the call
        raise TritonError(Fault.UNREACHABLE, f"{what}: {error}") from error


class Proof(NamedTuple):
    """A request of ours that shows whether a model answers."""

    name: str  # that was asked: a variant's, or an alias'
    model: str  # that executes it
    sent_s: float  # monotonic


class TritonControl:
    """One connection to one server. Build it inside the running event loop.

    Raises:
        KeyFileError: the policy names a secret that cannot be read.
    """

    def __init__(self, policy: TritonPolicy) -> None:
        self.address = policy.grpc
        self._headers = read_headers(policy)
        self._link = Link(policy, "acting")
        self._configs: dict[str, tuple[bytes, dict[str, Any]]] = {}  # as last told
        self._proofs: deque[Proof] = deque(maxlen=_PROOFS)

    def set_places(self, policy: TritonPolicy) -> None:
        """Know where the same policy stands in its file now."""
        self._link.policy = policy

    async def close(self) -> None:
        """Close the connection; calls under way fail as unreachable."""
        await self._link.close()

    async def server_live(self, *, deadline_s: float) -> bool:
        """Tell whether the server answers. Raises TritonError where it does not."""
        with _named_errors("server live"):
            return bool(await self._link.client.is_server_live(self._headers, deadline_s))

    async def model_ready(self, name: str, *, deadline_s: float) -> bool:
        """Tell whether a model says it is ready; true is no proof that requests succeed."""
        with _named_errors(f"ready {name}"):
            return bool(
                await self._link.client.is_model_ready(
                    check_name(name), headers=self._headers, client_timeout=deadline_s
                )
            )

    async def model_config(self, name: str, *, deadline_s: float) -> dict[str, Any]:
        """Return a loaded model's config as JSON values (64-bit numbers are strings)."""
        with _named_errors(f"config of {name}"):
            response = await self._link.client.get_model_config(
                check_name(name), headers=self._headers, client_timeout=deadline_s
            )
        # It is asked for every second and hardly ever changes; who gets it does not change it.
        told = response.SerializeToString(deterministic=True)
        before, config = self._configs.get(name, (b"", {}))
        if told != before:
            config = MessageToDict(response.config, preserving_proto_field_name=True)
            self._configs[name] = told, config
        return config

    async def index(self, *, deadline_s: float) -> dict[str, tuple[str, str]]:
        """Return name -> (state, reason) of the repository's models; aliases may be missing.

        Of several versions the most alive one counts.
        """
        with _named_errors("repository index"):
            response = await self._link.client.get_model_repository_index(
                headers=self._headers, client_timeout=deadline_s
            )
        alive = {"READY": 4, "LOADING": 3, "UNLOADING": 2, "UNAVAILABLE": 1}
        found: dict[str, tuple[str, str]] = {}
        for model in response.models:
            known = found.get(model.name)
            if known is None or alive.get(model.state, 0) > alive.get(known[0], 0):
                found[model.name] = (model.state, model.reason)
        return found

    async def successes(self, name: str, *, deadline_s: float) -> tuple[int, int]:
        """Return how many requests a model answered and failed since it was last loaded."""
        with _named_errors(f"statistics of {name}"):
            response = await self._link.client.get_inference_statistics(
                check_name(name), headers=self._headers, client_timeout=deadline_s
            )
        stats = [entry.inference_stats for entry in response.model_stats]
        return sum(s.success.count for s in stats), sum(s.fail.count for s in stats)

    async def load(
        self, name: str, *, deadline_s: float, override: Mapping[str, Any] | None = None
    ) -> None:
        """Load a model from the repository, or load it again with another config.

        Without an override an unchanged, loaded model stays as it is, and keeps an earlier
        override. Outlasting the deadline does not end the load.
        """
        config = None if override is None else json.dumps({**override, "name": name})
        with _named_errors(f"load {name}"):
            await self._link.client.load_model(
                check_name(name), headers=self._headers, config=config, client_timeout=deadline_s
            )

    async def load_alias(
        self, config: Mapping[str, Any], *, virtual: bool, deadline_s: float
    ) -> None:
        """Create an alias, or point it elsewhere.

        Args:
            config: an ensemble of one step, and nothing else is accepted.
            virtual: whether the alias has no folder in the repository.
            deadline_s: outlasting it does not end the operation.
        """
        name = check_name(str(config.get("name")))
        steps = config.get("ensemble_scheduling", {}).get("step", ())
        if config.get("platform") != "ensemble" or "backend" in config or len(steps) != 1:
            raise TritonError(Fault.INVALID, f"{name}: an alias is an ensemble of one step")
        check_name(str(steps[0].get("model_name")))
        with _named_errors(f"load alias {name}"):
            await self._link.client.load_model(
                name,
                headers=self._headers,
                config=json.dumps(config),
                files=_ALIAS_FILES if virtual else None,
                client_timeout=deadline_s,
            )

    async def unload(self, name: str, *, deadline_s: float) -> None:
        """Unload a model; returns before its memory is free, so look at the index."""
        with _named_errors(f"unload {name}"):
            await self._link.client.unload_model(
                check_name(name), headers=self._headers, client_timeout=deadline_s
            )

    async def prove(self, config: Mapping[str, Any], model: str, *, deadline_s: float) -> None:
        """Send one request as `probe` does, and remember that it is none of a client's.

        `model`: what executes it: the target of an alias, else the model itself.

        Raises:
            TritonError: no answer, or the model's own error as INVALID.
        """
        self._proofs.append(Proof(str(config["name"]), model, time.monotonic()))
        await self.probe(config, deadline_s=deadline_s)

    def take_proofs(self) -> tuple[Proof, ...]:
        """Return what was sent since the last call."""
        sent = tuple(self._proofs)
        self._proofs.clear()
        return sent

    async def probe(self, config: Mapping[str, Any], *, deadline_s: float, rows: int = 1) -> None:
        """Send one real request (zeros, empty strings) and wait for its first answer.

        Args:
            config: the model's, from `model_config`; gives the tensors.
            deadline_s: of the whole request, its time in the queue included.
            rows: of the request, where the model takes batches.

        Raises:
            TritonError: no answer, or the model's own error as INVALID.
        """
        name = check_name(str(config["name"]))
        inputs = probe_inputs(config, rows)
        with _named_errors(f"request to {name}"):
            if config.get("model_transaction_policy", {}).get("decoupled"):
                await self._probe_stream(name, inputs, deadline_s)
            else:
                await self._link.client.infer(
                    name, inputs, headers=self._headers, client_timeout=deadline_s
                )

    async def command(
        self, config: Mapping[str, Any], message: bytes, *, deadline_s: float
    ) -> dict[str, Any]:
        """Send a dispatcher a signed message; return what it reports.

        Args:
            config: the dispatcher's, from `model_config`.
            message: from `controller.dispatch.signed`.
            deadline_s: of the answer.

        Raises:
            TritonError: no answer, or it does not obey: INVALID.
        """
        name = check_name(str(config["name"]))
        tensor = triton.InferInput(CONTROL, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[message]], dtype=np.object_))
        with _named_errors(f"message to {name}"):
            answer = await self._link.client.infer(
                name,
                [*probe_inputs(config), tensor],
                headers=self._headers,
                client_timeout=deadline_s,
            )
        text = answer.as_numpy(REPORT)
        try:
            report = json.loads(text.ravel()[0])
        except (AttributeError, IndexError, ValueError) as error:
            raise TritonError(Fault.INVALID, f"message to {name}: no report came back") from error
        if not isinstance(report, dict):
            raise TritonError(Fault.INVALID, f"message to {name}: no report came back")
        return report

    async def _probe_stream(self, name: str, inputs: list[Any], deadline_s: float) -> None:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": name, "inputs": inputs}

        stream = self._link.client.stream_infer(
            requests(), stream_timeout=deadline_s, headers=self._headers
        )
        try:
            async for _, error in stream:
                if error is not None:
                    raise error
                return
        finally:
            stream.cancel()
        raise TritonError(Fault.INVALID, f"request to {name}: the stream ended without an answer")


def connect(policy: TritonPolicy) -> tuple[TritonControl, str | None]:
    """Return the connection, and why it cannot be used for acting if so."""
    try:
        return TritonControl(policy), None
    except KeyFileError as error:
        return TritonControl(replace(policy, restricted_key_file=None)), str(error)


def probe_inputs(config: Mapping[str, Any], rows: int = 1) -> list[Any]:
    """Return the smallest request of so many rows that a model's config allows: zeros, "".

    Variable dimensions become 1; optional inputs are left out.
    """
    batched = int(config.get("max_batch_size", 0)) > 0
    inputs = []
    for tensor in config.get("input", ()):
        if tensor.get("optional"):
            continue
        data_type = tensor["data_type"].removeprefix("TYPE_")
        data_type = "BYTES" if data_type == "STRING" else data_type
        dims = [max(int(size), 1) for size in tensor.get("dims", ())]
        shape = [rows, *dims] if batched else dims
        dtype = triton_to_np_dtype(data_type)
        if dtype is None:
            raise TritonError(
                Fault.INVALID, f"input {tensor['name']}: no zeros of type {data_type}"
            )
        values = np.full(shape, b"", dtype) if data_type == "BYTES" else np.zeros(shape, dtype)
        item = triton.InferInput(tensor["name"], shape, data_type)
        item.set_data_from_numpy(values)
        inputs.append(item)
    return inputs
