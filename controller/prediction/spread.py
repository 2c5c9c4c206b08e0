"""How the latencies of requests that completed in one tick lie about their mean.

Owns what share of them took longer than was said. It must not say anything itself.

Triton counts sums: of a tick the mean time in the queue and the mean time of execution are known,
and how many batches it had. Requests of one batch share its execution, and came evenly while the
one before it was executed: the last of them hardly waited, so the others waited up to twice the
mean, unless so many came that a full batch left some behind; then what a batch holds came in the
time in which so many come. Of several batches in one tick the smallest takes as long as a lone
request, so the largest may be as far above the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from controller.telemetry.observation import VariantReading

_MEMORY_S: Final = 1.0  # of the rate
_LEARNED: Final = 0.05  # of a lone request's time, by the next one
_SEVERAL: Final = 0.7  # of what is between a lone request and the mean of several batches
# The requests of a tick in five parts of the same size: where the middle of each lies between the
# earliest and the last, from the mean; what was said may have changed from one part to the next.
_PARTS: Final = (-0.8, -0.4, 0.0, 0.4, 0.8)
_HALF: Final = 0.2  # of a part
# Where nothing but a mean and a limit are known: requests of one tick are off it as far as this.
_USUAL: Final = 0.33


class Spread:
    """Remembers of one model's variants what the sums do not tell."""

    def __init__(self) -> None:
        self._completed = 0.0  # requests, lately
        self._in_s = 0.0
        self._lone_s: dict[str, float] = {}  # what a lone request takes, by variant

    def observe(self, completed: int, window_s: float) -> None:
        """Count what completed in a tick, of all variants."""
        keep = math.exp(-window_s / _MEMORY_S)
        self._completed = self._completed * keep + completed
        self._in_s = self._in_s * keep + window_s

    def late_share(
        self,
        reading: VariantReading,
        middle_s: float,
        said_s: Callable[[float], float | None],
    ) -> float | None:
        """Return which share of a variant's requests of a tick took longer than was said.

        Args:
            reading: of the tick; requests completed in it.
            middle_s: when they completed, about.
            said_s: what was said of requests that came at a time; None: nothing.

        Returns:
            None: nothing was said of any.
        """
        mean_s, half_s = self._extent(reading)
        if half_s <= 0.0:
            limit_s = said_s(middle_s - mean_s)
            return None if limit_s is None else float(mean_s > limit_s)
        shares = []
        for part in _PARTS:
            latency_s, wide_s = mean_s + part * half_s, _HALF * half_s
            limit_s = said_s(middle_s - latency_s)
            if limit_s is not None:
                shares.append(_share(latency_s - wide_s, latency_s + wide_s, limit_s))
        return sum(shares) / len(shares) if shares else None

    def _extent(self, reading: VariantReading) -> tuple[float, float]:
        """Return the mean latency, and how far the first and the last request are off it."""
        count, batches = reading.completed_requests, max(reading.executions, 1)
        queue_s, compute_s = reading.queue_s / count, reading.compute_s / count
        if count <= batches:
            known_s = self._lone_s.get(reading.model, compute_s)
            self._lone_s[reading.model] = known_s + _LEARNED * (compute_s - known_s)
        if count == 1:
            return queue_s + compute_s, 0.0
        half_s = queue_s
        if self._completed > 0.0:
            half_s = min(half_s, count / batches / 2.0 * self._in_s / self._completed)
        if batches > 1:
            lone_s = min(self._lone_s.get(reading.model, _SEVERAL * compute_s), compute_s)
            half_s = max(half_s, _SEVERAL * (queue_s + compute_s - lone_s))
        return queue_s + compute_s, half_s


def late_share(mean_s: float, limit_s: float) -> float:
    """Return the share of requests of one tick that took longer than a limit, by their mean."""
    return _share((1.0 - _USUAL) * mean_s, (1.0 + _USUAL) * mean_s, limit_s)


def mean_of(reading: VariantReading) -> float:
    """Return the mean latency of what completed in a tick, in seconds."""
    return (reading.queue_s + reading.compute_s) / reading.completed_requests


def _share(least_s: float, most_s: float, limit_s: float) -> float:
    """Return how much of an even spread is beyond a limit."""
    if limit_s >= most_s:
        return 0.0
    if limit_s <= least_s:
        return 1.0
    return (most_s - limit_s) / (most_s - least_s)
