"""INFaaS (Romero et al., ATC 2021), on one GPU.

Each second: upgrade to a faster variant when the load exceeds what the present one bears; after 20
consecutive seconds in which a more accurate one would have borne the load, downgrade to that.
Replicating needs a second GPU and is left out.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import Setting, View

_CALM_TICKS: Final = 20


class Infaas:
    """Looks every second."""

    idealised = False
    tick_s = 1.0

    def __init__(self, setting: Setting) -> None:
        self._order = setting.by_quality()
        self._capacity_rps = [v.capacity_rps(setting.limit_s) for v in setting.variants]
        self._fastest = setting.fastest()
        self._arrived = 0
        self._calm = 0

    def choose(self, view: View) -> int | None:
        """Return a faster variant at once, a better one after a while."""
        load_rps = (view.arrived - self._arrived) / self.tick_s
        self._arrived = view.arrived
        wanted = next((v for v in self._order if self._capacity_rps[v] >= load_rps), self._fastest)
        if self._capacity_rps[view.serving] < load_rps:
            self._calm = 0
            return wanted
        better = self._order.index(wanted) < self._order.index(view.serving)
        self._calm = self._calm + 1 if better else 0
        if self._calm < _CALM_TICKS:
            return None
        self._calm = 0
        return wanted
