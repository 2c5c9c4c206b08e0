"""INFaaS (Romero et al., ATC 2021), on one GPU.

Each second: upgrade to a faster variant when the load exceeds what the present one bears; after 20
consecutive seconds in which a more accurate one would have borne the load, downgrade to that.
Replicating needs a second GPU and is left out.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import ArrivalRate, Setting, View

_CALM_TICKS: Final = 20


class Infaas:
    """Looks every second."""

    tick_s = 1.0

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._rate = ArrivalRate()
        self._calm = 0

    def choose(self, view: View) -> int | None:
        """Return a faster variant at once, a better one after a while."""
        setting, load_rps = self._setting, self._rate.since_last(view)
        wanted = setting.most_accurate(lambda v: setting.capacity_rps[v] >= load_rps)
        if setting.capacity_rps[view.serving] < load_rps:
            self._calm = 0
            return wanted
        order = setting.by_quality
        better = order.index(wanted) < order.index(view.serving)
        self._calm = self._calm + 1 if better else 0
        if self._calm < _CALM_TICKS:
            return None
        self._calm = 0
        return wanted
