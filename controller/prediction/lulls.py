"""Lulls: whether there is one, how soon such end, and what load comes back.

Owns what is learned of one model's pauses. It must not decide.

A forecast from what came in the last moments knows nothing of a load that pauses and comes back as
a step, as that of many users who wait for each other's answers does. So it is counted how many
lulls ended, and in how much time spent in one: their end is taken for a Poisson process.
"""

from __future__ import annotations

import math
from typing import Final

# Memory of the present rate: so long, or until so many requests usually came.
_NOW_S: Final = 0.1
_NOW_REQUESTS: Final = 10.0
_NOW_MOST_S: Final = 2.0
_LATELY_S: Final = 20.0  # of the usual one
_MEMORY_S: Final = 120.0  # of the lulls
# Of the usual rate: below the one a lull begins, above the other it has ended.
_LOW: Final = 0.4
_BACK: Final = 0.6
# What is known before the first lull: as if half of one had ended in two seconds.
_PRIOR_ENDS: Final = 0.5
_PRIOR_S: Final = 2.0


class Lulls:
    """Follows the rate of one model's requests."""

    def __init__(self) -> None:
        self.is_in_one = False
        self.usual_rps = 0.0  # at which a request came lately, in the mean of requests
        self._rate_rps = 0.0
        self._requests = 0.0  # that it is the mean of
        self._ends, self._in_one_s = _PRIOR_ENDS, _PRIOR_S

    @property
    def ends_per_s(self) -> float:
        """Return how many lulls end in a second of one."""
        return self._ends / self._in_one_s

    @property
    def is_usual(self) -> bool:
        """Return whether about as much comes as usual, or more."""
        return self._rate_rps > _BACK * self.usual_rps

    def observe(self, arrived: float, window_s: float) -> None:
        """Take in how many requests came in a window. Negative: too many were counted before."""
        if window_s <= 0.0 or not math.isfinite(arrived):
            return
        count = max(arrived, 0.0)
        memory_s = min(max(_NOW_REQUESTS / max(self.usual_rps, 1.0), _NOW_S), _NOW_MOST_S)
        keep = math.exp(-window_s / memory_s)
        self._rate_rps = self._rate_rps * keep + (1.0 - keep) * count / window_s
        self._requests = self._requests * math.exp(-window_s / _LATELY_S) + count
        if count > 0.0:
            self.usual_rps += count / self._requests * (self._rate_rps - self.usual_rps)
        fade = math.exp(-window_s / _MEMORY_S)
        self._ends = _PRIOR_ENDS + (self._ends - _PRIOR_ENDS) * fade
        self._in_one_s = _PRIOR_S + (self._in_one_s - _PRIOR_S) * fade
        if self.is_in_one:
            self._in_one_s += window_s
            if self.is_usual:
                self._ends += 1.0
                self.is_in_one = False
        elif self._rate_rps < _LOW * self.usual_rps:
            self.is_in_one = True
