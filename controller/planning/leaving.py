"""Whether a dispatcher is left for a while, as a variant alone does better.

Owns what is remembered of how a dispatcher did, and variants in its place. It must not choose the
variant: `controller.planning.choice` did.

A dispatcher takes processor time that variants may need, and a millisecond's way. Where that makes
requests late which the fastest variant would bear easily, an alias that leads to one variant serves
better. So that is tried: where far more of a dispatcher's requests are late than the objective
allows, or more for long, the fastest variant has time to spare, and behind the alias it should be
better than what the dispatcher achieves, the alias leads to a variant for half a minute; twice as
long whenever the dispatcher was left again soon. What both achieve is remembered by how much load
there was: what was measured under such a load counts for more than what is predicted of it.

Nobody is judged in an overload, nor just after: requests are late then whoever serves, and a
dispatcher has more of them in time than an alias. Nor is one that keeps the objective ever left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from controller.planning.decision import Candidate, Decision
from controller.policy.model import Objective
from controller.prediction.spread import late_share, mean_of
from controller.telemetry.observation import Dispatched, ModelReading, VariantReading

_LATELY: Final = 500.0  # requests
_FEWEST_LATE: Final = 20.0  # of them, to leave
_MUCH: Final = 3.0  # times as many are late as the objective allows
_MORE: Final = 1.5  # the same, of so many requests under such a load
_MANY: Final = 2000.0
_MARGIN: Final = 0.02  # of quality: so much better must it be
_KNOWN: Final = 5000.0  # requests, under each load
_ENOUGH: Final = 300.0  # of them, to be heard
_STALE_S: Final = 3600.0
_SUCH_LOAD: Final = 0.7  # of a rate
_EASY: Final = 1.0  # the fastest variant's utilisation under a load that it bears
_FEW: Final = 2.0  # requests that wait without a queue
_SETTLES_S: Final = 1.0
_AWAY_S: Final = 30.0
_AWAY_MOST_S: Final = 3600.0
_LONG_S: Final = 600.0  # a dispatcher that was not left for so long begins anew


class _Record:
    """What became of the last requests."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.requests = self.late = self.worth = 0.0

    def forget(self, share: float) -> None:
        """Remember only a share of what there was."""
        self.requests *= share
        self.late *= share
        self.worth *= share

    def add(self, requests: float, late: float, quality: float) -> None:
        """Take in requests that ended, how many of them were late, and what an answer is worth."""
        self.forget(math.exp(-requests / self._memory))
        self.requests += requests
        self.late += late
        self.worth += quality * (requests - late)


class _ByLoad:
    """What became of requests, by how many came a second."""

    def __init__(self) -> None:
        self._of: dict[int, _Record] = {}  # by the rate, in powers of the root of two
        self._seen_s: float | None = None

    def add(self, now_s: float, rate_rps: float, requests: float, late: float, q: float) -> None:
        """Take in what ended, under a load."""
        elapsed_s = 0.0 if self._seen_s is None else now_s - self._seen_s
        for record in self._of.values():
            record.forget(math.exp(-elapsed_s / _STALE_S))
        self._seen_s = now_s
        self._of.setdefault(_band(rate_rps), _Record(_KNOWN)).add(requests, late, q)

    def under(self, rate_rps: float) -> _Record:
        """Return what became of all under such a load or more."""
        least, found = _band(_SUCH_LOAD * rate_rps), _Record(_KNOWN)
        for band, record in self._of.items():
            if band >= least:
                found.requests += record.requests
                found.late += record.late
                found.worth += record.worth
        return found

    def achieved(self, rate_rps: float) -> float | None:
        """Return the effective quality under such a load or more; None: too little is known."""
        such = self.under(rate_rps)
        return such.worth / such.requests if such.requests >= _ENOUGH else None


