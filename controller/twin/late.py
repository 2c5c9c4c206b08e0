"""A governor whose dispatcher binds requests late, in simulated time.

Owns the event loop of one device behind one queue, and behind one of each variant while the
governor has left its dispatcher. The choice is made by the code that runs inside
Triton (`controller.dispatch.late_binding`), by the plans that the governor's core makes of what it
learns, with the cadences of the real adapters. Requests, noise and slow-down are the simulated
Triton's. It must not score.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.dispatch.late_binding import Batch, Dispatcher
from controller.dispatch.plan import Plan
from controller.planning.core import GovernorCore
from controller.planning.decision import Decision
from controller.planning.pacing import interval_s
from controller.policy.model import DISPATCHER, DispatcherPolicy, Policy
from controller.telemetry.observation import (
    BatchSample,
    Dispatched,
    GpuReading,
    HostReading,
    ModelReading,
    Observation,
    ProbeDone,
    VariantReading,
)
from controller.twin.drive import Outcome, phase_s, profile_of
from controller.twin.engine import noise_factor
from controller.twin.server import SimulatedTriton

_STATISTICS_S: Final = 0.5
_TOLD_S: Final = 0.2  # between two plans
WAY_S: Final = 0.0005  # from the dispatcher to a variant, and the same back
_MOST_FLYING: Final = 2  # batches: one under way, and one sent ahead
_INSTANT_S: Final = 1e-6  # who waited just as long as is allowed has not waited too long
_UNKNOWN_S: Final = 1e-3  # before the first plan nothing is known


class _Executed(NamedTuple):
    """A batch on the device."""

    ends_s: float
    variant: int
    rows: int
    took_s: float
    requests: int
    waited_s: float


def late_policy(policy: Policy) -> Policy:
    """Return a policy of one model with a dispatcher for it."""
    (model,) = policy.models
    bound = replace(model, dispatcher=DispatcherPolicy(DISPATCHER, ""))
    return replace(policy, models=(bound,))


def drive_late(
    server: SimulatedTriton,
    policy: Policy,
    *,
    rows: NDArray[np.int64] | None,
    profiled: bool,
    duration_s: float,
    seed: int,
    later: Sequence[tuple[float, Policy]] = (),
) -> Outcome:
    """Serve all requests; `profiled`: the ladder's service times are known from the start.

    Args:
        server: whose variants, arrivals and physics these are; it serves nobody itself.
        policy: of one model, with a dispatcher.
        rows: of each request; None: one.
        profiled: whether the governor knows the service times.
        duration_s: that the governor looks on.
        seed: of noise and of the first look.
        later: the policies that are in force from some seconds on, as schedules have it.
    """
    core = GovernorCore(policy)
    if profiled:
        core.restore(profile_of(server, policy))
    run = _Run(server, core, policy, rows, seed, later)
    return run.through(duration_s)


class _Run:
    """One device, one queue, one governor."""

    def __init__(
        self,
        server: SimulatedTriton,
        core: GovernorCore,
        policy: Policy,
        rows: NDArray[np.int64] | None,
        seed: int,
        later: Sequence[tuple[float, Policy]],
    ) -> None:
        self._server, self._core, self._policy = server, core, policy
        self._later = deque(later)
        (self._model,) = policy.models
        self._names = [variant.model for variant in self._model.variants]
        self._arrivals: list[float] = server.arrivals_s().tolist()
        self._rows = rows
        self._seed, self._given = seed, server.physics.given()
        least = min(self._model.variants, key=lambda one: one.quality)
        most = min(variant.max_batch for variant in server.variants)
        first = Plan((least.model,), (0.0,), ((_UNKNOWN_S,) * most,), (1.0,), math.inf)
        self._dispatcher = Dispatcher(first._replace(limit_s=self._model.objective.latency_s))
        self._governed = False
        self._told_s = -math.inf
        self._batches = self._switches = 0
        self._last: int | None = None  # the variant of the last batch that came back
        self._probes: list[tuple[float, ProbeDone]] = []  # (when it ends, what is then told)
        self._free_s = 0.0  # when the device has done all that it was given
        self._executing: deque[_Executed] = deque()
        self._unpolled: list[_Executed] = []
        # Where the alias leads, None: to the dispatcher; and from when on it leads elsewhere.
        self._variant: int | None = None
        self._leads: tuple[float, int | None] | None = None
        self._queues: list[deque[tuple[float, int]]] = [deque() for _ in self._names]
        self._alias_told_s = math.nan  # of requests that come to a variant
        self._done_s = np.full(len(self._arrivals), np.inf)
        self._served_by = np.full(len(self._arrivals), -1, dtype=np.int64)
        self._promised_s = np.full(len(self._arrivals), math.nan)
        self._seen = (0, 0, 0, 0)  # that the dispatcher counted, as of the last look
        self._came_rows = 0
        self._looked_s: float | None = None
        self._polled_s = self._busy_s = self._used_s = 0.0
        self._sequence = 0

    def through(self, duration_s: float) -> Outcome:
        """Run it to the last answer."""
        arrivals = self._arrivals
        took_real_s: list[float] = []
        look_s = phase_s(self._policy.tick_s, self._seed)
        at, now_s = 0, 0.0
        flying: deque[tuple[Batch, float]] = deque()  # (what was sent, when its answer is back)
        while at < len(arrivals) or flying or self._dispatcher.waiting or any(self._queues):
            comes_s = arrivals[at] if at < len(arrivals) else math.inf
            back_s = flying[0][1] if flying else math.inf
            sends_s = math.inf
            if self._dispatcher.waiting and len(flying) < _MOST_FLYING:
                sends_s = max(self._dispatcher.sends_s(flying[0][0]), now_s) if flying else now_s
            gives_up_s = self._gives_up_s(now_s)
            begins_s = max(self._free_s, now_s) if any(self._queues) else math.inf
            now_s = min(back_s, gives_up_s, sends_s, comes_s, look_s, begins_s)
            if now_s == gives_up_s:
                self._dispatcher.overdue(now_s)  # refused: never answered
            elif now_s == back_s:
                self._answer(flying.popleft()[0], now_s)
            elif now_s == sends_s:
                sent = self._dispatcher.take(now_s, flying[0][0] if flying else None)
                if sent is not None:
                    variant = self._names.index(sent.name)
                    ends_s = self._execute(variant, sent.rows, now_s + WAY_S)
                    flying.append((sent, ends_s + WAY_S))
            elif now_s == begins_s:
                self._begin(now_s)
            elif now_s == comes_s:
                self._come(now_s, at)
                at += 1
            else:
                took_real_s.append(self._look(now_s))
                look_s += interval_s(self._policy, at_ease=self._core.at_ease)
                look_s = look_s if look_s < duration_s else math.inf
        return Outcome(
            self._done_s - np.array(arrivals),
            self._served_by,
            self._switches,
            np.array(took_real_s),
            stated_s=self._promised_s,
        )

    def _gives_up_s(self, now_s: float) -> float:
        """Return when somebody will have waited for too long."""
        patient_s = self._dispatcher.patient_s(now_s)
        return math.inf if patient_s is None else now_s + patient_s + _INSTANT_S

    def _rows_of(self, at: int) -> int:
        return 1 if self._rows is None else int(self._rows[at])

    def _answer(self, batch: Batch, now_s: float) -> None:
        """Take note that the dispatcher has a batch back."""
        self._dispatcher.ended(batch, now_s)
        variant = self._names.index(batch.name)
        for request in batch.requests:
            self._done_s[request.payload] = now_s
            self._served_by[request.payload] = variant
            if request.told is not None:
                self._promised_s[request.payload] = request.told.told_s
        self._switches += self._last not in (None, variant)
        self._last = variant

    def _lead(self, now_s: float) -> None:
        """Have the alias lead elsewhere, if it is time."""
        if self._leads is not None and now_s >= self._leads[0]:
            self._variant, self._leads = self._leads[1], None

    def _come(self, now_s: float, at: int) -> None:
        """Have a request come to where the alias leads."""
        self._lead(now_s)
        if self._variant is None:
            rows = self._rows_of(at)
            self._dispatcher.come(now_s, rows, None, at)
            self._came_rows += rows
        else:
            queue, most = self._queues[self._variant], self._dispatcher.plan.most_waiting
            if most is None or len(queue) < most:  # else it is refused
                queue.append((now_s, at))
                self._promised_s[at] = self._alias_told_s

    def _begin(self, now_s: float) -> None:
        """Begin a batch of the variant at whose queue somebody waits for longest, as Triton does.

        With as many as fit; two variants' batches are executed one after the other.
        """
        waiting = [v for v, queue in enumerate(self._queues) if queue]
        variant = min(waiting, key=lambda v: self._queues[v][0])
        queue, most = self._queues[variant], self._server.variants[variant].max_batch
        timeout_s = self._dispatcher.plan.timeout_s
        while timeout_s is not None and queue and now_s - queue[0][0] > timeout_s:
            queue.popleft()  # refused: never answered
        if not queue:
            return
        found = [queue.popleft()]
        rows = self._rows_of(found[0][1])
        while queue and rows + self._rows_of(queue[0][1]) <= most:
            found.append(queue.popleft())
            rows += self._rows_of(found[-1][1])
        waited_s = sum(now_s - came_s for came_s, _ in found)
        ends_s = self._execute(variant, rows, now_s, len(found), waited_s)
        self._done_s[[at for _, at in found]] = ends_s
        self._served_by[[at for _, at in found]] = variant

    def _execute(
        self, variant: int, rows: int, comes_s: float, requests: int = 1, waited_s: float = 0.0
    ) -> float:
        """Return when the device has executed a batch that comes there then.

        Args:
            variant: that executes it.
            rows: of the batch.
            comes_s: when.
            requests: that Triton counts: the dispatcher's batch is one.
            waited_s: these, all together, in the variant's queue.
        """
        began_s = max(comes_s, self._free_s)
        factor = noise_factor(self._given, self._seed, self._batches)
        factor *= self._server.physics.slowdown_at(began_s)
        self._batches += 1
        took_s = self._server.variants[variant].service_s(rows) * factor
        self._free_s = began_s + took_s
        batch = _Executed(self._free_s, variant, rows, took_s, requests, waited_s)
        self._executing.append(batch)
        return self._free_s

    # -- the governor --------------------------------------------------------------------------

    def _look(self, now_s: float) -> float:
        """Let the governor look; return the real seconds that took."""
        self._lead(now_s)
        core, observation = self._core, self._observe(now_s)
        if self._later and now_s >= self._later[0][0]:
            core.set_policy(self._later.popleft()[1])
        began_s = time.perf_counter()
        (decision,) = core.step(observation)
        took_s = time.perf_counter() - began_s
        self._obey(decision, now_s)
        plan = core.late.plans[self._model.name]
        if plan is not None and now_s - self._told_s >= _TOLD_S and plan != self._dispatcher.plan:
            self._dispatcher.set_plan(plan)
            self._told_s, self._governed = now_s, True
        for probe in core.probes(observation):
            variant = self._names.index(probe.model)
            rows = min(probe.rows, self._server.variants[variant].max_batch)
            ends_s = self._execute(variant, rows, now_s)
            self._probes.append((ends_s, ProbeDone(probe.model, rows)))
            core.probe_spent(self._server.variants[variant].service_s(rows), now_s)
        return took_s

    def _obey(self, decision: Decision, now_s: float) -> None:
        """Have the alias lead where it is to lead."""
        told = {one.variant: one.told_p99_s for one in decision.candidates}
        self._alias_told_s = told.get(decision.target or "", math.nan)
        if not decision.changes or decision.target is None or self._leads is not None:
            return
        names = [variant.name for variant in self._model.variants]
        target = None if decision.target == DISPATCHER else names.index(decision.target)
        self._leads = (now_s + self._server.physics.switch_s, target)
        self._switches += 1

    def _observe(self, now_s: float) -> Observation:
        name, own = self._model.name, self._dispatcher
        window_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        before = self._seen
        self._seen = own.arrived, self._came_rows, own.completed, own.in_time
        came, came_rows, completed, in_time = (
            now - then for now, then in zip(self._seen, before, strict=True)
        )
        readings = {
            model: VariantReading(model, ready=True, pending_requests=len(queue))
            for model, queue in zip(self._names, self._queues, strict=True)
        }
        ended = defaultdict(list)
        while self._executing and self._executing[0].ends_s <= now_s:
            batch = self._executing.popleft()
            ended[self._names[batch.variant]].append(batch)
            self._unpolled.append(batch)
            self._busy_s += batch.took_s
        for model, batches in ended.items():
            readings[model] = replace(
                readings[model],
                completed_requests=sum(batch.requests for batch in batches),
                completed_rows=sum(batch.rows for batch in batches),
                executions=len(batches),
                compute_s=sum(batch.requests * batch.took_s for batch in batches),
                queue_s=sum(batch.waited_s for batch in batches),
            )
        serving = DISPATCHER if self._variant is None else self._names[self._variant]
        used = None if window_s <= 0.0 else min((self._busy_s - self._used_s) / window_s, 1.0)
        self._used_s = self._busy_s
        self._looked_s, self._sequence = now_s, self._sequence + 1
        done = tuple(probe for ends_s, probe in self._probes if ends_s <= now_s)
        self._probes = [one for one in self._probes if one[0] > now_s]
        return Observation(
            now_s=now_s,
            sequence=self._sequence,
            models={name: ModelReading(name, serving, 0.0, ready=True)},
            variants=readings,
            window_s=window_s,
            readings_age_s=0.0,
            gpus=(GpuReading(0, None, "simulated", utilization_ratio=used),),
            host=HostReading(),
            batch_samples=self._samples(now_s),
            probes=done,
            dispatched={
                name: Dispatched(
                    DISPATCHER,
                    healthy=self._governed,
                    arrived_requests=came,
                    arrived_rows=came_rows,
                    waiting_requests=own.waiting,
                    ended_requests=completed,
                    late_requests=completed - in_time,
                    quality=self._worth(),
                    told_s=own.promise.last_s,
                )
            },
        )

    def _worth(self) -> float | None:
        """Return the mean quality of what the dispatcher answered."""
        served = self._dispatcher.served
        of = zip(self._names, self._model.variants, strict=True)
        worth = sum(served.get(name, 0) * variant.quality for name, variant in of)
        return worth / self._dispatcher.completed if self._dispatcher.completed else None

    def _samples(self, now_s: float) -> tuple[BatchSample, ...]:
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
