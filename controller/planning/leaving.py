"""Whether a dispatcher is left for a while, as a variant alone does better.

Owns what is remembered of how a dispatcher did, and variants in its place. It must not choose the
variant: `controller.planning.choice` did.

A dispatcher takes processor time that variants may need, and a millisecond's way. Where that makes
requests late which the fastest variant would bear easily, an alias that leads to one variant serves
better. So that is tried: where far more of a dispatcher's requests are late than the objective
allows, or more for long, the fastest variant bears the load, and behind the alias it should be
better than what the dispatcher achieves, the alias leads to a variant for half a minute; twice as
long whenever the dispatcher was left again soon. Each time the dispatcher has a fresh start. What
variants achieve in its place is remembered by how much load there was: what was measured under such
a load counts for more than what is predicted of it.

Nobody is judged in an overload, nor until its queue is worked off: requests are late then whoever
serves. Nor is a dispatcher whose batches run all the time, which is late for the load. An overload
that lasts ends the trial, as a dispatcher has more requests in time than an alias; so do a load
that has become far less, and an operator who takes the alias in hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from controller.planning.decision import Candidate, Decision
from controller.policy.model import Objective
from controller.prediction.spread import late_share, mean_of
from controller.telemetry.observation import Dispatched, ModelReading, VariantReading

# Of the dispatcher's requests since it was led to: the last ones, and many.
_LAST, _LAST_S = 500.0, 20.0
_MANY, _MANY_S = 3000.0, 300.0
_FEWEST_LATE: Final = 20.0  # of the last ones, to leave
_MUCH: Final = 3.0  # times as many are late as the objective allows
_MORE: Final = 1.5  # the same, of many
_ENOUGH_OF_MANY: Final = 2000.0
_MARGIN: Final = 0.02  # of quality: so much better must it be
# Of variants' requests, under each load.
_KNOWN, _KNOWN_S = 5000.0, 3600.0
_ENOUGH: Final = 300.0  # of them, to be heard
_SUCH_LOAD: Final = 0.7  # of a rate
# The fastest variant's utilisation, as foreseen of a burst, up to which it is no overload.
_EASY: Final = 1.15
_BUSY: Final = 0.93  # of the last second: a dispatcher that is late with more is so for the load
_BUSY_OVER_S: Final = 1.0
_FEW: Final = 2.0  # requests that wait without a queue
_SETTLES_S: Final = 1.0
_SWITCHES_S: Final = 5.0  # a switch takes less, where it is made at all
_OVERLOAD_S: Final = 2.0
_CALM: Final = 0.5  # of the rate at which it was left: a load that is far less
_CALM_S: Final = 60.0
_AWAY_S: Final = 30.0
_AWAY_MOST_S: Final = 3600.0
_LONG_S: Final = 600.0  # a dispatcher that was not left for so long begins anew


class Record:
    """What became of the last requests."""

    def __init__(self, memory: float, memory_s: float) -> None:
        self._memory, self._memory_s = memory, memory_s
        self._seen_s: float | None = None
        self.requests = self.late = self.worth = 0.0

    def add(self, now_s: float, requests: float, late: float, quality: float) -> None:
        """Take in requests that ended, how many of them were late, and what an answer is worth."""
        elapsed_s = 0.0 if self._seen_s is None else now_s - self._seen_s
        keep = math.exp(-requests / self._memory - elapsed_s / self._memory_s)
        self._seen_s = now_s
        self.requests = self.requests * keep + requests
        self.late = self.late * keep + late
        self.worth = self.worth * keep + quality * (requests - late)

    @property
    def achieved(self) -> float:
        """Return the quality of a request on the mean; none of one that was late."""
        return self.worth / self.requests


class ByLoad:
    """What became of requests, by how many came a second."""

    def __init__(self) -> None:
        self._of: dict[int, Record] = {}  # by the rate, in powers of the root of two

    def add(self, now_s: float, rate_rps: float, requests: float, late: float, q: float) -> None:
        """Take in what ended, under a load."""
        record = self._of.setdefault(_band(rate_rps), Record(_KNOWN, _KNOWN_S))
        record.add(now_s, requests, late, q)

    def achieved(self, rate_rps: float) -> float | None:
        """Return the effective quality under such a load or more; None: too little is known."""
        least = _band(_SUCH_LOAD * rate_rps)
        such = [record for band, record in self._of.items() if band >= least]
        requests = sum(record.requests for record in such)
        return sum(r.worth for r in such) / requests if requests >= _ENOUGH else None


class Leaving:
    """Whether one model's dispatcher is left, and until when."""

    def __init__(self) -> None:
        self._begin_anew()
        self._instead = ByLoad()  # what variants do in its place
        self._achieved = self._rate_rps = 0.0  # by the dispatcher, when it was left
        self._judges_s = -math.inf  # not before
        self._busy_s = self._over_s = 0.0  # batches ran for so long, of so long
        self._looked_s: float | None = None
        self._busy_until_s = -math.inf  # who is late was so for the load, until then
        self._is_behind = False  # who came in an overload may be waiting still
        self._hard_s: float | None = None  # since then there has been an overload
        self._calm_s: float | None = None  # since then far less has come than when it was left
        self._is_left = self._is_away = False  # it is to be; a variant serves
        self._left_s = self._until_s = -math.inf
        self._times = 0  # in a row
        self._was_served_out = True  # the last trial took as long as it was meant to

    def away_s(self, now_s: float) -> float | None:
        """Return in how many seconds it is tried again; None: it is not left."""
        return max(self._until_s - now_s, 0.0) if self._is_left else None

    def look(
        self,
        late: Dispatched,
        reading: ModelReading,
        readings: Mapping[str, VariantReading],
        decision: Decision,
        objective: Objective,
        *,
        stalled: bool,
    ) -> bool:
        """Take in what became of requests; return whether a variant is to serve.

        Args:
            late: what the dispatcher did.
            reading: of the model.
            readings: of all variants.
            decision: as it is without a dispatcher.
            objective: of the model.
            stalled: whether the host stood still just now.
        """
        now_s = decision.now_s
        self._see_busy(now_s, readings, decision.candidates)
        judges = self._may_judge(late, decision, objective.latency_s, stalled=stalled)
        if not reading.is_free:  # nobody follows, or somebody knows better: it is tried at once
            self._is_left = self._is_away = False
            self._begin_anew()
        elif reading.serving == late.model and self._is_left:
            if self._is_away or now_s - self._left_s > _SWITCHES_S:
                self._return(now_s)  # somebody else led the alias back, or nobody leads it away
        elif reading.serving == late.model:
            if self._busy_s > _BUSY * self._over_s:
                self._busy_until_s = now_s + _SETTLES_S
            if judges and now_s >= self._busy_until_s:
                self._hear_own(late, now_s)
                self._consider(decision, objective)
        elif self._is_left:
            self._is_away = True
            if judges:
                self._hear(readings.get(reading.serving or ""), decision, objective.latency_s)
            self._was_served_out = now_s >= self._until_s
            if self._was_served_out or self._is_worse() or self._is_another_load(decision):
                self._return(now_s)
        return self._is_left

    def _see_busy(
        self, now_s: float, readings: Mapping[str, VariantReading], of: Iterable[Candidate]
    ) -> None:
        """Take note of how long batches ran since the last look."""
        if self._looked_s is None:
            self._looked_s = now_s
            return
        elapsed_s = max(now_s - self._looked_s, 0.0)
        keep = math.exp(-elapsed_s / _BUSY_OVER_S)
        own = (readings.get(candidate.model) for candidate in of)
        ran_s = sum(
            one.compute_s / one.completed_requests * one.executions
            for one in own
            if one is not None and one.completed_requests > 0
        )
        self._busy_s = self._busy_s * keep + ran_s
        self._over_s = self._over_s * keep + elapsed_s
        self._looked_s = now_s

    def _may_judge(
        self, late: Dispatched, decision: Decision, limit_s: float, *, stalled: bool
    ) -> bool:
        """Return whether nobody is late for an overload, or a stall of the host."""
        now_s, at_once = decision.now_s, decision.rate_rps * limit_s
        easy = _is_easy(decision.candidates)
        self._hard_s = None if easy else now_s if self._hard_s is None else self._hard_s
        if stalled or not easy:
            self._is_behind, self._judges_s = True, now_s + _SETTLES_S
        elif self._is_behind:
            waiting = max(late.waiting_requests, decision.backlog_requests)
            self._is_behind = waiting > at_once + _FEW
        return not self._is_behind and now_s >= self._judges_s

    def _hear_own(self, late: Dispatched, now_s: float) -> None:
        """Take in what became of requests that came to the dispatcher; who failed is late."""
        ended = late.ended_requests + late.failed_requests
        if ended and late.quality is not None:
            missed = late.late_requests + late.failed_requests
            self._last.add(now_s, ended, missed, late.quality)
            self._many.add(now_s, ended, missed, late.quality)

    def _consider(self, decision: Decision, objective: Objective) -> None:
        """Leave the dispatcher if it is late, and a variant behind the alias should do better."""
        own, allowed = self._last, objective.allowed_miss_ratio
        if own.late < max(_FEWEST_LATE, _MUCH * allowed * own.requests):
            own = self._many
            if own.requests < _ENOUGH_OF_MANY or own.late < _MORE * allowed * own.requests:
                return
        instead = next((c for c in decision.candidates if c.variant == decision.target), None)
        if instead is None or not instead.known:
            return
        worth = self._instead.achieved(decision.rate_rps)
        if worth is None:
            worth = instead.quality * (1.0 - min(instead.miss_ratio, 1.0))
        if worth > own.achieved + _MARGIN * instead.quality:
            self._leave(decision.now_s, decision.rate_rps, own.achieved)

    def _leave(self, now_s: float, rate_rps: float, achieved: float) -> None:
        if now_s - self._until_s > _LONG_S:
            self._times = 0
        elif self._was_served_out:
            self._times += 1
        away_s = min(_AWAY_S * 2.0 ** min(self._times, 10), _AWAY_MOST_S)
        self._is_left, self._left_s, self._until_s = True, now_s, now_s + away_s
        self._judges_s = now_s + _SETTLES_S  # what the dispatcher has yet is worked off beside
        self._achieved, self._rate_rps = achieved, rate_rps
        self._calm_s, self._was_served_out = None, False

    def _hear(self, own: VariantReading | None, decision: Decision, limit_s: float) -> None:
        """Take in what became of requests that came to the variant that serves."""
        if own is None:
            return
        count, failed = own.completed_requests, own.failed_requests
        quality = next((c.quality for c in decision.candidates if c.model == own.model), None)
        if count + failed and quality is not None:
            missed = failed + (count * late_share(mean_of(own), limit_s) if count else 0.0)
            rate_rps = decision.rate_rps
            self._instead.add(decision.now_s, rate_rps, count + failed, missed, quality)

    def _is_worse(self) -> bool:
        """Return whether variants do clearly worse than the dispatcher did under such a load."""
        instead = self._instead.achieved(self._rate_rps)
        return instead is not None and instead < (1.0 - _MARGIN) * self._achieved

    def _is_another_load(self, decision: Decision) -> bool:
        """Return whether the load has for long been one for which it was not left."""
        now_s = decision.now_s
        if decision.rate_rps >= _CALM * self._rate_rps:
            self._calm_s = None
        elif self._calm_s is None:
            self._calm_s = now_s
        calm = self._calm_s is not None and now_s - self._calm_s > _CALM_S
        return calm or (self._hard_s is not None and now_s - self._hard_s > _OVERLOAD_S)

    def _return(self, now_s: float) -> None:
        self._is_left = self._is_away = False
        self._until_s = now_s
        self._judges_s = now_s + _SETTLES_S
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._last, self._many = Record(_LAST, _LAST_S), Record(_MANY, _MANY_S)


def _band(rate_rps: float) -> int:
    return math.floor(2.0 * math.log2(max(rate_rps, 1.0)))


def _is_easy(candidates: Iterable[Candidate]) -> bool:
    """Return whether the fastest variant that may serve bears the load, as far as is foreseen."""
    loads = [c.utilization_ratio for c in candidates if c.known and c.excluded is None]
    return min(loads, default=math.inf) < _EASY
