"""The simulated server behind the two ports: observations out, decisions in.

Owns the translation, with the cadences of the real adapters: counters at every tick, statistics
by batch size twice a second, some traced requests a second that come late. It must not add
knowledge that the real adapters do not have.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Final

import numpy as np

from controller.planning.decision import Decision
from controller.planning.sizing import Resize
from controller.policy.model import ModelPolicy
from controller.ports import ActionRecord, Outcome
from controller.prediction.probing import Probe
from controller.telemetry.observation import (
    BatchSample,
    GpuReading,
    HostReading,
    Instances,
    ModelReading,
    Observation,
    ProbeDone,
    RequestSample,
    VariantReading,
)
from controller.twin.server import Counters, Executed, SimulatedTriton

_STATISTICS_S: Final = 0.5
_TRACES_PER_S: Final = 8.0
_TRACE_DELAY_S: Final = 0.15


class TwinPort:
    """Reads and acts on one simulated server for the models of a policy, one an alias."""

    def __init__(self, server: SimulatedTriton, *models: ModelPolicy) -> None:
        self._server = server
        self._models = {model.name: (alias, model) for alias, model in enumerate(models)}
        self._names = tuple(variant.model for model in models for variant in model.variants)
        self._alias_of = [alias for alias, model in enumerate(models) for _ in model.variants]
        self._placement = {
            name: gpus for name, gpus in zip(self._names, server.placed, strict=True) if gpus
        }
        self._moves = 0
        self._seen = [Counters() for _ in self._names]
        self._observed_s: float | None = None
        self._polled_s = 0.0
        self._unpolled: list[Executed] = []
        self._sequence = 0
        self._traces = [_Traces(server, alias, name) for name, (alias, _) in self._models.items()]
        self._probes: list[ProbeDone] = []
        self._busy_s = 0.0

    async def observe(self) -> Observation:
        """Return what is known now."""
        return self.read()

    async def apply(self, decision: Decision) -> ActionRecord:
        """Carry a decision out."""
        return self.act(decision)

    def read(self) -> Observation:
        """Return what is known now; what `observe` does, for a loop without asyncio."""
        server = self._server
        now_s = server.now_s
        window_s = 0.0 if self._observed_s is None else now_s - self._observed_s
        counters = server.counters
        variants = {
            name: self._reading(index, name, counters[index])
            for index, name in enumerate(self._names)
        }
        self._take_executed()
        probes, self._probes = tuple(self._probes), []
        observation = Observation(
            now_s=now_s,
            sequence=self._sequence,
            models={name: self._alias(name) for name in self._models},
            variants=variants,
            window_s=window_s,
            readings_age_s=0.0,
            gpus=self._gpus(window_s),
            host=HostReading(),
            batch_samples=self._batch_samples(now_s),
            request_samples=self._request_samples(now_s),
            probes=probes,
            placement=self._places(),
            instances=self._instances(),
        )
        self._observed_s = now_s
        self._sequence += 1
        return observation

    def glance(self) -> tuple[dict[str, ModelReading], dict[str, int]]:
        """Return the aliases, and what waits for each variant; counts stay uncounted."""
        pending = {name: self._server.pending(i) for i, name in enumerate(self._names)}
        return {name: self._alias(name) for name in self._models}, pending

    def act(self, decision: Decision) -> ActionRecord:
        """Carry a decision out; what `apply` does, for a loop without asyncio."""
        server = self._server
        alias, model = self._models[decision.model]
        source = self._names[server.serving_of(alias)]
        outcome, target = Outcome.NOTHING_TO_DO, None
        if decision.changes:
            assert decision.target is not None  # noqa: S101 - `changes` says so
            target = model.variant(decision.target).model
            accepted = server.switch(self._names.index(target))
            outcome = Outcome.DONE if accepted else Outcome.BUSY
        took_s = server.physics.switch_s if outcome is Outcome.DONE else None
        return ActionRecord(
            kind="switch",
            model=model.name,
            source=source,
            target=target,
            outcome=outcome,
            started_s=server.now_s,
            switch_s=took_s,
            transaction_s=took_s,
            reason=str(decision.reason),
        )

    def resize(self, resize: Resize) -> None:
        """Change a variant's instances, if nothing else is under way on it."""
        if self._may_change(index := self._names.index(resize.model)):
            for gpu in self._server.pool.places(index):
                self._server.pool.resize(index, resize.number, gpu)

    def _may_change(self, index: int) -> bool:
        """Return whether a variant's instances may be changed: it does not serve, or alone can."""
        server, alias = self._server, self._alias_of[index]
        serves = server.serving_of(alias) == index and self._alias_of.count(alias) > 1
        return not (serves or server.is_switching(alias) or server.pool.is_busy(index))

    def _instances(self) -> dict[str, Instances]:
        server = self._server
        least = server.physics.instances
        sized = [
            self._names.index(variant.model)
            for _, model in self._models.values()
            for variant in model.variants
            if variant.max_instances is not None or least > 1
        ]
        return {
            self._names[index]: Instances(
                max(server.pool.instances(index, gpu) for gpu in where),
                least,
                self._may_change(index),
            )
            for index in sized
            if (where := server.pool.places(index))
        }

    def send_probe(self, probe: Probe) -> None:
        """Send a synthetic request."""
        self._server.probe(self._names.index(probe.model), probe.rows)

    def probe_cost_s(self, probe: Probe) -> float:
        """Return about what a probe takes; the daemon measures it when the answer comes."""
        variant = self._server.variants[self._names.index(probe.model)]
        return variant.service_s(min(probe.rows, variant.max_batch))

    def _alias(self, name: str) -> ModelReading:
        server, (alias, _) = self._server, self._models[name]
        return ModelReading(
            name,
            self._names[server.serving_of(alias)],
            server.since_s_of(alias),
            ready=True,
            switching=server.is_switching(alias),
        )

    def _reading(self, index: int, name: str, now: Counters) -> VariantReading:
        before = self._seen[index]
        reading = VariantReading(
            model=name,
            ready=True,
            pending_requests=self._server.pending(index),
            completed_requests=now.requests - before.requests,
            completed_rows=now.rows - before.rows,
            executions=now.executions - before.executions,
            queue_s=now.queue_s - before.queue_s,
            compute_s=now.compute_s - before.compute_s,
        )
        self._seen[index] = now
        return reading

    def _places(self) -> dict[str, tuple[int, ...]]:
        """Return where variants are; the same mapping while nothing moved."""
        pool = self._server.pool
        if pool.moves != self._moves:
            self._moves = pool.moves
            self._placement = {
                name: pool.places(at)
                for at, name in enumerate(self._names)
                if name in self._placement
            }
        return self._placement

    def _gpus(self, window_s: float) -> tuple[GpuReading, ...]:
        busy_s = self._server.busy_s - self._busy_s
        self._busy_s = self._server.busy_s
        used = min(busy_s / window_s, 1.0) if window_s > 0.0 else None
        physics, now_s = self._server.physics, self._server.now_s
        if physics.gpus == 1:
            return (GpuReading(0, None, "simulated", utilization_ratio=used),)
        lost = [math.isinf(physics.slowdown_at(now_s, gpu)) for gpu in range(physics.gpus)]
        return tuple(
            GpuReading(gpu, None, "simulated", lost=gone, error="it is lost" if gone else None)
            for gpu, gone in enumerate(lost)
        )

    def _take_executed(self) -> None:
        """Take what ended since the last look."""
        ended = self._server.take_executed()
        self._unpolled += ended
        for batch in ended:
            if batch.probe:
                self._probes.append(ProbeDone(self._names[batch.variant], batch.rows))

    def _batch_samples(self, now_s: float) -> tuple[BatchSample, ...]:
        """Return the means by batch size since the last poll of the statistics."""
        if now_s - self._polled_s < _STATISTICS_S:
            return ()
        age_s = (now_s - self._polled_s) / 2.0
        self._polled_s = now_s
        cells: dict[tuple[int, int], list[float]] = defaultdict(list)
        for batch in self._unpolled:
            cells[batch.variant, batch.rows].append(batch.took_s)
        self._unpolled = []
        return tuple(
            BatchSample(self._names[variant], rows, len(took), sum(took) / len(took), age_s)
            for (variant, rows), took in cells.items()
        )

    def _request_samples(self, now_s: float) -> tuple[RequestSample, ...]:
        """Return the traced requests whose traces have come."""
        return tuple(
            RequestSample(traces.name, self._names[variant], arrived_s, done_s - arrived_s)
            for traces in self._traces
            for variant, arrived_s, done_s in traces.take(now_s)
        )


class _Traces:
    """The traced requests of one alias: some a second, whose traces come late."""

    def __init__(self, server: SimulatedTriton, alias: int, name: str) -> None:
        self.name = name
        self._server = server
        self._alias = alias
        self._waiting: deque[int] = deque()  # requests whose trace is to come
        self._traced_s = 0.0
        # The first request that came after the last one traced.
        self._traceable = server.requests_of(alias).start
        self._which = np.random.default_rng(alias)

    def take(self, now_s: float) -> Iterator[tuple[int, float, float]]:
        """Yield (variant, arrival, end) of those whose traces have come; choose one more."""
        server, arrived = self._server, self._server.arrived_of(self._alias)
        if now_s - self._traced_s >= 1.0 / _TRACES_PER_S and arrived > self._traceable:
            self._traced_s = now_s
            self._waiting.append(int(self._which.integers(self._traceable, arrived)))
            self._traceable = arrived
        for request, variant, arrived_s, done_s in server.ended(tuple(self._waiting)):
            if done_s + _TRACE_DELAY_S <= now_s:
                self._waiting.remove(request)
                yield variant, arrived_s, done_s