class Leaving:
    """Whether one model's dispatcher is left, and until when."""

    def __init__(self) -> None:
        self._lately = _Record(_LATELY)  # of the dispatcher
        self._own, self._instead = _ByLoad(), _ByLoad()  # the dispatcher's, and variants'
        self._rate_rps = 0.0  # when it was left
        self._judges_s = -math.inf  # not before
        self._is_behind = False  # who came in an overload may be waiting still
        self._left_s = self._until_s = -math.inf
        self._is_left = False
        self._times = 0  # in a row

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
        judges = self._may_judge(late, decision, objective.latency_s, stalled=stalled)
        if reading.serving == late.model:
            if self._is_left and now_s - self._left_s > _SETTLES_S:
                self._return(now_s)  # somebody else led the alias back
            if judges and late.quality is not None and late.ended_requests:
                ended = (late.ended_requests, late.late_requests, late.quality)
                self._lately.add(*ended)
                self._own.add(now_s, decision.rate_rps, *ended)
            if judges and not self._is_left and self._is_late(decision, objective):
                self._consider(decision)
        elif self._is_left:
            if judges:
                self._hear(readings.get(reading.serving or ""), decision, objective.latency_s)
            if now_s >= self._until_s or self._is_worse():
                self._return(now_s)
        return self._is_left

    def _may_judge(
        self, late: Dispatched, decision: Decision, limit_s: float, *, stalled: bool
    ) -> bool:
        """Return whether nobody is late for an overload, or a stall of the host."""
        now_s, at_once = decision.now_s, decision.rate_rps * limit_s
        if stalled or not _is_easy(decision.candidates):
            self._is_behind, self._judges_s = True, now_s + _SETTLES_S
        elif self._is_behind and late.waiting_requests <= at_once + _FEW:
            self._is_behind = False
        return not self._is_behind and now_s >= self._judges_s

    def _is_late(self, decision: Decision, objective: Objective) -> bool:
        lately, allowed = self._lately, objective.allowed_miss_ratio
        if lately.late >= max(_FEWEST_LATE, _MUCH * allowed * lately.requests):
            return True
        such = self._own.under(decision.rate_rps)
        return such.requests >= _MANY and such.late > _MORE * allowed * such.requests

    def _consider(self, decision: Decision) -> None:
        """Leave the dispatcher if a variant behind the alias should do better."""
        rate_rps = decision.rate_rps
        instead = next((c for c in decision.candidates if c.variant == decision.target), None)
        if instead is None or not instead.known:
            return
        worth = self._instead.achieved(rate_rps)
        if worth is None:
            worth = instead.quality * (1.0 - min(instead.miss_ratio, 1.0))
        if worth > self._achieved(rate_rps) + _MARGIN * instead.quality:
            self._leave(decision.now_s, rate_rps)

    def _achieved(self, rate_rps: float) -> float:
        """Return the effective quality of the dispatcher under such a load, or else lately."""
        known = self._own.achieved(rate_rps)
        return self._lately.worth / self._lately.requests if known is None else known

    def _leave(self, now_s: float, rate_rps: float) -> None:
        self._times = 0 if now_s - self._until_s > _LONG_S else self._times + 1
        away_s = min(_AWAY_S * 2.0 ** min(self._times, 10), _AWAY_MOST_S)
        self._is_left, self._left_s, self._until_s = True, now_s, now_s + away_s
        self._judges_s = now_s + _SETTLES_S  # what the dispatcher has yet is worked off beside
        self._rate_rps = rate_rps

    def _hear(self, own: VariantReading | None, decision: Decision, limit_s: float) -> None:
        """Take in what became of requests that came to the variant that serves."""
        if own is None or not own.completed_requests:
            return
        quality = next((c.quality for c in decision.candidates if c.model == own.model), None)
        if quality is not None:
            count = own.completed_requests
            late = count * late_share(mean_of(own), limit_s)
            self._instead.add(decision.now_s, decision.rate_rps, count, late, quality)

    def _is_worse(self) -> bool:
        """Return whether variants do clearly worse than the dispatcher did under such a load."""
        instead, own = self._instead.achieved(self._rate_rps), self._achieved(self._rate_rps)
        return instead is not None and instead < (1.0 - _MARGIN) * own

    def _return(self, now_s: float) -> None:
        self._is_left, self._lately = False, _Record(_LATELY)
        self._until_s = now_s
        self._judges_s = now_s + _SETTLES_S


def _band(rate_rps: float) -> int:
    return math.floor(2.0 * math.log2(max(rate_rps, 1.0)))


def _is_easy(candidates: Iterable[Candidate]) -> bool:
    """Return whether the fastest variant that may serve bears the load with time to spare."""
    loads = [c.utilization_ratio for c in candidates if c.known and c.excluded is None]
    return min(loads, default=math.inf) < _EASY
