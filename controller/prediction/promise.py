"""What is told of a request's latency: a percentile that is true of requests, whatever happens.

Owns how far a stated quantile is stretched before people are told of it. It must not decide.

The calibrations (`calibration.py`) serve the choice: they forget soon, look at one variant each,
and a burst that nobody could foresee must not rule a variant out for long. What is told must be
true of 99 % of *requests* instead, of those of bursts as well. So it has a factor of its own, one
for each model.

Method: quantile tracking (Angelopoulos, Candès & Tibshirani 2023): each request that was late moves
the factor's logarithm up by gain (1 - allowed), each that was not down by gain (allowed). As long
as the factor does not meet its bounds, the share of late requests tends to what is allowed, for
any load, if all are counted one by one. They are not: of most the mean of a tick is known, of some
(traces) their own latency. The mean tells at once how many were late, by how requests of a tick
usually spread about it (`spread.py`). Single ones are too few to steer by (at eight a second the
share of a minute that is late is known to a half of itself), so they say in the long run by how
much the means are wrong (a difference estimator, Cochran 1977), and are believed to three fifths
at most: where means never showed anybody late, two thirds more than allowed would be. Without
traces it is only as true as the means are. Where batches are large the steps are smaller, as all of
a batch are late together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.calibration import Outcome

Floats = NDArray[np.float64]
_Numbers = float | Floats

_COUNTED: Final = 1000  # single requests, for the coverage
_ENOUGH: Final = 20
_GAIN: Final = 0.012  # of the logarithm, for each request
_BATCH: Final = 16.0  # requests that complete together: with more of them it is less
_BATCH_LEARNED: Final = 0.02
_FIRST: Final = 0.1  # logarithm, as long as nothing was seen
_LOWEST: Final = math.log(0.6)
_HIGHEST: Final = math.log(6.0)
# Of what is stated: an offset that is taken off must not leave nothing, which teaches nothing. No
# more than it takes for that: while it is told, a smaller factor tells the same.
_LEAST: Final = 0.2
# How wrong the means are is half believed after so many single requests, and known of as many as
# these, the last ones: what was wrong an hour ago says nothing of now.
_DOUBT: Final = 2000.0
_KNOWN: Final = 3000.0
_MOST_WRONG: Final = (-1.0, 3.0)  # of what is allowed
# Once fewer than allowed of so many are late, that is believed less: the trouble is over.
_RECENT: Final = 400.0
_WEIGHT: Final = 5.0  # of a single request, at most: it speaks for those since the last one
_USUAL: Final = 20.0  # requests between two single ones, until it is known
_USUAL_LEARNED: Final = 0.02


class Promise:
    """Keeps what is told of one model's requests true of the share that the objective names."""

    def __init__(self, miss_ratio: float, offset_s: float) -> None:
        self._allowed = miss_ratio
        self._offset_s = offset_s
        self._log_factor = _FIRST
        self._batch = 1.0
        self._since = 0.0  # requests that completed since the last single one
        self._usual = _USUAL
        self._foretold = 0.0  # of those since the last single one: late, by their means
        # Of single requests, each by the number that it speaks for over the usual one.
        self._singles = 0.0
        self._late = 0.0
        self._by_means = 0.0  # that would have been late by the means
        self._recent = miss_ratio  # share of the last ones that was late
        self._kept: deque[bool] = deque(maxlen=_COUNTED)
        self.singles = 0  # requests that were compared one by one with what was told, ever
        self.singles_kept = 0  # of these, within it

    @property
    def factor(self) -> float:
        """Return what a stated quantile and the offset together are multiplied by."""
        return math.exp(self._log_factor)

    @property
    def coverage(self) -> float | None:
        """Return the share of recent single requests within what was told; None: too few."""
        return sum(self._kept) / len(self._kept) if len(self._kept) >= _ENOUGH else None

    def told_s(self, stated_s: float) -> float:
        """Return what to tell where so much is stated."""
        return float(told_s(stated_s, self.factor, self._offset_s))

    def completed(self, requests: int) -> None:
        """Count requests that completed, whether or not an outcome is known of them."""
        self._since += requests

    def sampled(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from single requests, which speak for all since the last ones.

        They come one by one or in bodies, as Triton hands its traces over.
        """
        usable = [outcome for outcome in outcomes if _is_usable(outcome)]
        missed = [outcome.latency_s > outcome.told_s for outcome in usable]
        self._kept.extend(not late for late in missed)
        self.singles += len(missed)
        self.singles_kept += len(missed) - sum(missed)
        late = [late for late, outcome in zip(missed, usable, strict=True) if outcome.teaches]
        if not late:
            return
        since = max(self._since, 1.0)
        each = since / len(late)
        self._usual += _USUAL_LEARNED * (each - self._usual)
        self._recent += min(len(late) / _RECENT, 1.0) * (sum(late) / len(late) - self._recent)
        weight = len(late) * min(each / self._usual, _WEIGHT)
        keep = max(1.0 - weight / _KNOWN, 0.0)
        self._singles = self._singles * keep + weight
        self._late = self._late * keep + weight * sum(late) / len(late)
        self._by_means = self._by_means * keep + weight * min(self._foretold / since, 1.0)
        self._since = self._foretold = 0.0

    def averaged(self, outcome: Outcome, late: float) -> None:
        """Learn from requests that completed together.

        Args:
            outcome: of their mean.
            late: share of them that took longer than was told, as it seems.
        """
        if not _is_usable(outcome):
            return
        if outcome.teaches:
            self._foretold += outcome.requests * late
            self._batch += _BATCH_LEARNED * (outcome.requests - self._batch)
            gain = _GAIN * _BATCH / max(_BATCH, self._batch)
            moved = gain * outcome.requests * (late + self._wrong() - self._allowed)
            self._log_factor = min(max(self._log_factor + moved, _LOWEST), _HIGHEST)

    def _wrong(self) -> float:
        """Return by which share of all requests more are late than their means say."""
        wrong = (self._late - self._by_means) / (self._singles + _DOUBT)
        if wrong > 0.0:
            wrong *= min(self._recent / self._allowed, 1.0)
        least, most = _MOST_WRONG
        return min(max(wrong, least * self._allowed), most * self._allowed)

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        return {
            "log_factor": round(self._log_factor, 6),
            "offset_s": self._offset_s,
            "allowed": self._allowed,
            "singles": [round(self._singles, 3), round(self._late, 4), round(self._by_means, 4)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError if it is not."""
        log_factor = float(state["log_factor"])
        if not _LOWEST <= log_factor <= _HIGHEST:
            raise ValueError("promise out of range")
        # A governor of before knew the means alone.
        singles, late, by_means = map(float, state.get("singles", (0.0, 0.0, 0.0)))
        if not (0.0 <= singles <= _KNOWN and 0.0 <= late <= _KNOWN and 0.0 <= by_means <= _KNOWN):
            raise ValueError("what is known of single requests is out of range")
        about = (float(state["offset_s"]), float(state["allowed"]))
        if all(map(math.isclose, about, (self._offset_s, self._allowed))):
            self._log_factor = log_factor  # else it is about another objective
            self._singles, self._late, self._by_means = singles, late, by_means


def told_s(stated_s: _Numbers, factor: _Numbers, offset_s: _Numbers) -> Floats:
    """Return what promises of these factors tell where so much is stated."""
    return np.maximum(stated_s * factor + (factor - 1.0) * offset_s, _LEAST * stated_s)


def _is_usable(outcome: Outcome) -> bool:
    return outcome.told_s > 0.0 and 0.0 < outcome.latency_s < math.inf
