"""Probing: which synthetic requests would teach the most, when there is time for them.

Owns the choice of probes within the policy's budget. It must not send anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.policy.model import ModelPolicy, Policy, ProbingPolicy, VariantPolicy
from controller.telemetry.observation import Observation

MAX_PROBED: Final = 64  # rows
_WANTED: Final = 3  # batches of a size
_KNOWN: Final = 2.0  # batches of a variant: with fewer it cannot serve (`ServiceTimes.known`)
_TRIES: Final = 6  # probes of a variant that is not known by then: it waits like the others
_WHILE_LOADING: Final = 1  # the same, beside a load: it disturbs, so the others can wait
_IDLE_AFTER_S: Final = 0.2  # without a queue
_RETRY_S: Final = 2.0
_SETTLED_S: Final = 30.0  # since the last probe
_LOOK_AGAIN_S: Final = 0.5  # where nothing was to be sent; statistics come as often
# A busy service is never idle: after so long without a chance, a moment will do in which
# little waits.
_PATIENCE_S: Final = 1.0
# The same for a variant that nobody has measured and a dispatcher waits for, which needs no more
# of it than what two batches take. An alias that is led to it with as little goes there too soon.
_LATE_PATIENCE_S: Final = 0.1
_LITTLE: Final = 0.1  # of the shortest objective
_SHORT: Final = 0.25  # of the same: what a probe of several rows may take then
# Of a model's objective, that a full batch may be expected to take to be worth a probe. Whoever
# comes during a longer one is late, and of two longer ones the second never is in time.
_LONGEST: Final = 0.5
_DOUBLED: Final = 0.9  # of that: who takes as much may be asked with twice the rows


@dataclass(frozen=True, slots=True)
class Probe:
    """A synthetic request for a variant nobody has measured at that size."""

    model: str  # Triton's name
    rows: int


class ProbePlan:
    """Spends idle moments on what is unknown, and lesser ones where none comes."""

    def __init__(self, policy: ProbingPolicy) -> None:
        self._policy = policy
        self._asked: dict[Probe, tuple[int, float]] = {}
        self._sent: dict[str, int] = {}  # probes, by Triton's name
        self._sent_s = math.inf  # the last one, or when the first was wanted
        self._quiet_since_s: float | None = None
        self._wanted_since_s: float | None = None
        self._allowed_at_s = 0.0
        self._look_at_s = -math.inf  # nothing was wanted: when to see whether that is so still

    def set_policy(self, policy: ProbingPolicy) -> None:
        """Follow a new policy."""
        self._policy = policy

    def is_done(self, now_s: float) -> bool:
        """Return whether nothing was to be sent when it was looked at last, a moment ago."""
        return not self._policy.enabled or now_s <= self._look_at_s + _LOOK_AGAIN_S

    def next(
        self,
        observation: Observation,
        policy: Policy,
        samples: NDArray[np.float64],
        models: tuple[str, ...],
        table_s: NDArray[np.float64],
        work_s: float,
    ) -> tuple[Probe, ...]:
        """Return at most one probe for this tick.

        Args:
            observation: the world now.
            policy: the models and their variants.
            samples: batches that were measured. [models, rows 1..max].
            models: Triton's names, in the order of `samples`.
            table_s: what batches are expected to take. [models, rows 1..max].
            work_s: seconds of work that wait now.
        """
        now_s = observation.now_s
        queued = any((v.pending_requests or 0) > 0 for v in observation.variants.values())
        # A dispatcher's requests hardly ever wait when it is looked at. It is busy all the same.
        queued = queued or any(
            late.waiting_requests or late.arrived_requests
            for late in observation.dispatched.values()
        )
        if queued:
            self._quiet_since_s = None
        elif self._quiet_since_s is None:
            self._quiet_since_s = now_s
        if not self._policy.enabled or now_s < max(self._allowed_at_s, self._look_at_s):
            return ()
        wanted = self._wanted(observation, policy, samples, models, table_s)
        if not wanted:
            self._wanted_since_s = None
            self._look_at_s = now_s + _LOOK_AGAIN_S  # as at nearly every tick
            return ()
        self._look_at_s = -math.inf
        if self._wanted_since_s is None:
            self._wanted_since_s = now_s
        self._sent_s = min(self._sent_s, now_s)
        if self._quiet_since_s is None or now_s - self._quiet_since_s < _IDLE_AFTER_S:
            wanted = self._beside_work(policy, wanted, samples, models, table_s, work_s, now_s)
            if not wanted:
                return ()
        probe = wanted[0]
        self._sent[probe.model] = self._sent.get(probe.model, 0) + 1
        count, _ = self._asked.get(probe, (0, 0.0))
        self._asked[probe] = (count % (_WANTED + 1) + 1, now_s)
        self._wanted_since_s = self._sent_s = now_s
        return (probe,)

    def _beside_work(
        self,
        policy: Policy,
        wanted: list[Probe],
        samples: NDArray[np.float64],
        models: tuple[str, ...],
        table_s: NDArray[np.float64],
        work_s: float,
        now_s: float,
    ) -> list[Probe]:
        """Return which of the wanted may go out now although it is not calm."""
        shortest_s = min(model.objective.latency_s for model in policy.models)
        strange = self._strange(policy, wanted, samples, models, table_s)
        short = strange or [
            probe
            for probe in wanted
            # Of a variant nobody has measured the time can only be found out.
            if samples[models.index(probe.model)].sum() == 0.0
            or table_s[models.index(probe.model), probe.rows - 1] <= _SHORT * shortest_s
        ]
        if not short:
            # The others have to wait for calm. As long as much is new that is looked for often.
            if now_s - self._sent_s >= _SETTLED_S:
                self._look_at_s = now_s + _LOOK_AGAIN_S
            return []
        if self._wanted_since_s is None or work_s > _LITTLE * shortest_s:
            return []
        waited_s = now_s - self._wanted_since_s
        if waited_s >= _PATIENCE_S:
            return short
        return strange if waited_s >= _LATE_PATIENCE_S else []

    def _strange(
        self,
        policy: Policy,
        wanted: list[Probe],
        samples: NDArray[np.float64],
        models: tuple[str, ...],
        table_s: NDArray[np.float64],
    ) -> list[Probe]:
        """Return the smallest batch of each variant that a dispatcher cannot use, as it is unknown.

        Its time can only be found out, and soon. Not of one whose first batch was too slow to be in
        time ever, nor of one that has had some probes and answers none.
        """
        limits_s = {
            v.model: m.objective.latency_s
            for m in policy.models
            if m.dispatcher
            for v in m.variants
        }
        found: dict[str, Probe] = {}
        for probe in wanted:
            if probe.model not in limits_s:
                continue
            row = models.index(probe.model)
            batches = samples[row].sum()
            if batches >= _KNOWN or self._sent.get(probe.model, 0) >= _TRIES:
                continue
            if batches > 0.0 and table_s[row, probe.rows - 1] > limits_s[probe.model]:
                continue
            if probe.model not in found or probe.rows < found[probe.model].rows:
                found[probe.model] = probe
        return list(found.values())

    def spent(self, service_s: float, now_s: float) -> None:
        """Take note of what a probe took, so that the budget holds."""
        rest_s = service_s / max(self._policy.max_busy_ratio, 1e-3)
        self._allowed_at_s = max(self._allowed_at_s, now_s + rest_s)

    def _wanted(
        self,
        observation: Observation,
        policy: Policy,
        samples: NDArray[np.float64],
        models: tuple[str, ...],
        table_s: NDArray[np.float64],
    ) -> list[Probe]:
        """Return what may be asked: what was measured least first, of that the smallest batches."""
        found: list[tuple[float, int, Probe]] = []
        enough = _WHILE_LOADING if observation.operations else _WANTED
        for model_policy in policy.models:
            reading = observation.models.get(model_policy.name)
            if reading is not None and (reading.switching or reading.paused or reading.held):
                continue
            if reading is not None and reading.advised and not self._policy.while_advising:
                continue
            for variant in model_policy.variants:
                state = observation.variants.get(variant.model)
                if state is None or state.ready is not True or variant.model not in models:
                    continue
                if not model_policy.lets(variant):
                    continue  # whoever may not serve is left alone
                row = models.index(variant.model)
                times = samples[row]
                sizes = self._sizes(model_policy, variant, times, table_s[row])
                for order, rows in enumerate(sizes):
                    probe, seen = Probe(variant.model, rows), float(times[rows - 1])
                    if seen < enough and self._may_ask(probe, observation.now_s, enough):
                        asked, _ = self._asked.get(probe, (0, 0.0))
                        found.append((max(seen, asked), order, probe))
        return [probe for _, _, probe in sorted(found, key=itemgetter(0, 1))]

    def _may_ask(self, probe: Probe, now_s: float, enough: int) -> bool:
        # Statistics come late: after the wanted number was sent, look before sending more.
        count, last_s = self._asked.get(probe, (0, -np.inf))
        return count < enough or (count == enough == _WANTED) or now_s - last_s >= _RETRY_S

    def _sizes(
        self,
        model: ModelPolicy,
        variant: VariantPolicy,
        times: NDArray[np.float64],
        takes_s: NDArray[np.float64],
    ) -> tuple[int, ...]:
        """Return which batches of a variant would teach something.

        Those that are expected to take too long are halved until they are not. What was not
        measured yet is expected to take nearly as much longer as it has more rows. So one of twice
        the rows of a measured one is asked if it fits in any case.
        """
        sizes = self._batches(model, variant)
        if not times.any():
            return sizes[:1]  # larger ones only when the first is known
        if self._policy.batches or variant.profile_of is not None:
            return sizes  # the operator knows best, and so does who compiled an engine
        longest_s = _LONGEST * model.objective.latency_s
        seen = np.flatnonzero((times > 0.0) & (takes_s <= _DOUBLED * longest_s)) + 1
        known = 2 * int(seen.max(initial=0))
        short = []
        for size in sizes:
            rows = size
            while rows > max(known, 1) and takes_s[rows - 1] > longest_s:
                rows //= 2
            short.append(rows)
        return tuple(dict.fromkeys(short))

    def _batches(self, model: ModelPolicy, variant: VariantPolicy) -> tuple[int, ...]:
        # Of a profile its own largest batch tells most: an engine that is compiled for one shape
        # takes as long for a single row.
        most = max(model.client_max_batch, MAX_PROBED)
        full = min(variant.max_batch or model.client_max_batch, most)
        if self._policy.batches:
            return tuple(b for b in self._policy.batches if 1 <= b <= full)
        return tuple(dict.fromkeys((1, round(full**0.5), full)))
