"""All sources together: one reading per tick, never later than the tick can wait.

Owns the life of the sources and the hand-out: increments since the reading before, samples
exactly once. It must not decide anything, and no source can hold it: blocking ones live in
threads, the metrics page is waited for within a budget, everything else is what came last.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.policy.model import Policy
from controller.telemetry.batches import BatchDifferences, TimedSample
from controller.telemetry.cards import Cards
from controller.telemetry.gpu import GpuWatch
from controller.telemetry.host import host_source
from controller.telemetry.observation import (
    BatchSample,
    GpuReading,
    HostReading,
    RequestSample,
    SourceHealth,
    VariantReading,
)
from controller.telemetry.otlp import TraceReceiver
from controller.telemetry.sampling import TraceSampling
from controller.telemetry.source import Backoff, Clock, Ledger
from controller.telemetry.triton_metrics import (
    MalformedPageError,
    MetricsReader,
    MetricsReadError,
    MetricsRefusedError,
    ModelCounters,
    Page,
    difference,
)
from controller.telemetry.triton_statistics import Statistics, TritonStatistics

_log = logging.getLogger(__name__)

_SAMPLING_S = 0.5
_MAX_BATCH_SAMPLES = 4096
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything the sources say at one tick."""

    now_s: float  # monotonic
    window_s: float  # the time the increments cover; 0: nothing new since the reading before
    readings_age_s: float | None  # of the variants' readings; None: there never were any
    variants: Mapping[str, VariantReading]  # by Triton's model name, all of the policy's
    gpus: tuple[GpuReading, ...]
    host: HostReading
    batch_samples: tuple[BatchSample, ...]
    request_samples: tuple[RequestSample, ...]
    sources: tuple[SourceHealth, ...]
    triton_up: bool
    triton_version: str | None
    triton_restarts: int  # how often it came back after it was gone


