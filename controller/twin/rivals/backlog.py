"""A threshold on the backlog in seconds of GPU work: the simplest rule that looks at the queue.

No paper: what a careful operator would script, and the governor's own fallback. Every tick, the
best variant whose backlog, together with one batch, fills at most a third of the objective.
"""

from __future__ import annotations

import numpy as np

from controller.planning.fallback import by_backlog
from controller.twin.rivals import ArrivalRate, ExponentialMean, Setting, View

_RATE_MEMORY_S = 0.25


class Backlog:
    """Looks at the queues every tick."""

    def __init__(self, setting: Setting, *, tick_s: float = 0.05) -> None:
        self.tick_s = tick_s
        self._limit_s = setting.limit_s
        variants = setting.variants
        self._quality = np.array([v.quality for v in variants])
        self._single_s = np.array([v.service_s(1) for v in variants])
        self._capacity_rps = np.array(setting.capacity_rps)
        self._allowed = np.ones(len(variants), dtype=np.bool_)
        self._rate = ArrivalRate()
        self._rate_rps = ExponentialMean(min(tick_s / _RATE_MEMORY_S, 1.0))

    def choose(self, view: View) -> int | None:
        """Return what the fallback rule says."""
        rate_rps = self._rate_rps.follow(self._rate.since_last(view))
        waiting = np.array(view.pending, dtype=np.float64)
        return by_backlog(
            quality=self._quality,
            allowed=self._allowed,
            backlog_s=float((waiting / self._capacity_rps).sum()),
            service_s=self._single_s,
            utilization_ratio=rate_rps / self._capacity_rps,
            limit_s=self._limit_s,
        )
