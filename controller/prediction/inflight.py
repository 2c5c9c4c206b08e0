"""How many requests arrived, from counters that do not show what is in execution.

Owns the estimate of what each variant has in execution. It must not forecast.

Triton shows a request as pending until its batch starts and as completed once the batch has
ended; in between no counter holds it. Completed plus pending alone shows a rise in load a batch
later than it came. So what is in execution is estimated, and counted as arrived:

- No batch ended: whatever left the queue is in execution; an instance is busy while others wait.
- One ended: its successor took what waited, and what came before it started. What waits now came
  after that, and tells how much that was not.
- Several ended: the one in execution is taken to be like them.

A wrong estimate is made good when the batch ends: over time exactly as many are counted as came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controller.telemetry.observation import VariantReading


@dataclass(slots=True)
class _Seen:
    waiting: int = 0
    running: float = 0.0  # estimated


class ArrivalCounter:
    """Counts the requests that came to the variants of one model."""

    def __init__(self, largest_batch: int) -> None:
        self._largest = float(largest_batch)
        self._seen: dict[str, _Seen] = {}

    def count(
        self,
        readings: Iterable[VariantReading | None],
        *,
        receiving: frozenset[str | None],
        expected: float,
    ) -> float:
        """Return how many requests arrived since the last call; negative: it had counted too many.

        Args:
            readings: of the variants.
            receiving: Triton's names of the variants to which requests may have come.
            expected: arrivals in such a window.
        """
        arrived, seen = 0.0, {}
        for reading in readings:
            if reading is None:
                continue  # a server that went took with it what was in execution
            before = self._seen.get(reading.model, _Seen())
            now = _Seen(reading.pending_requests or 0)
            share = expected if reading.model in receiving else 0.0
            now.running = min(_running(before, reading, now.waiting, share), self._largest)
            ended = reading.completed_requests + reading.failed_requests
            arrived += ended + now.waiting - before.waiting + now.running - before.running
            seen[reading.model] = now
        self._seen = seen
        return arrived


def _running(before: _Seen, reading: VariantReading, waiting: int, expected: float) -> float:
    """Return how many requests are likely to be in execution now."""
    least = 1.0 if waiting > 0 else 0.0
    ended = reading.completed_requests + reading.failed_requests
    began = before.waiting - waiting - ended
    if reading.executions == 0:
        running = before.running
        if began > 0:
            running += began + expected / 2.0
    elif expected == 0.0:
        running = max(before.running + began, 0.0)
        if waiting == 0:  # all that waited has begun, and what ran then has ended
            running = min(running, float(before.waiting))
    elif reading.executions == 1:
        running = before.waiting + max(expected - waiting, 0.0)
    else:
        mean = reading.completed_requests / reading.executions
        running = mean if waiting > 0 or before.waiting > 0 else mean / 2.0
    return max(running, least)
