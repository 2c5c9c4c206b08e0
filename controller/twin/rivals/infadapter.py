"""InfAdapter (Salmani et al., EuroMLSys 2023) and IPA (Ghafouri et al., 2024), on one GPU.

Every 30 s (InfAdapter) or 10 s (IPA) an integer programme over variants, batches and replicas; the
forecast is an exponential mean of the rate (span 10) plus 10 %, and a variant is trusted with 0.8
of its capacity. With one replica on one GPU the programme is: the most accurate variant that bears
the forecast, whose worst batch fits the objective.
"""

from __future__ import annotations

from typing import Final

from controller.twin.rivals import ArrivalRate, ExponentialMean, Setting, View

_SPAN: Final = 10.0
_HEADROOM: Final = 1.1
_TRUSTED: Final = 0.8
_LOOK_S: Final = 1.0  # the rate is sampled so often


class InfAdapter:
    """Solves every `period_s`, on a rate sampled every second."""

    def __init__(self, setting: Setting, *, period_s: float = 30.0) -> None:
        self.tick_s = _LOOK_S
        self._period = round(period_s / _LOOK_S)
        self._setting = setting
        self._rate = ArrivalRate()
        self._mean_rps = ExponentialMean(2.0 / (_SPAN + 1.0))
        self._looks = 0

    def choose(self, view: View) -> int | None:
        """Return the programme's solution when it is due."""
        wanted_rps = _HEADROOM * self._mean_rps.follow(self._rate.since_last(view))
        self._looks += 1
        if self._looks % self._period != 1 % self._period:
            return None
        capacity_rps = self._setting.capacity_rps
        return self._setting.most_accurate(lambda v: _TRUSTED * capacity_rps[v] >= wanted_rps)
