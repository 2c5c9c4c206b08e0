"""Drift plus penalty (Neely 2010) with a bound on the sojourn: queue pressure as the price.

No paper of the field: a rule of our own, tried as the governor's and not taken. Every 20 ms it
takes the variant of the highest quality less price times device time per request. The price grows
with the work that waits, up to what makes the fastest variant the best: so the queue finds the mix
by itself, whatever the load is. A variant is no choice when a request that comes at the tick's end
would wait too long on it, or would keep the fastest from being in time after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from controller.twin.ladder import Floats
from controller.twin.rivals import ArrivalRate, ExponentialMean, Setting, View

_RATE_MEMORY_S: Final = 0.2
_DEVIATIONS: Final = 1.5  # of the arrivals, that the bound allows for
_OF_LIMIT: Final = 0.7  # that the bound may take
_FULL: Final = 0.5  # waiting work, as a share of the objective, at which the price is highest
_BATCHES: Final = 2.0  # the one in execution, and the request's own
_SWITCH_S: Final = 0.004


class Pressure:
    """Looks every 20 ms."""

    tick_s = 0.02

    def __init__(self, setting: Setting) -> None:
        self._limit_s = setting.limit_s
        self._quality = np.array([v.quality for v in setting.variants])
        self._tables = [v.table_s for v in setting.variants]
        self._row_s = 1.0 / np.array(setting.capacity_rps)
        self._fastest = setting.fastest
        slower = self._row_s - self._row_s[self._fastest]
        better = self._quality - self._quality[self._fastest]
        worth = (slower > 0.0) & (better > 0.0)
        self._highest_price = float((better[worth] / slower[worth]).max()) if worth.any() else 0.0
        self._rate = ArrivalRate()
        self._mean_rps = ExponentialMean(1.0 - math.exp(-self.tick_s / _RATE_MEMORY_S))

    def choose(self, view: View) -> int | None:
        """Return the best of those that are in time; the fastest where none is."""
        mean_rps = self._mean_rps.follow(self._rate.since_last(view))
        rate_rps = mean_rps + _DEVIATIONS * math.sqrt(max(mean_rps, 1.0) / _RATE_MEMORY_S)
        work_s = np.array(view.pending) * self._row_s
        pressure = min(float(work_s.sum()) / (_FULL * self._limit_s), 1.0)
        if pressure >= 1.0:
            return self._fastest
        value = self._quality - pressure * self._highest_price * self._row_s
        for variant in np.argsort(-value).tolist():
            if variant == self._fastest or self._in_time(variant, rate_rps, view.pending, work_s):
                return int(variant)
        return self._fastest

    def _in_time(
        self, variant: int, rate_rps: float, pending: Sequence[int], work_s: Floats
    ) -> bool:
        window_s = self.tick_s + _SWITCH_S
        batch_s = self._batch_s(variant, rate_rps, pending[variant] + rate_rps * window_s + 1.0)
        elsewhere_s = float(work_s.sum() - work_s[variant])
        # What waits elsewhere takes half of the device until it is done.
        own_s = window_s - min(elsewhere_s, window_s / 2.0)
        left_s = max(work_s[variant] + rate_rps * window_s * self._row_s[variant] - own_s, 0.0)
        left_elsewhere_s = max(elsewhere_s - window_s / 2.0, 0.0)
        # Afterwards the fastest serves beside what is left.
        busy = rate_rps * self._row_s[self._fastest]
        share = 1.0 - min(busy, 0.5)
        slowed = 1.0 / share if left_s > 0.0 else 1.5 if left_elsewhere_s > 0.0 else 1.0
        sojourn_s = (left_s + _BATCHES * batch_s) * slowed
        remains_s = left_s + left_elsewhere_s + 0.5 * batch_s
        fastest_s = self._batch_s(self._fastest, rate_rps, math.inf)
        after_s = _BATCHES * fastest_s * (1.0 + min(remains_s / fastest_s, 1.0))
        after_s += 2.0 * max(busy - 0.5, 0.0) * remains_s / share
        return bool(max(sojourn_s, after_s) <= _OF_LIMIT * self._limit_s)

    def _batch_s(self, variant: int, rate_rps: float, most: float) -> float:
        """Return the time of the batch that feeds itself, or of the most that can gather."""
        table_s = self._tables[variant]
        feeds = np.arange(1, len(table_s) + 1) >= rate_rps * table_s
        rows = int(feeds.argmax()) + 1 if feeds.any() else len(table_s)
        return float(table_s[max(min(rows, math.ceil(min(most, len(table_s)))), 1) - 1])