class Telemetry:
    """Reads one Triton server, its host and its GPUs."""

    def __init__(self, policy: Policy, *, clock: Clock = time.monotonic) -> None:
        self.on_counted: Callable[[], None] | None = None  # called when `counted` tells more
        self._clock = clock
        self._policy = policy
        self._variants: tuple[str, ...] = ()
        self._aliases: tuple[str, ...] = ()
        self._metrics_ledger: Ledger[Page] = Ledger(
            "metrics", clock=clock, backoff=Backoff(0.05, 0.5)
        )
        self._page: Page | None = None  # the newest
        self._handed: Page | None = None  # the one whose increments were handed out last
        self._steered: Page | None = None  # the one that sampling was steered by last
        self._fetch: asyncio.Task[Page] | None = None
        self._differences = BatchDifferences()
        self._batch_samples: deque[TimedSample] = deque(maxlen=_MAX_BATCH_SAMPLES)
        self._sampling_task: asyncio.Task[None] | None = None
        self._swap: asyncio.Task[None] | None = None
        self._host = host_source(clock=clock)
        self._cards = Cards()  # outlast the watch, which another policy may replace
        self._name_models(policy)
        self._build(policy)

    async def start(self) -> None:
        """Start every source. Does not wait for any, nor fail for one that is not there."""
        self._host.start()
        await self._start_sources()

    async def stop(self) -> None:
        """Put the trace settings back and stop every source, in bounded time."""
        if self._swap is not None:
            await asyncio.wait({self._swap}, timeout=_STOP_S)
        await self._stop_sources()
        await asyncio.to_thread(self._host.stop)

    async def read(self, budget_s: float) -> Reading:
        """Return what is known now, after waiting at most `budget_s` for a new metrics page."""
        if self._metrics is not None:
            await self._refresh(budget_s)
        now_s = self._clock()
        page, before = self._page, self._handed
        window_s = 0.0
        if page is not None and before is not None:
            window_s = max(0.0, page.at_s - before.at_s)
        variants = {model: self._variant(model, page, before, now_s) for model in self._variants}
        self._handed = page
        taken = tuple(timed.aged(now_s) for timed in self._batch_samples)
        self._batch_samples.clear()
        triton = self._statistics.ledger.health(now_s)
        return Reading(
            now_s=now_s,
            window_s=window_s,
            readings_age_s=None if page is None else max(0.0, now_s - page.at_s),
            variants=variants,
            gpus=self._gpu.readings(now_s, self._policy.stability.stale_after_s),
            host=self._host_reading(now_s),
            batch_samples=taken,
            request_samples=self._receiver.take() if self._receiver is not None else (),
            sources=self._health(now_s),
            triton_up=triton.up and not self._statistics.gone,
            triton_version=self._statistics.version,
            triton_restarts=self._statistics.restarts,
        )

    async def glance(self, budget_s: float) -> dict[str, int]:
        """Return how many requests wait for each variant now; nothing where that takes too long.

        What was counted stays for the next `read`.
        """
        if self._metrics is None:
            return {}
        began_s = self._clock()
        await self._refresh(budget_s)
        page = self._page
        if page is None or page.at_s < began_s:
            return {}
        found = ((model, page.counters.get(model)) for model in self._variants)
        return {
            model: round(counters.pending_requests)
            for model, counters in found
            if counters is not None and counters.pending_requests is not None
        }

    def note_action(self, model: str, at_s: float) -> None:
        """Mark the batch samples around now as spoiled for the fit.

        For a Triton model that was loaded, reloaded or resized, called when that begins and
        when it ends. Switching an alias between warm variants spoils nothing.

        Args:
            model: Triton's model name.
            at_s: when, on the monotonic clock.
        """
        self._differences.note_action(model, at_s)

    def counted(self, model: str) -> tuple[float, ModelCounters] | None:
        """Return when a model was last counted, and its totals since it was loaded; None: never.

        A re-created alias counts from zero.
        """
        newest = self._statistics.ledger.reading
        counters = None if newest is None else newest.counters.get(model)
        return None if newest is None or counters is None else (newest.at_s, counters)

    def set_policy(self, policy: Policy) -> None:
        """Use another policy from the next reading on.

        Sources whose address or kind changed are replaced in the background.
        """
        old, self._policy = self._policy, policy
        self._name_models(policy)
        if self._receiver is not None:
            self._receiver.set_aliases(self._aliases)
        if (old.triton, old.gpu) != (policy.triton, policy.gpu):
            self._swap = asyncio.create_task(self._replace(self._swap), name="telemetry-swap")
        else:
            self._statistics.set_places(policy.triton)

    @property
    def gpus(self) -> tuple[GpuReading, ...]:
        """Return the newest reading of every GPU that is watched."""
        return self._gpu.readings(self._clock(), self._policy.stability.stale_after_s)

    @property
    def traces_address(self) -> tuple[str, int] | None:
        """Where traces are received, as bound; None: nowhere."""
        return self._receiver.address if self._receiver is not None else None

    # --- life of the sources

    def _name_models(self, policy: Policy) -> None:
        names = (variant.model for model in policy.models for variant in model.variants)
        self._variants = tuple(dict.fromkeys(names))
        self._aliases = tuple(model.name for model in policy.models)

    def _build(self, policy: Policy) -> None:
        triton, clock = policy.triton, self._clock
        self._gpu = GpuWatch(policy.gpu, clock=clock, cards=self._cards)
        self._metrics: MetricsReader | None = None
        if triton.metrics_url is not None:
            self._metrics = MetricsReader(triton.metrics_url, clock=clock, tls=triton.metrics_tls)
        self._receiver: TraceReceiver | None = None
        if triton.traces_listen is not None:
            self._receiver = TraceReceiver(triton.traces_listen, self._aliases, clock=clock)
        self._sampling = TraceSampling(clock=clock, address=triton.grpc)
        self._statistics = TritonStatistics(
            triton, clock=clock, on_poll=self._polled, on_restart=self._restarted
        )

    async def _start_sources(self) -> None:
        self._gpu.start()
        if self._receiver is not None:
            await self._receiver.start()
        self._statistics.start()
        if self._receiver is not None:
            self._sampling_task = asyncio.create_task(self._steer(), name="telemetry-sampling")

    async def _stop_sources(self) -> None:
        for task in (self._sampling_task, self._fetch):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._sampling_task = self._fetch = None
        client = self._statistics.client
        if client is not None and self._statistics.ledger.up:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await self._sampling.restore(client, self._statistics.headers)
        await self._statistics.stop()
        if self._receiver is not None:
            await self._receiver.stop()
        if self._metrics is not None:
            self._metrics.close()
        await asyncio.to_thread(self._gpu.stop)

    async def _replace(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        await self._stop_sources()
        self._page = self._handed = self._steered = None
        self._differences = BatchDifferences()
        self._build(self._policy)
        await self._start_sources()

    # --- metrics

    async def _refresh(self, budget_s: float) -> None:
        """Ask for a new page and wait for it within the budget; take in one that came late."""
        self._harvest()
        if self._fetch is None and self._metrics is not None:
            retry_s = self._metrics_ledger.retry_s
            if retry_s is not None and self._clock() < retry_s:
                return
            self._fetch = asyncio.create_task(self._metrics.fetch(), name="telemetry-metrics")
        if self._fetch is not None:
            await asyncio.wait({self._fetch}, timeout=max(0.0, budget_s))
            self._harvest()

    def _harvest(self) -> None:
        task = self._fetch
        if task is None or not task.done():
            return
        self._fetch = None
        was_up = self._metrics_ledger.up
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            page = task.result()
            self._page = page
            self._metrics_ledger.succeed(page, page.at_s)
            self._metrics_ledger.caution = None if self._metrics is None else self._metrics.problem
            if not was_up and not self._statistics.ledger.up:
                self._statistics.poke()  # it looks as if Triton were back
            return
        if not isinstance(error, (MetricsReadError, MalformedPageError)):
            _log.error("metrics: unexpected: %r", error, exc_info=error)
        self._metrics_ledger.fail(error)
        if was_up and isinstance(error, MetricsRefusedError):
            self._statistics.poke()  # it looks as if Triton were gone: find out now

    def _variant(
        self, model: str, page: Page | None, before: Page | None, now_s: float
    ) -> VariantReading:
        ready = self._is_ready(model, now_s)
        after = None if page is None else page.counters.get(model)
        if page is None or after is None:
            return VariantReading(model=model, ready=ready, pending_requests=None)
        # On the first page nothing is an increment; a model that is new on a later one began
        # at zero.
        base = None if before is None else before.counters.get(model, ModelCounters())
        return difference(model, base, after, ready=ready)

    # --- statistics

    def _polled(self, statistics: Statistics) -> None:
        wanted = set(self._variants)
        batches = {name: totals for name, totals in statistics.batches.items() if name in wanted}
        self._batch_samples.extend(self._differences.update(statistics.at_s, batches))
        if self._metrics is None:
            self._page = Page(statistics.at_s, statistics.counters)
        if self.on_counted is not None:
            self.on_counted()

    def _restarted(self) -> None:
        _log.warning("triton: it is back after it was gone (version %s)", self._statistics.version)
        self._differences.forget()
        self._sampling.forget()

    def _is_ready(self, model: str, now_s: float) -> bool | None:
        statistics = self._statistics
        if statistics.gone:
            return False
        newest = statistics.ledger.reading
        if newest is None or now_s - newest.at_s > self._policy.stability.stale_after_s:
            return None
        return model in newest.batches

    # --- the others

    async def _steer(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLING_S)
            client = self._statistics.client
            before, page = self._steered, self._page
            self._steered = page
            if client is None or page is None or before is None or page.at_s <= before.at_s:
                continue
            if not self._statistics.ledger.up:
                continue
            window_s = page.at_s - before.at_s
            arrivals: dict[str, float] = {}
            for alias in self._aliases:
                after = page.counters.get(alias)
                if after is not None:
                    base = before.counters.get(alias, ModelCounters())
                    done = difference(alias, base, after, ready=None).completed_requests
                    arrivals[alias] = done / window_s
            receiver = self._receiver
            if receiver is not None:
                await self._sampling.steer(
                    client,
                    self._statistics.headers,
                    arrivals,
                    port=receiver.port,
                    version=self._statistics.version,
                    listening=receiver.listening,
                )

    def _host_reading(self, now_s: float) -> HostReading:
        reading = self._host.ledger.reading
        stale = not self._host.ledger.health(now_s).up
        return HostReading() if reading is None or stale else reading

    def _health(self, now_s: float) -> tuple[SourceHealth, ...]:
        found = [self._statistics.ledger.health(now_s)]
        if self._metrics is not None:
            found.append(self._metrics_ledger.health(now_s))
        if self._receiver is not None:
            found.append(self._receiver.ledger.health(now_s))
            found.append(self._sampling.ledger.health(now_s))
        found.append(self._gpu.health(now_s))
        found.append(self._host.ledger.health(now_s))
        return tuple(found)
