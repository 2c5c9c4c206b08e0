"""How many requests arrived, from counters that do not show what is in execution.

Owns the estimate of what each variant has in execution. It must not forecast.

Triton shows a request as pending until its batch starts and as completed once the batch has
ended; in between no counter holds it. Completed plus pending alone shows a rise in load a batch
later than it came. So what is in execution is estimated, and counted as arrived:

- No batch ended: whatever left the queue is in execution; an instance is busy while others wait.
- One ended: its successor took what waited, and what came before it started. What waits now came
  after that, and tells how much that was not. Unless it was full and left some: then it is as
  large as the one that ended.
- Several ended: the one in execution is taken to be like them.
- Nothing waited and nothing ended for longer than a batch takes: nothing is in execution.
- With several instances several are in execution, and none of this tells which: as many as before,
  and what should have come, less what ended, is taken half and half with the rate at which requests
  end (over some batches: they end all at once), times how long a batch takes (Little 1961).

A wrong estimate is made good when the batch ends: over time as many are counted as came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controller.telemetry.observation import VariantReading

_PATIENCE: Final = 2.0  # batches of the last one's time, until a silent variant is idle
_UNKNOWN_BATCH_S: Final = 1.0
_ENDS_OVER: Final = 2.0  # batches' time


@dataclass(slots=True)
class _Seen:
    """What was known of a variant at the last observation."""

    waiting: int = 0
    running: float = 0.0  # estimated
    batch_s: float = _UNKNOWN_BATCH_S  # of the batches that ended last
    silent_s: float = 0.0  # since something waited, began or ended
    ends_rps: float | None = None  # requests that ended a second, over some batches' time


class ArrivalCounter:
    """Counts the requests that came to the variants of one model."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def count(
        self,
        readings: Sequence[VariantReading | None],
        *,
        expected: Mapping[str, float],
        largest: float,
        window_s: float,
        instances: Mapping[str, float] | None = None,
    ) -> float:
        """Return how many requests arrived since the last call; negative: it had counted too many.

        Args:
            readings: of the variants.
            expected: requests that may have come to a variant in this window, by Triton's name.
            largest: the most requests that a batch holds.
            window_s: since the last call.
            instances: of each variant, by Triton's name; None: one of each.
        """
        arrived, seen = 0.0, {}
        for reading in readings:
            if reading is None:
                continue  # a server that went took with it what was in execution
            model, completed = reading.model, reading.completed_requests
            ended, waiting = completed + reading.failed_requests, reading.pending_requests
            arrived += ended
            if waiting is None or reading.ready is False:
                continue  # nothing tells what waits, or nothing does
            before = self._seen.get(model) or _Seen()
            is_idle = not (ended or waiting or before.waiting or before.running)
            if is_idle and not reading.executions and instances is None:
                before.silent_s += window_s  # as most that do not serve
                before.ends_rps = None
                seen[model] = before
                continue
            seen[model] = now = _Seen(waiting, 0.0, before.batch_s)
            if completed > 0 and reading.compute_s > 0.0:
                now.batch_s = reading.compute_s / completed
            if not (waiting or before.waiting or ended):
                now.silent_s = before.silent_s + window_s
            if now.silent_s <= _PATIENCE * before.batch_s:
                came = expected.get(model, 0.0)
                count = 1.0 if instances is None else instances.get(model, 1.0)
                if count > 1.0:
                    running = _running_together(before, now, reading, came, count, window_s)
                else:
                    running = _running(before, reading, waiting, came)
                most = largest * count
                now.running = min(most, running)
            arrived += waiting - before.waiting + now.running - before.running
        self._seen = seen
        return arrived


def _running(before: _Seen, reading: VariantReading, waiting: int, expected: float) -> float:
    """Return how many requests are likely to be in execution now."""
    least, executions = 1.0 if waiting > 0 else 0.0, reading.executions
    completed = reading.completed_requests
    began = before.waiting - waiting - completed - reading.failed_requests
    if executions == 0:
        running = before.running
        if began > 0:
            running += began + expected / 2.0
        return max(least, running)
    mean = completed / executions
    if expected == 0.0:
        running = max(before.running + began, 0.0)
        if waiting == 0:  # all that waited has begun, and what ran then has ended
            running = min(running, float(before.waiting))
    elif _left_some(before, waiting, expected, mean, reading):
        running = mean
    elif executions == 1:
        running = before.waiting + max(expected - waiting, 0.0)
    else:
        running = mean if waiting > 0 or before.waiting > 0 else mean / 2.0
    return max(least, running)


def _running_together(
    before: _Seen,
    now: _Seen,
    reading: VariantReading,
    expected: float,
    instances: float,
    window_s: float,
) -> float:
    """Return how many requests are likely to be in execution now on several instances."""
    ended = reading.completed_requests + reading.failed_requests
    followed = max(before.running + before.waiting + expected - now.waiting - ended, 0.0)
    least = instances if now.waiting > 0 else 0.0
    now.ends_rps = before.ends_rps
    if window_s > 0.0:
        # Batches that take longer than a window end in few of them, all their requests at once.
        rate_rps = reading.completed_requests / window_s
        step = 1.0 - math.exp(-window_s / max(_ENDS_OVER * now.batch_s, window_s))
        known_rps = rate_rps if before.ends_rps is None else before.ends_rps
        now.ends_rps = known_rps + step * (rate_rps - known_rps)
    if now.ends_rps is None or expected == 0.0:
        return max(followed, least)
    return max(0.5 * (followed + now.ends_rps * now.batch_s), least)


def _left_some(
    before: _Seen, waiting: int, expected: float, mean: float, reading: VariantReading
) -> bool:
    """Return whether the batch in execution had not room for all that waited."""
    more_than_came = waiting > expected + 2.0 * math.sqrt(expected) + 1.0
    hardly_drained = waiting >= before.waiting - reading.completed_requests
    return more_than_came and hardly_drained and before.waiting > mean
