"""Triton over gRPC: is it there, which version, which models are ready, what did batches take.

Owns the connection that observes (acting has its own) and the poll, about twice a second. One
call answers for all models: only loaded ones have statistics, so it tells readiness as well. It
must not change anything on the server.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from controller.policy.model import TritonPolicy
from controller.telemetry.batches import BatchTotals, ModelTotals
from controller.telemetry.channel import Link, read_headers
from controller.telemetry.handshake import explain_refusal
from controller.telemetry.source import Backoff, Clock, Ledger, silence_s
from controller.telemetry.tls import CredentialsError
from controller.telemetry.triton_metrics import ModelCounters

_LOG = logging.getLogger(__name__)

CADENCE_S = 0.5
_DEADLINE_S = 2.0
_EXPLAIN_EVERY_S = 5.0
_US_PER_NS = 1e-3
_RESTRICTED = "protocol is restricted"


@dataclass(frozen=True, slots=True)
class Statistics:
    """One poll: everything the server says about its loaded models."""

    at_s: float
    batches: Mapping[str, ModelTotals]
    counters: Mapping[str, ModelCounters]  # as on the metrics page, but reset by reloads


class TritonStatistics:
    """Polls one server from a task of its own; survives the server's absence and return."""

    def __init__(
        self,
        policy: TritonPolicy,
        *,
        clock: Clock,
        on_poll: Callable[[Statistics], None],
        on_restart: Callable[[], None],
    ) -> None:
        self.ledger: Ledger[Statistics] = Ledger(
            "triton",
            clock=clock,
            backoff=Backoff(0.2, CADENCE_S),
            silent_s=silence_s(CADENCE_S) + _DEADLINE_S,
        )
        self.version: str | None = None
        self.restarts = 0
        self.gone = False  # it was there, and refuses connections now
        self._policy = policy
        self._clock = clock
        self._on_poll = on_poll
        self._on_restart = on_restart
        self._link: Link | None = None
        self._explained: tuple[float, str | None] = (-math.inf, None)
        self._headers: dict[str, str] = {}
        self._poke = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def client(self) -> triton.InferenceServerClient | None:
        """The client that observes, for the trace settings; None before there is one."""
        try:
            return None if self._link is None else self._link.client
        except CredentialsError:
            return None

    @property
    def headers(self) -> dict[str, str]:
        """What each call carries."""
        return self._headers

    def start(self) -> None:
        """Start polling in the running event loop."""
        self.ledger.begin()
        self._task = asyncio.create_task(self._run(), name="telemetry-triton")

    async def stop(self) -> None:
        """Stop polling and close the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._close()

    def set_places(self, policy: TritonPolicy) -> None:
        """Know where the same policy stands in its file now."""
        self._policy = policy
        if self._link is not None:
            self._link.policy = policy

    def poke(self) -> None:
        """Poll now: another source saw the server disappear, or come back."""
        self._poke.set()

    async def _run(self) -> None:
        while True:
            wait_s = CADENCE_S
            try:
                await self._poll()
            except Exception as error:  # noqa: BLE001 - one bad answer must not end the watch
                wait_s = await self._failed(error)
            with contextlib.suppress(TimeoutError):
                # Not wait_for: on Python 3.11 that swallows a cancellation when the event is set.
                async with asyncio.timeout(wait_s):
                    await self._poke.wait()
                # However often it is poked: not more than a poll per tenth of the cadence.
                await asyncio.sleep(CADENCE_S / 10.0)
            self._poke.clear()

    async def _failed(self, error: BaseException) -> float:
        text = describe(error, self._policy.grpc)
        if is_unreachable(error):
            self.gone = self.gone or self.ledger.reading is not None
            text = await self._explain() or text
        return self.ledger.fail(text)

    async def _explain(self) -> str | None:
        """Return why nobody answers; asked anew now and then, as asking is a connection."""
        asked_s, told = self._explained
        if self._clock() - asked_s > _EXPLAIN_EVERY_S:
            told = await explain_refusal(self._policy)
            self._explained = self._clock(), told
        return told

    async def _poll(self) -> None:
        if self._link is None or not self.ledger.up:
            self._connect()
        link = self._link
        assert link is not None  # noqa: S101 - connected above
        client = link.client
        if self.version is None or self.gone:
            metadata = await client.get_server_metadata(
                headers=self._headers, client_timeout=_DEADLINE_S
            )
            self.version = str(metadata.version)
        answer = await client.get_inference_statistics(
            headers=self._headers, client_timeout=_DEADLINE_S
        )
        statistics = _read(answer, self._clock())
        if self.gone:
            self.gone = False
            self.restarts += 1
            self._on_restart()
        self._explained = (-math.inf, None)
        self._note(link.problem)
        self.ledger.succeed(statistics)
        self._on_poll(statistics)

    def _note(self, problem: str | None) -> None:
        """Tell of files that changed for the worse; calls go on with those of before."""
        told = None if problem is None else f"{problem}; what was read before is still used"
        if told is not None and told != self.ledger.caution:
            _LOG.warning("triton: %s", told)
        self.ledger.caution = told

    def _connect(self) -> None:
        # The key is read again after a failure: it may have been rotated with the server.
        self._headers = read_headers(self._policy)
        if self._link is None:
            self._link = Link(self._policy, "observing")

    async def _close(self) -> None:
        if self._link is not None:
            await self._link.close()
            self._link = None


def is_restricted(error: BaseException) -> bool:
    """Return whether the server refuses a call for want of the right key."""
    return isinstance(error, InferenceServerException) and _RESTRICTED in str(error.message())


def is_unreachable(error: BaseException) -> bool:
    """Return whether nobody answers at the server's address."""
    if not isinstance(error, InferenceServerException) or is_restricted(error):
        return False
    return bool(error.status() == str(grpc.StatusCode.UNAVAILABLE))


