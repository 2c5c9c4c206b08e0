"""How fast requests come, and how fast the device is, by what was seen lately.

Of the standard library alone, like all that runs inside Triton. It must not decide.
"""

from __future__ import annotations

import math
from collections import deque

from .plan import Plan, expected_s

_WINDOW_S = 0.5  # in which arrivals are counted
# A load that jumps is seen within shorter ones: by what surely came there, a deviation below it.
_SHORTER_S = (0.05, 0.1, 0.2)
_GAIN = 0.1  # of the slow-down, at each batch
_SPREAD_GAIN = 0.02  # of the same one's variance
_LARGEST = 0.5  # of a batch's surprise, in its logarithm: one that stood still is no drift


class Arrivals:
    """Counts rows as they come."""

    def __init__(self) -> None:
        self.rows = 0  # that came so far
        self._seen: deque[tuple[float, int]] = deque()  # (when, rows that had come)

    def rate(self, now_s: float) -> float:
        """Return rows a second. After idleness all came within the window."""
        seen, rows = self._seen, self.rows
        seen.append((now_s, rows))
        while len(seen) > 1 and seen[1][0] <= now_s - _WINDOW_S:
            seen.popleft()
        rate = (rows - seen[0][1]) / _WINDOW_S
        at = len(seen) - 1
        for window_s in _SHORTER_S:
            while at and seen[at][0] > now_s - window_s:
                at -= 1
            came = rows - seen[at][1]
            # The look before may be long ago: then they came within that time.
            rate = max(rate, (came - math.sqrt(came)) / max(now_s - seen[at][0], window_s))
        return rate


class Pace:
    """What batches take over what the plan says: a factor, and its scatter."""

    def __init__(self) -> None:
        self.ended_s = -math.inf  # when the last batch ended
        self._slow = 0.0  # logarithm of what batches took lately over the plan
        self._variance = 0.0  # of the same logarithm, from batch to batch

    @property
    def slowdown(self) -> float:
        """Return the factor."""
        return math.exp(self._slow)

    @property
    def deviation(self) -> float:
        """Return the standard deviation of its logarithm, from batch to batch."""
        return math.sqrt(self._variance)

    def ended(self, plan: Plan, name: str, rows: int, sent_s: float, now_s: float) -> None:
        """Take note of what a batch took."""
        # One that was sent ahead waited for the one before it.
        took_s = now_s - max(sent_s, self.ended_s)
        self.ended_s = now_s
        planned_s = expected_s(plan, name, rows)
        if planned_s and took_s > 0.0:
            surprise = math.log(took_s / planned_s) - self._slow
            surprise = max(-_LARGEST, min(surprise, _LARGEST))
            self._slow += _GAIN * surprise
            self._variance += _SPREAD_GAIN * (surprise * surprise - self._variance)

    def forget(self) -> None:
        """Forget what was seen beside a plan that knew nothing."""
        self._slow = self._variance = 0.0

    def replan(self, before: Plan, after: Plan) -> None:
        """Hold on to the device's pace where the plan's times change."""
        # What is known of it is so of its time, not of the plan's. By the change that most cells
        # had: a variant that was measured anew says nothing of the device.
        shared = sorted(
            math.log(old / new)
            for name, row in zip(after.names, after.took_s)  # noqa: B905 - not in Python 3.8
            if name in before.names
            for old, new in zip(before.took_s[before.names.index(name)], row)  # noqa: B905
        )
        self._slow = self._slow + shared[len(shared) // 2] if shared else 0.0
