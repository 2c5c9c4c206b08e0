"""What the daemon measures of itself: times of ticks and actions, its processor and memory.

Owns small rolling windows. It must not judge.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any, Final

_WINDOW: Final = 4096
# Seconds: from the shortest ticks to the slowest of actions.
_BUCKETS: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
_CPU_EVERY_S: Final = 2.0


class Durations:
    """The newest durations of one kind, as quantiles in milliseconds."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=_WINDOW)
        self._count = 0
        self._sum_s = 0.0
        self._buckets = [0] * (len(_BUCKETS) + 1)

    def add(self, seconds: float) -> None:
        """Take in one duration in seconds."""
        self._newest.append(seconds)
        self._count += 1
        self._sum_s += seconds
        self._buckets[bisect_left(_BUCKETS, seconds)] += 1

    def histogram(self) -> dict[str, Any]:
        """Return how many were no longer than so many seconds, ever, as Prometheus counts them."""
        counts = itertools.accumulate(self._buckets)
        limits = [*(f"{limit:g}" for limit in _BUCKETS), "+Inf"]
        return {"buckets": list(zip(limits, counts, strict=True)), "sum": self._sum_s}

    def view(self) -> dict[str, Any]:
        """Return count, p50 and p99 in milliseconds; None while there is none."""
        if not self._newest:
            return {"count": 0, "p50": None, "p99": None}
        ordered = sorted(self._newest)
        return {
            "count": self._count,
            "p50": round(_quantile(ordered, 0.50) * 1e3, 3),
            "p99": round(_quantile(ordered, 0.99) * 1e3, 3),
        }


def _quantile(ordered: list[float], probability: float) -> float:
    return ordered[min(int(probability * len(ordered)), len(ordered) - 1)]


class ProcessMeter:
    """The daemon's own processor share and memory, children included."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_s = clock()
        self._cpu_s = self._used_s()
        self._ratio: float | None = None

    def view(self) -> dict[str, Any]:
        """Return the share of one core over the last seconds, and resident bytes."""
        now_s, used_s = self._clock(), self._used_s()
        if now_s - self._at_s >= _CPU_EVERY_S:
            self._ratio = (used_s - self._cpu_s) / (now_s - self._at_s)
            self._at_s, self._cpu_s = now_s, used_s
        return {"cpu_ratio": self._ratio, "rss_bytes": _rss_bytes()}

    @staticmethod
    def _used_s() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


def _rss_bytes() -> int | None:
    import psutil  # noqa: PLC0415 - the telemetry has it already; tests of meters do not need it

    return int(psutil.Process().memory_info().rss)
