"""Jellyfish+ (Nigade et al., RTSS 2022, as RAMSIS compares with it).

The most accurate variant with some batch b whose latency is at most half the objective and whose
throughput b / latency is at least 1.05 times the load of the last second.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import Setting, View

_MARGIN: Final = 1.05


class Jellyfish:
    """Looks at the load every `tick_s`."""

    idealised = False

    def __init__(self, setting: Setting, *, tick_s: float = 1.0) -> None:
        self.tick_s = tick_s
        self._order = setting.by_quality()
        self._capacity_rps = [v.capacity_rps(setting.limit_s) for v in setting.variants]
        self._fastest = setting.fastest()
        self._arrived = 0

    def choose(self, view: View) -> int | None:
        """Return the best variant that bears the load of the last interval."""
        load_rps = (view.arrived - self._arrived) / self.tick_s
        self._arrived = view.arrived
        for variant in self._order:
            if self._capacity_rps[variant] >= _MARGIN * load_rps:
                return variant
        return self._fastest
