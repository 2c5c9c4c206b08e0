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
(traces) their own latency. The mean tells at once how many were late if these spread evenly about
it; a single one stands for about all that completed since the one before (after Horvitz & Thompson
1952), and repairs in the long run what that assumption gets wrong. With up to a hundred requests
between traces, half as many again as allowed may be late at worst; with more, or without traces,
it is only as true as the assumption.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

from controller.prediction.calibration import Outcome

_COUNTED: Final = 1000  # single requests, for the coverage
_ENOUGH: Final = 20
_GAIN: Final = 0.001  # of the logarithm, for each request
_FIRST: Final = 0.1  # logarithm, as long as nothing was seen
_LOWEST: Final = math.log(0.6)
_HIGHEST: Final = math.log(6.0)
# Requests of one tick are as much as a third of their mean off it: most of them share one batch,
# and arrived evenly while the one before it was executed.
_SPREAD: Final = 0.33
# For how many requests a single one speaks: twice those since the last one, as it also has to
# repair what their mean said of them; bounded, for its say to be neither nothing nor everything.
_FOR_EACH: Final = 2.0
_LEAST: Final = 30.0
_MOST: Final = 200.0


class Promise:
    """Keeps what is told of one model's requests true of the share that the objective names."""

    def __init__(self, miss_ratio: float, offset_s: float) -> None:
        self._allowed = miss_ratio
        self._offset_s = offset_s
        self._log_factor = _FIRST
        self._since = 0.0  # requests that completed since the last single one
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

    def told_s(self, stated_s: list[float]) -> list[float]:
        """Return what to tell where so much is stated, of each variant."""
        factor, offset_s = self.factor, self._offset_s
        more_s = (factor - 1.0) * offset_s
        return [max(one * factor + more_s, 0.0) for one in stated_s]

    def completed(self, requests: int) -> None:
        """Count requests that completed, whether or not an outcome is known of them."""
        self._since += requests

    def sampled(self, outcome: Outcome) -> None:
        """Learn from a single request, which speaks for all since the last one."""
        if not _is_usable(outcome):
            return
        late = outcome.latency_s > outcome.told_s
        self._kept.append(not late)
        self.singles += 1
        self.singles_kept += not late
        count = min(max(_FOR_EACH * self._since, _LEAST), _MOST)
        if outcome.teaches:
            self._since = 0.0
        self._learn(outcome, count, 1.0 if late else 0.0)

    def averaged(self, outcome: Outcome) -> None:
        """Learn from the mean of requests that completed together."""
        if not _is_usable(outcome):
            return
        self._learn(outcome, outcome.requests, late_share(outcome.latency_s, outcome.told_s))

    def _learn(self, outcome: Outcome, count: float, late: float) -> None:
        if outcome.teaches:
            moved = self._log_factor + _GAIN * count * (late - self._allowed)
            self._log_factor = min(max(moved, _LOWEST), _HIGHEST)

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        return {
            "log_factor": round(self._log_factor, 6),
            "offset_s": self._offset_s,
            "allowed": self._allowed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError if it is not."""
        log_factor = float(state["log_factor"])
        if not _LOWEST <= log_factor <= _HIGHEST:
            raise ValueError("promise out of range")
        about = (float(state["offset_s"]), float(state["allowed"]))
        if all(map(math.isclose, about, (self._offset_s, self._allowed))):
            self._log_factor = log_factor  # else it is about another objective


def late_share(mean_s: float, limit_s: float) -> float:
    """Return the share of requests of one tick that took longer than a limit, by their mean."""
    late = ((1.0 + _SPREAD) * mean_s - limit_s) / (2.0 * _SPREAD * mean_s)
    return min(max(late, 0.0), 1.0)


def _is_usable(outcome: Outcome) -> bool:
    return outcome.told_s > 0.0 and 0.0 < outcome.latency_s < math.inf
