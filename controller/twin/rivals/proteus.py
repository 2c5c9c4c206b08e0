"""Proteus (Ahmad et al., ASPLOS 2024), on one GPU.

Every 10 s a mixed integer programme; the demand is an exponentially weighted mean (centre of mass
1.6 s) times a headroom of 1.05, relaxed by 0.1 and then 0.05 when that is infeasible; one variant a
device, in batches below half of the objective. With one device the programme is a search over its
variants. Between solves its adaptive batching would wait until the deadline forces a batch; Triton
cannot do that, and the twin's batcher is used.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import Setting, View

_PERIOD: Final = 10
_COM: Final = 1.6
_HEADROOMS: Final = (1.05, 0.95, 0.90)


class Proteus:
    """Solves every ten seconds, on a rate sampled every second."""

    idealised = False
    tick_s = 1.0

    def __init__(self, setting: Setting) -> None:
        self._order = setting.by_quality()
        self._fastest = setting.fastest()
        self._capacity_rps = [v.capacity_rps(setting.limit_s) for v in setting.variants]
        self._mean_rps: float | None = None
        self._arrived = 0
        self._looks = 0

    def choose(self, view: View) -> int | None:
        """Return the most accurate variant that bears the demand, when it is due."""
        rate_rps = (view.arrived - self._arrived) / self.tick_s
        self._arrived = view.arrived
        if self._mean_rps is None:
            self._mean_rps = rate_rps
        self._mean_rps += 1.0 / (1.0 + _COM) * (rate_rps - self._mean_rps)
        self._looks += 1
        if self._looks % _PERIOD != 1:
            return None
        for headroom in _HEADROOMS:
            for variant in self._order:
                if self._capacity_rps[variant] >= headroom * self._mean_rps:
                    return variant
        return self._fastest
