"""A small simulated batching server that drives the pure core in tests.

Owns just enough of Triton's dynamics for decisions to have consequences: a queue per variant,
dynamic batching, one instance per variant, an alias whose switch leaves the backlog where it is.
It is a test bench, not the twin: nobody has validated it against a real server.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np

from controller.planning.core import GovernorCore
from controller.planning.decision import Decision
from controller.policy.model import Policy
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    Observation,
    RequestSample,
    VariantReading,
)


@dataclass
class Variant:
    """a + b * rows seconds a batch, on its own processor."""

    fixed_s: float
    row_s: float
    max_batch: int = 8

    def service_s(self, rows: int) -> float:
        return self.fixed_s + self.row_s * rows


@dataclass
class Request:
    at_s: float
    rows: int
    model: str = ""
    done_s: float = 0.0

    @property
    def latency_s(self) -> float:
        return self.done_s - self.at_s


@dataclass
class Result:
    requests: list[Request]
    decisions: list[Decision] = field(default_factory=list)
    switches: int = 0

    def attainment(self, limit_s: float) -> float:
        return float(np.mean([r.latency_s <= limit_s for r in self.requests]))

    def effective_quality(self, limit_s: float, quality: dict[str, float]) -> float:
        met = [quality[r.model] if r.latency_s <= limit_s else 0.0 for r in self.requests]
        return float(np.mean(met))

    def quantile_s(self, probability: float) -> float:
        return float(np.quantile([r.latency_s for r in self.requests], probability))


def bursts(
    seconds: float,
    calm_rps: float,
    burst_rps: float,
    seed: int,
    *,
    rows: tuple[int, ...] = (1, 2, 4, 8),
    rows_p: tuple[float, ...] = (0.6, 0.2, 0.15, 0.05),
) -> list[Request]:
    """Poisson arrivals whose rate steps between calm and bursts at random."""
    rng = np.random.default_rng(seed)
    requests, now, burst, until = [], 0.0, False, rng.exponential(4.0)
    while now < seconds:
        now += rng.exponential(1.0 / (burst_rps if burst else calm_rps))
        if now > until:
            burst = not burst
            until = now + rng.exponential(1.5 if burst else 4.5)
        requests.append(Request(now, int(rng.choice(rows, p=rows_p))))
    return requests


def run(  # noqa: C901, PLR0912, PLR0915 - one event loop reads best in one piece
    policy: Policy,
    variants: dict[str, Variant],
    requests: list[Request],
    *,
    core: GovernorCore | None,
    serving: str,
    seed: int = 0,
    noise: float = 0.08,
    slow_after_s: float | None = None,
    slow_factor: float = 1.0,
    switch_s: float = 0.005,
) -> Result:
    """Serve the requests; `core` None keeps the alias where it is."""
    rng = np.random.default_rng(seed + 77)
    model = policy.models[0]
    queues: dict[str, deque[Request]] = {name: deque() for name in variants}
    busy: dict[str, bool] = dict.fromkeys(variants, False)
    counters: dict[str, dict[str, float]] = {name: defaultdict(float) for name in variants}
    seen: dict[str, dict[str, float]] = {name: defaultdict(float) for name in variants}
    batches: list[tuple[str, int, float, float]] = []
    finished: list[Request] = []
    result = Result(requests)
    target, pending_switch = serving, None
    events: list[tuple[float, int, str, object]] = []
    order = 0

    def push(at_s: float, kind: str, payload: object) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at_s, order, kind, payload))

    def start(name: str, now: float) -> None:
        if busy[name] or not queues[name]:
            return
        batch: list[Request] = []
        rows = 0
        while queues[name] and rows + queues[name][0].rows <= variants[name].max_batch:
            request = queues[name].popleft()
            batch.append(request)
            rows += request.rows
        took = variants[name].service_s(rows) * float(np.exp(rng.normal(0.0, noise)))
        if slow_after_s is not None and now > slow_after_s:
            took *= slow_factor
        busy[name] = True
        push(now + took, "done", (name, batch, rows, took))

    for request in requests:
        push(request.at_s, "arrive", request)
    if core is not None:
        push(policy.tick_s * float(rng.random()), "tick", None)
    end = requests[-1].at_s + 5.0
    previous: float | None = None
    sequence, since = 0, 0.0
    sample_delay: deque[tuple[float, Request]] = deque()
    while events:
        now, _, kind, payload = heapq.heappop(events)
        if now > end:
            break
        if kind == "arrive":
            assert isinstance(payload, Request)
            payload.model = serving
            queues[serving].append(payload)
            start(serving, now)
        elif kind == "done":
            name, batch, rows, took = payload  # type: ignore[misc]
            busy[name] = False
            counters[name]["requests"] += len(batch)
            counters[name]["rows"] += rows
            counters[name]["executions"] += 1
            batches.append((name, rows, took, now))
            for request in batch:
                request.done_s = now
                finished.append(request)
                sample_delay.append((now + 0.15, request))
            start(name, now)
        elif kind == "switched":
            serving, since, pending_switch = str(payload), now, None
        elif kind == "tick":
            assert core is not None
            readings = {}
            for name in variants:
                delta = {k: counters[name][k] - seen[name][k] for k in counters[name]}
                seen[name] = defaultdict(float, counters[name])
                readings[name] = VariantReading(
                    model=name,
                    ready=True,
                    pending_requests=len(queues[name]),
                    completed_requests=int(delta.get("requests", 0)),
                    completed_rows=int(delta.get("rows", 0)),
                    executions=int(delta.get("executions", 0)),
                )
            samples = tuple(BatchSample(n, r, 1, t, now - e) for n, r, t, e in batches)
            batches.clear()
            traced = []
            while sample_delay and sample_delay[0][0] <= now:
                request = sample_delay.popleft()[1]
                traced.append(
                    RequestSample(model.name, request.model, request.at_s, request.latency_s)
                )
            observation = Observation(
                now_s=now,
                sequence=sequence,
                models={
                    model.name: ModelReading(
                        model.name, serving, since, ready=True, switching=bool(pending_switch)
                    )
                },
                variants=readings,
                window_s=0.0 if previous is None else now - previous,
                readings_age_s=0.0,
                host=HostReading(cpu_count=2),
                batch_samples=samples,
                request_samples=tuple(traced),
            )
            previous, sequence = now, sequence + 1
            for decision in core.step(observation):
                result.decisions.append(decision)
                if decision.changes and pending_switch is None:
                    assert decision.target is not None
                    target = model.variant(decision.target).model
                    pending_switch = target
                    result.switches += 1
                    push(now + switch_s, "switched", target)
            for probe in core.probes(observation):
                queues[probe.model].append(Request(now, probe.rows, probe.model))
                start(probe.model, now)
                core.probe_spent(variants[probe.model].service_s(probe.rows), now)
            push(now + policy.tick_s, "tick", None)
    for request in requests:
        if request.done_s == 0.0:
            request.done_s = end + 10.0
    return result
