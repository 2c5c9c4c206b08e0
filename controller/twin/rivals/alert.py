"""ALERT (Wan et al., ATC 2020), its predictor at the heart of a choice every tick.

One multiplicative slow-down, followed by a Kalman filter on measured over profiled time of the
batches that ended; latency is the slow-down times the profile. The most accurate variant is taken
whose chance to be late is within the budget. ALERT runs one input after the other and knows no
queue; here the work that waits is added, in its favour.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from controller.twin.rivals import Setting, View

_TICK_S: Final = 0.05
_PROCESS: Final = 0.1  # variance the slow-down gains from one measurement to the next (paper: Q)
_MEASURED: Final = 0.001  # variance of a measurement (paper: R)
_RATE_MEMORY_S: Final = 1.0


class Alert:
    """Looks at what ended and at the queues every tick."""

    idealised = False
    tick_s = _TICK_S

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._order = setting.by_quality()
        self._fastest = setting.fastest()
        self._capacity_rps = [v.capacity_rps(setting.limit_s) for v in setting.variants]
        self._slow = 1.0
        self._variance = 0.1
        self._noise = 0.01
        self._arrived = 0
        self._rate_rps: float | None = None

    def choose(self, view: View) -> int | None:
        """Return the most accurate variant that is in time often enough."""
        self._follow(view)
        newest_rps = (view.arrived - self._arrived) / self.tick_s
        self._arrived = view.arrived
        if self._rate_rps is None:
            self._rate_rps = newest_rps
        self._rate_rps += (newest_rps - self._rate_rps) * min(self.tick_s / _RATE_MEMORY_S, 1.0)
        work_s = sum(
            waiting / capacity
            for waiting, capacity in zip(view.pending, self._capacity_rps, strict=True)
        )
        return next((v for v in self._order if self._fits(v, work_s)), self._fastest)

    def _follow(self, view: View) -> None:
        for variant, rows, took_s in view.ended:
            seen = took_s / self._setting.variants[variant].service_s(rows)
            self._noise += 0.05 * ((seen - self._slow) ** 2 - self._noise)
            self._variance += _PROCESS * self._noise
            gain = self._variance / (self._variance + self._noise + _MEASURED)
            self._slow += gain * (seen - self._slow)
            self._variance *= 1.0 - gain

    def _fits(self, variant: int, work_s: float) -> bool:
        setting = self._setting
        if self._slow * (self._rate_rps or 0.0) >= self._capacity_rps[variant]:
            return False
        # A batch in execution, the work ahead, and the own batch.
        profile = setting.variants[variant]
        rate_rps = self._rate_rps or 0.0
        rows = min(max(math.ceil(rate_rps * profile.service_s(1)), 1), profile.max_batch)
        mean_s = self._slow * (work_s + 2.0 * profile.service_s(rows))
        spread_s = math.sqrt(self._variance + self._noise) * mean_s
        if spread_s <= 0.0:
            return mean_s <= setting.limit_s
        late = 1.0 - NormalDist(mean_s, spread_s).cdf(setting.limit_s)
        return late <= setting.allowed_miss_ratio
