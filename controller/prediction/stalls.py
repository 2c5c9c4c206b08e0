"""Stalls: moments in which the host stood still.

Owns whether the counters were read far later than usual. It must not know what they counted.

A virtual machine that is not given its processors for a few tenths of a second serves nothing,
accepts nothing and reads no counters. What arrived meanwhile looks like a low rate, and the
latencies of the requests it caught say nothing of the variant that served them.
"""

from __future__ import annotations

import math
from typing import Final

_TIMES: Final = 5.0  # the usual time between two readings
_SHORTEST_S: Final = 0.1  # what is shorter is over before a variant could be changed
_MEMORY: Final = 50.0  # readings: what stays slow is usual after so many


class StallWatch:
    """Tells a stall from readings that are always slow."""

    def __init__(self) -> None:
        self._usual_s = 0.0

    def look(self, window_s: float, tick_s: float) -> bool:
        """Return whether the host stood still within the window of the newest reading.

        Args:
            window_s: the time between it and the one before; 0: there is no new one.
            tick_s: what it is meant to be.
        """
        if not 0.0 < window_s < math.inf:
            return False
        usual_s = max(self._usual_s, tick_s)
        self._usual_s = usual_s + (min(window_s, 2.0 * usual_s) - usual_s) / _MEMORY
        return window_s > max(_TIMES * usual_s, _SHORTEST_S)