def describe(error: BaseException, address: str) -> str:
    """Return what is wrong with the server at an address, and what to do, in one line."""
    if isinstance(error, CredentialsError):
        return str(error)
    if isinstance(error, InferenceServerException):
        # Triton answers both with UNAVAILABLE, so the words are looked at first.
        if is_restricted(error):
            return (
                f"Triton at {address} restricts a protocol that is needed: {error.message()}; "
                "check triton.restricted_key_file and triton.restricted_key_name"
            )
        if is_unreachable(error):
            return f"no Triton answers gRPC at {address}; is it running, and is triton.grpc right?"
        message = error.message()
        return f"Triton at {address}: {message}"
    return f"Triton at {address}: {error or type(error).__name__}"


def _read(answer: object, at_s: float) -> Statistics:
    """Take the numbers out of the protobuf message, summed over versions."""
    batches: dict[str, dict[int, BatchTotals]] = {}
    counters: dict[str, ModelCounters] = {}
    for model in answer.model_stats:  # type: ignore[attr-defined]
        name = str(model.name)
        sizes = batches.setdefault(name, {})
        for batch in model.batch_stats:
            service_ns = batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns
            rows, executions = int(batch.batch_size), int(batch.compute_infer.count)
            old = sizes.get(rows, BatchTotals(0, 0))
            sizes[rows] = BatchTotals(old.executions + executions, old.service_ns + service_ns)
        total = counters.setdefault(name, ModelCounters())
        stats = model.inference_stats
        total.completed_requests += stats.success.count
        total.failed_requests += stats.fail.count
        total.completed_rows += model.inference_count
        total.executions += model.execution_count
        total.queue_us += stats.queue.ns * _US_PER_NS
        compute_ns = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
        total.compute_us += compute_ns * _US_PER_NS
    totals = {name: ModelTotals(sizes) for name, sizes in batches.items()}
    return Statistics(at_s, totals, counters)
