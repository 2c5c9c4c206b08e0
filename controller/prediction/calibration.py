"""Calibration: what a variant would do, corrected by what it did lately.

Owns how far a predicted quantile is stretched before it is decided on. It must not predict, nor
say what people are told: `promise.py` does.

Method: adaptive conformal inference (Gibbs & Candès 2021). The score of completed requests is
log((latency + offset) / (predicted quantile + offset)); the factor is the quantile of recent
scores at 1 - alpha(t); alpha(t+1) = alpha(t) + gamma (alpha - miss(t)). Scores fade, and those of
a variant that is not used are dropped: one that a bad moment made infeasible gets no new
outcomes, and would never come back.

Scores come from single requests, where these are known (traces), and from the mean latency of
the requests that completed in a tick, which counts as many: traces are so many a second, however
high the load is, and would have a calm hour speak for a burst. Requests of one tick waited in one
queue, so their mean is near to each; a constant stands for how far the latest of them were off,
and alpha(t) makes up for the rest: it falls by single requests alone, and is brought back, up to
alpha, by many that were in time as well.

The offset is what makes scores of short and long predictions comparable (a normalised score: Lei
et al. 2018). The host's own pauses add milliseconds, whatever was predicted: without it a quantile
of 3 ms that came out as 12 ms would teach that one of 20 ms may come out as 80 ms.

A 99th percentile of twenty scores is their maximum, so a variant that was seen little borrows
the scores of its siblings: one straggler on it would otherwise rule it out for a minute.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_COUNTED: Final = 1000  # single requests, for the coverage
_MEMORY_S: Final = 30.0  # after which a score counts 1/e
_UNUSED_S: Final = 60.0  # after which a variant's scores say nothing of it any more
_RELAX_EVERY_S: Final = 1.0
_JUST_UNDER_S: Final = _RELAX_EVERY_S - 1e-6  # sums of times are rounded
_GAMMA: Final = 0.004
_ENOUGH: Final = 300.0  # outcomes; with fewer of its own, a variant borrows its siblings'
_PRIOR: Final = 200.0  # outcomes of score 0 ("the model is right") as far as there are no others
# What the mean of a tick's requests lacks in spread. The 99th percentile of single requests' scores
# was 1.11 times that of the means (docs/measurements.md).
_WITHIN: Final = math.log(1.1)
_LOWEST: Final = math.log(0.4)
_LEAST: Final = math.exp(_LOWEST)  # of a prediction
# Rollouts of a machine that is known are not as wrong as that: what came out even later is a burst
# that nobody foresaw, which must not rule variants out (but `promise.py` tells of it).
_HIGHEST: Final = math.log(2.2)
# Scores are kept as a histogram of log ratios, one bin of it centred on 0.
_STEP: Final = 0.02
_ZERO: Final = 80
_BINS: Final = 201
_TINY: Final = 1e-300
_TAIL: Final = 0.5  # an outcome: less of one, faded, is not the highest that was seen

Floats = NDArray[np.float64]
_Numbers = float | Floats


class Outcome(NamedTuple):
    """Completed requests and what was stated of them when they arrived."""

    latency_s: float  # their mean
    raw_s: float  # predicted quantile before calibration
    stated_s: float  # after
    told_s: float = 0.0  # what people were told; see promise.py
    requests: int = 1
    teaches: bool = True  # False: it is counted in the coverage, and that is all


class ConformalCalibration:
    """Keeps one stated quantile honest."""

    def __init__(self, miss_ratio: float, offset_s: float = 0.0, *, phase_s: float = 0.0) -> None:
        """`phase_s` keeps many of them from forgetting in the same tick."""
        self._phase_s = phase_s
        self._target = miss_ratio
        self._offset_s = offset_s
        self._alpha = miss_ratio
        self._weights = np.zeros(_BINS)  # requests, by score
        self._support = 0.0  # outcomes that they came from
        self._used_s: float | None = None
        self._relaxed_s: float | None = None
        self._covered: deque[bool] = deque()  # the last _COUNTED
        self._hits = 0  # of these
        self._log_factor: float | None = 0.0  # None: to be found anew
        self._factor = 1.0  # of this logarithm, once it is known
        self._siblings: tuple[ConformalCalibration, ...] = ()

    def borrow_from(self, siblings: Iterable[ConformalCalibration]) -> None:
        """Name the calibrations of the same model's other variants."""
        self._siblings = tuple(other for other in siblings if other is not self)
        self._log_factor = None

    @property
    def factor(self) -> float:
        """Return what a predicted quantile and the offset together must be multiplied by."""
        return factors([self])[0]

    def stated_s(self, raw_s: float) -> float:
        """Return what to state where `raw_s` is predicted. Never falls as `raw_s` grows."""
        return float(stated_s(raw_s, self.factor, self._offset_s))

    def raw_limit_s(self, limit_s: float) -> float:
        """Return the largest predicted quantile that is stated as no more than a limit; 0: none."""
        return float(raw_limit_s(limit_s, self.factor, self._offset_s))

    @property
    def coverage(self) -> float | None:
        """Return the share of recent single requests within what was stated; None: too few."""
        if len(self._covered) < 20:
            return None
        return self._hits / len(self._covered)

    @property
    def support(self) -> float:
        """Return how many outcomes are remembered, those of long ago for less."""
        return self._support

    @property
    def observed(self) -> int:
        """Return how many single requests the coverage counts."""
        return len(self._covered)

    def observe(self, outcomes: Iterable[Outcome], now_s: float) -> None:
        """Learn from completed requests."""
        for outcome in outcomes:
            if not (outcome.raw_s > 0.0 and outcome.latency_s > 0.0 and outcome.requests > 0):
                continue
            if outcome.teaches:
                self._weights[_bin(self._score(outcome))] += outcome.requests
                self._support += 1.0
                self._used_s = now_s
                self._log_factor = None
            if outcome.requests > 1 and outcome.teaches:
                self._recover(outcome)
            if outcome.requests == 1:
                missed = outcome.latency_s > outcome.stated_s
                self._covered.append(not missed)
                self._hits += not missed
                if len(self._covered) > _COUNTED:
                    self._hits -= self._covered.popleft()
                if not outcome.teaches:
                    continue
                alpha = self._alpha + _GAMMA * (self._target - (1.0 if missed else 0.0))
                # It may leave (0, 1): then the set is everything or nothing; keep it recoverable.
                self._alpha = min(max(alpha, -0.02), 0.5)

    def retract(self, outcome: Outcome) -> None:
        """Forget an outcome that taught something moments ago: it turned out to be explained."""
        at = _bin(self._score(outcome))
        self._weights[at] = max(self._weights[at] - outcome.requests, 0.0)
        self._support = max(self._support - 1.0, 0.0)
        if outcome.requests == 1 and outcome.latency_s > outcome.stated_s:
            self._alpha = min(self._alpha + _GAMMA, max(self._alpha, self._target))
        self._log_factor = None

    def _recover(self, outcome: Outcome) -> None:
        """Let many requests that were clearly in time make up for single ones that were not.

        Single ones are eight to forty a second, however many there are: alone, eight took a minute
        to undo what two seconds of a machine that slows down did.
        """
        in_time = self._score(outcome) <= math.log(
            (outcome.stated_s + self._offset_s) / (outcome.raw_s + self._offset_s)
        )
        if in_time and self._alpha < self._target:
            recovered = self._alpha + _GAMMA * self._target * outcome.requests
            self._alpha = min(recovered, self._target)

    def _score(self, outcome: Outcome) -> float:
        offset_s = self._offset_s
        score = math.log((outcome.latency_s + offset_s) / (outcome.raw_s + offset_s))
        return score if outcome.requests == 1 else score + _WITHIN

    def excuse(self, log_ratio: float) -> None:
        """Forget lateness that has been explained: the machine turned out to be so much slower.

        What is predicted from here on holds that already, and must not be stretched for it again.
        """
        bins = round(log_ratio / _STEP)
        if bins <= 0:
            return
        late = self._weights[_ZERO + 1 :]
        moved = np.zeros_like(late)
        if bins < len(late):
            moved[:-bins] = late[bins:]
        self._weights[_ZERO] += late[:bins].sum()
        self._weights[_ZERO + 1 :] = moved
        self._alpha = max(self._alpha, self._target)
        self._log_factor = None

    def relax(self, now_s: float) -> float:
        """Forget what is old, whether or not there were outcomes; return when to call it again."""
        if self._relaxed_s is None:
            self._relaxed_s = now_s + self._phase_s
            # What was restored has the age of this start, whatever clock it was seen on.
            self._used_s = now_s
        elapsed_s = now_s - self._relaxed_s
        if elapsed_s < _RELAX_EVERY_S:
            return self._relaxed_s + _JUST_UNDER_S
        self._relaxed_s = now_s
        unused_s = math.inf if self._used_s is None else now_s - self._used_s
        keep = math.exp(-elapsed_s / _MEMORY_S) if unused_s <= _UNUSED_S else 0.0
        self._weights *= keep
        self._support *= keep
        if unused_s > _RELAX_EVERY_S:
            self._alpha += (self._target - self._alpha) * (1.0 - math.exp(-elapsed_s / _UNUSED_S))
        self._log_factor = None  # the siblings' scores, too, need to be looked at no more often
        return now_s + _JUST_UNDER_S

    def _weighed(self) -> Floats:
        """Return how many outcomes speak for each score. [bins]. A copy."""
        total = float(self._weights.sum())
        return self._weights * (self._support / total if total > 0.0 else 0.0)

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        return {
            "alpha": self._alpha,
            "offset_s": self._offset_s,
            "scores": self._weighed().round(4).tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError if it is not."""
        alpha = float(state["alpha"])
        scores = np.asarray(state["scores"], dtype=np.float64)
        if scores.shape != (_BINS,) or not np.isfinite(scores).all() or (scores < 0.0).any():
            raise ValueError(f"not {_BINS} weights of scores")
        if not -0.02 <= alpha <= 0.5:
            raise ValueError("calibration out of range")
        if not math.isclose(float(state["offset_s"]), self._offset_s):
            return  # scores about another objective: they say nothing here
        self._alpha = alpha
        self._weights = scores
        self._support = min(float(scores.sum()), _ENOUGH)
        self._log_factor = None


def factors(calibrations: Sequence[ConformalCalibration]) -> list[float]:
    """Return the factor of each: to find many at once takes little longer than one."""
    due = [one for one in calibrations if one._log_factor is None]  # noqa: SLF001 - of this module
    if due:
        _find(list(dict.fromkeys(due)))
    return [one._factor for one in calibrations]  # noqa: SLF001


def _find(due: list[ConformalCalibration]) -> None:
    """Find factors anew."""
    known, lent = dict.fromkeys(due), {}
    for at, one in enumerate(due):
        if one._support < _ENOUGH:  # noqa: SLF001 - of this module
            lenders = [other for other in one._siblings if other._support > 0.0]  # noqa: SLF001
            lent[at] = lenders
            known |= dict.fromkeys(lenders)
    weights = np.array([one._weights for one in known])  # noqa: SLF001
    support = np.array([one._support for one in known])  # noqa: SLF001
    weights *= (support / np.maximum(weights.sum(axis=1), _TINY))[:, None]
    scores = weights[: len(due)]
    if any(lent.values()):
        rows = {one: row for row, one in enumerate(known)}
        scores = scores.copy()
        for at, lenders in lent.items():
            borrowed = sum([other.support for other in lenders])
            for other in lenders:
                share = min((_ENOUGH - due[at].support) / borrowed, 1.0)
                scores[at] += share * weights[rows[other]]
    scores[:, _ZERO] += np.maximum(_PRIOR - scores.sum(axis=1), 0.0)
    for one, own, below in zip(due, scores, scores.cumsum(axis=1), strict=True):
        one._log_factor = min(max(_level(own, below, one._alpha), _LOWEST), _HIGHEST)  # noqa: SLF001
        one._factor = math.exp(one._log_factor)  # noqa: SLF001


def _level(scores: Floats, below: Floats, alpha: float) -> float:
    """Return which score is exceeded by a share of alpha; `below`: the sums of them. [bins]."""
    total = float(below[-1])
    if alpha <= 0.0:  # the highest, and more
        return (int(below.searchsorted(total - _TAIL)) - _ZERO) * _STEP - 10.0 * alpha
    # No correction for a finite sample: alpha(t) makes up for it as outcomes come.
    level = (1.0 - alpha) * total
    at = min(int(below.searchsorted(level)), _BINS - 1)
    inside = 1.0 - (float(below[at]) - level) / max(float(scores[at]), 1e-12)
    return (at - _ZERO - 0.5 + min(max(inside, 0.0), 1.0)) * _STEP


def stated_s(raw_s: _Numbers, factor: _Numbers, offset_s: _Numbers) -> Floats:
    """Return what calibrations of these factors state where so much is predicted."""
    return np.maximum((raw_s + offset_s) * factor - offset_s, raw_s * _LEAST)


def raw_limit_s(limit_s: _Numbers, factor: _Numbers, offset_s: _Numbers) -> Floats:
    """Return the largest predictions that they state as no more than a limit; 0: none."""
    stretched_s = (limit_s + offset_s) / factor - offset_s
    return np.maximum(np.minimum(stretched_s, limit_s / _LEAST), 0.0)


def _bin(score: float) -> int:
    return min(max(round(score / _STEP) + _ZERO, 0), _BINS - 1)
