"""Jellyfish+ (Nigade et al., RTSS 2022, as RAMSIS compares with it).

The most accurate variant with some batch b whose latency is at most half the objective and whose
throughput b / latency is at least 1.05 times the load of the last second.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import ArrivalRate, Setting, View

_MARGIN: Final = 1.05


class Jellyfish:
    """Looks at the load every `tick_s`."""

    def __init__(self, setting: Setting, *, tick_s: float = 1.0) -> None:
        self.tick_s = tick_s
        self._setting = setting
        self._rate = ArrivalRate()

    def choose(self, view: View) -> int | None:
        """Return the best variant that bears the load of the last interval."""
        wanted_rps = _MARGIN * self._rate.since_last(view)
        capacity_rps = self._setting.capacity_rps
        return self._setting.most_accurate(lambda v: capacity_rps[v] >= wanted_rps)
