"""Calibration: making "99 % under 80 ms" true 99 % of the time.

Owns how far a predicted quantile is stretched. It must not predict.

Method: adaptive conformal inference (Gibbs & Candès 2021). The score of a completed request is
log((latency + offset) / (predicted quantile + offset)); the factor is the quantile of recent
scores at 1 - alpha(t); alpha(t+1) = alpha(t) + gamma (alpha - miss(t)), updated as requests
complete. Scores also age: a variant that a bad moment made infeasible gets no new outcomes, and
would never come back.

The offset is what makes scores of short and long predictions comparable (a normalised score: Lei
et al. 2018). The host's own pauses add milliseconds, whatever was predicted: without it a quantile
of 3 ms that came out as 12 ms would teach that one of 20 ms may come out as 80 ms.

A 99th percentile of twenty scores is their maximum, so a variant that was seen little borrows
the newest scores of its siblings: one straggler on it would otherwise rule it out for a minute.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

_WINDOW: Final = 1000
_MEMORY_S: Final = 60.0
_RELAX_EVERY_S: Final = 1.0
_GAMMA: Final = 0.004
_KEPT: Final = 300  # scores over a restart
_ENOUGH: Final = 300  # scores; with fewer of its own, a variant borrows its siblings'
_PRIOR: Final = 200  # scores, of 0 ("the model is right") as far as there are no others
_LOWEST: Final = math.log(0.4)
_HIGHEST: Final = math.log(4.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A completed request and what was stated of it when it arrived."""

    latency_s: float
    raw_s: float  # predicted quantile before calibration
    stated_s: float  # after


class ConformalCalibration:
    """Keeps one stated quantile honest."""

    def __init__(self, miss_ratio: float, offset_s: float = 0.0) -> None:
        self._target = miss_ratio
        self._offset_s = offset_s
        self._alpha = miss_ratio
        self._scores: deque[tuple[float, float]] = deque(maxlen=_WINDOW)  # (when, score)
        self._relaxed_s: float | None = None
        self._covered: deque[bool] = deque(maxlen=_WINDOW)
        self._log_factor: float | None = 0.0  # None: to be found anew
        self._siblings: tuple[ConformalCalibration, ...] = ()

    def borrow_from(self, siblings: Iterable[ConformalCalibration]) -> None:
        """Name the calibrations of the same model's other variants."""
        self._siblings = tuple(other for other in siblings if other is not self)
        self._log_factor = None

    @property
    def factor(self) -> float:
        """Return what a predicted quantile and the offset together must be multiplied by."""
        if self._log_factor is None:
            self._log_factor = self._find()
        return math.exp(self._log_factor)

    def stated_s(self, raw_s: float) -> float:
        """Return what to state where `raw_s` is predicted. Never falls as `raw_s` grows."""
        stretched_s = (raw_s + self._offset_s) * self.factor - self._offset_s
        return max(stretched_s, raw_s * math.exp(_LOWEST))

    def raw_limit_s(self, limit_s: float) -> float:
        """Return the largest predicted quantile that is stated as no more than a limit; 0: none."""
        stretched_s = (limit_s + self._offset_s) / self.factor - self._offset_s
        return max(min(stretched_s, limit_s / math.exp(_LOWEST)), 0.0)

    @property
    def coverage(self) -> float | None:
        """Return the share of recent requests within what was stated; None: too few."""
        if len(self._covered) < 20:
            return None
        return sum(self._covered) / len(self._covered)

    @property
    def observed(self) -> int:
        """Return how many requests the coverage counts."""
        return len(self._covered)

    def observe(self, outcomes: Iterable[Outcome], now_s: float) -> None:
        """Learn from completed requests."""
        changed = False
        for outcome in outcomes:
            if not (outcome.raw_s > 0.0 and outcome.latency_s > 0.0):
                continue
            missed = outcome.latency_s > outcome.stated_s
            self._scores.append((now_s, self._score(outcome)))
            self._covered.append(not missed)
            self._alpha += _GAMMA * (self._target - (1.0 if missed else 0.0))
            changed = True
        if changed:
            # alpha may leave (0, 1): then the set is everything or nothing; keep it recoverable.
            self._alpha = min(max(self._alpha, -0.02), 0.5)
            self._renew()

    def _score(self, outcome: Outcome) -> float:
        offset_s = self._offset_s
        return math.log((outcome.latency_s + offset_s) / (outcome.raw_s + offset_s))

    def relax(self, now_s: float) -> None:
        """Forget what is old; to be called at every tick, whether or not there were outcomes."""
        if self._relaxed_s is None:
            self._relaxed_s = now_s
            # What was restored has the age of this start, whatever clock it was seen on.
            self._scores = deque(((now_s, s) for _, s in self._scores), maxlen=_WINDOW)
        elapsed_s = now_s - self._relaxed_s
        if elapsed_s < _RELAX_EVERY_S:
            return
        self._relaxed_s = now_s
        if not self._scores or now_s - self._scores[-1][0] > _RELAX_EVERY_S:  # it is not in use
            self._alpha += (self._target - self._alpha) * (1.0 - math.exp(-elapsed_s / _MEMORY_S))
        old = False
        while self._scores and now_s - self._scores[0][0] > _MEMORY_S:
            self._scores.popleft()
            old = True
        if old:
            self._renew()

    def _renew(self) -> None:
        self._log_factor = None
        for other in self._siblings:
            if len(other._scores) < _ENOUGH:  # noqa: SLF001 - of this class
                other._log_factor = None  # noqa: SLF001

    def _find(self) -> float:
        scores = [score for _, score in self._scores]
        lacking = _ENOUGH - len(scores)
        if lacking > 0:
            scores += self._borrowed(lacking)
        scores += [0.0] * (_PRIOR - len(scores))
        scores.sort()
        if self._alpha <= 0.0:
            value = scores[-1] - 10.0 * self._alpha
        else:
            # No correction for a finite sample: alpha(t) makes up for it as outcomes come.
            at = (1.0 - self._alpha) * (len(scores) - 1)
            low = int(at)
            high = min(low + 1, len(scores) - 1)
            value = scores[low] + (at - low) * (scores[high] - scores[low])
        return min(max(value, _LOWEST), _HIGHEST)

    def _borrowed(self, count: int) -> list[float]:
        """Return the newest scores of all siblings together."""
        newest: list[tuple[float, float]] = []
        for other in self._siblings:
            theirs = other._scores  # noqa: SLF001 - of this class
            newest += islice(reversed(theirs), count)
        newest.sort()
        return [score for _, score in newest[-count:]]

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        newest = list(self._scores)[-_KEPT:]
        return {
            "alpha": self._alpha,
            "offset_s": self._offset_s,
            "scores": [round(score, 4) for _, score in newest],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError if it is not."""
        alpha = float(state["alpha"])
        scores = [float(score) for score in state["scores"]]
        if not (-0.02 <= alpha <= 0.5) or not all(math.isfinite(s) for s in scores):
            raise ValueError("calibration out of range")
        if not math.isclose(float(state.get("offset_s", 0.0)), self._offset_s):
            return  # scores about another objective: they say nothing here
        self._alpha = alpha
        if scores:
            self._scores.extend((0.0, score) for score in scores)
        self._renew()
