"""ALERT (Wan et al., ATC 2020), its predictor at the heart of a choice every tick.

One multiplicative slow-down, followed by a Kalman filter on measured over profiled time of the
batches that ended; latency is the slow-down times the profile. The most accurate variant is taken
whose chance to be late is within the budget. The filter's constants are ours. ALERT runs one input
after the other and knows no queue; here the work that waits is added, in its favour.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from controller.twin.rivals import ArrivalRate, ExponentialMean, Setting, View

_TICK_S: Final = 0.05
_PROCESS: Final = 0.1  # of the noise: variance that the slow-down gains with each measurement
_MEASURED: Final = 0.001  # variance of a measurement, at least
_NOISE_GAIN: Final = 0.05
_RATE_MEMORY_S: Final = 1.0


class Alert:
    """Looks at what ended and at the queues every tick."""

    tick_s = _TICK_S

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._rate = ArrivalRate()
        self._rate_rps = ExponentialMean(_TICK_S / _RATE_MEMORY_S)
        self._slow = 1.0
        self._variance = 0.1
        self._noise = 0.01

    def choose(self, view: View) -> int | None:
        """Return the most accurate variant that is in time often enough."""
        self._follow(view)
        rate_rps = self._rate_rps.follow(self._rate.since_last(view))
        capacities = self._setting.capacity_rps
        work_s = sum(n / capacity for n, capacity in zip(view.pending, capacities, strict=True))
        return self._setting.most_accurate(lambda v: self._fits(v, work_s, rate_rps))

    def _follow(self, view: View) -> None:
        for variant, rows, took_s in view.ended:
            seen = took_s / self._setting.variants[variant].service_s(rows)
            self._noise += _NOISE_GAIN * ((seen - self._slow) ** 2 - self._noise)
            self._variance += _PROCESS * self._noise
            gain = self._variance / (self._variance + self._noise + _MEASURED)
            self._slow += gain * (seen - self._slow)
            self._variance *= 1.0 - gain

    def _fits(self, variant: int, work_s: float, rate_rps: float) -> bool:
        setting = self._setting
        if self._slow * rate_rps >= setting.capacity_rps[variant]:
            return False
        # A batch in execution, the work ahead, and the own batch.
        profile = setting.variants[variant]
        rows = min(max(math.ceil(rate_rps * profile.service_s(1)), 1), profile.max_batch)
        mean_s = self._slow * (work_s + 2.0 * profile.service_s(rows))
        spread_s = math.sqrt(self._variance + self._noise) * mean_s
        if spread_s <= 0.0:
            return mean_s <= setting.limit_s
        late = 1.0 - NormalDist(mean_s, spread_s).cdf(setting.limit_s)
        return late <= setting.allowed_miss_ratio
