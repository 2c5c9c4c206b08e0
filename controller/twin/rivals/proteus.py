"""Proteus (Ahmad et al., ASPLOS 2024), on one GPU.

Every 10 s a mixed integer programme; the demand is an exponentially weighted mean (centre of mass
1.6 s) times a headroom of 1.05, relaxed to 0.95 and 0.9 when that is infeasible; one variant a
device, in batches below half of the objective. With one device the programme is a search over its
variants. Between solves its adaptive batching would wait until the deadline forces a batch; Triton
cannot do that, and the twin's batcher is used.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import ArrivalRate, ExponentialMean, Setting, View

_PERIOD: Final = 10
_COM: Final = 1.6
_HEADROOMS: Final = (1.05, 0.95, 0.90)


class Proteus:
    """Solves every ten seconds, on a rate sampled every second."""

    tick_s = 1.0

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._rate = ArrivalRate()
        self._mean_rps = ExponentialMean(1.0 / (1.0 + _COM))
        self._looks = 0

    def choose(self, view: View) -> int | None:
        """Return the most accurate variant that bears the demand, when it is due."""
        mean_rps = self._mean_rps.follow(self._rate.since_last(view))
        self._looks += 1
        if self._looks % _PERIOD != 1:
            return None
        capacity_rps = self._setting.capacity_rps
        # The strictest headroom that any variant has.
        headroom = next((h for h in _HEADROOMS if max(capacity_rps) >= h * mean_rps), 0.0)
        return self._setting.most_accurate(
            lambda v: headroom > 0.0 and capacity_rps[v] >= headroom * mean_rps
        )
