"""What a request that comes now is in for: when the next batch begins, and what it takes.

Of the standard library alone, like all that runs inside Triton. It must not choose what goes out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .choice import Chooser, Moment, spread
from .plan import Plan, expected_s
from .promise import BEHIND, IN_NEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .late_binding import Batch
    from .pace import Pace

_HOLDS = 0.02  # of an objective: so long a look ahead holds, if no batch begins or ends


class Queue(NamedTuple):
    """Who waits, with whoever has just come."""

    rows: int
    oldest_s: float  # when the oldest came
    is_alike: bool = True  # whoever has just come may share a batch with the oldest


class _Next(NamedTuple):
    """What the next batch is expected to be."""

    until_s: float  # so long it may be thought so
    free_s: float  # when it begins
    takes_s: float
    rows: int  # that it has room for


class Outlook:
    """Looks ahead to the next batch, by those that are under way."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._flying: list[Batch] = []
        self._rate = 0.0  # rows a second that came, as of the last batch
        self._next: _Next | None = None

    def sent(self, batch: Batch, rate: float | None = None) -> None:
        """Take note of a batch that goes out, and of the rate at which rows come."""
        self._flying.append(batch)
        self._rate = self._rate if rate is None else rate
        self._next = None

    def renewed(self) -> None:
        """Take note that there is another plan."""
        self._next = None

    def landed(self, batch: Batch) -> None:
        """Take note of a batch that is answered, or goes elsewhere."""
        # Whoever sent it may have put another time on it.
        self._flying = [one for one in self._flying if one.requests is not batch.requests]
        self._next = None

    def of(
        self,
        now_s: float,
        queue: Queue,
        plan: Plan,
        chooser: Chooser,
        may: Callable[[int], bool],
    ) -> tuple[int, float]:
        """Return where a request that has just come will be, and how long it takes in all there.

        Args:
            now_s: the time.
            queue: what waits, the request too.
            plan: what batches take.
            chooser: by that plan.
            may: whether a variant may be asked.
        """
        ahead = self._next
        if ahead is None or now_s >= ahead.until_s:
            ahead = self._next = self._look(now_s, queue, plan, chooser, may)
        where = IN_NEXT if queue.is_alike and queue.rows <= ahead.rows else BEHIND
        return where, max(ahead.free_s - now_s, 0.0) + ahead.takes_s

    def _look(
        self, now_s: float, queue: Queue, plan: Plan, chooser: Chooser, may: Callable[[int], bool]
    ) -> _Next:
        """Return what the next batch will be like, if as many come until then as came lately."""
        slowdown, until_s = self._pace.slowdown, now_s + _HOLDS * plan.limit_s
        free_s = self._free_s(now_s, plan)
        rows = max(round(queue.rows + self._rate * (free_s - now_s)), 1)
        deviation = spread(self._pace.deviation)
        moment = Moment(now_s, free_s, 0.0, self._rate, slowdown, deviation)

        def fits(most: int) -> tuple[int, int, float]:
            return min(rows, most), min(rows, most), math.inf if rows <= most else now_s

        found = chooser.best(moment, queue.oldest_s, fits, rows, may)
        if found is not None:
            v, most = found
            row = plan.took_s[v]
            return _Next(until_s, free_s, row[most - 1] * slowdown, len(row))
        quickest = chooser.quickest(rows, 1, slowdown, may)
        if quickest is None:
            return _Next(until_s, free_s, plan.limit_s, 0)  # all were shunned
        _, most, takes_s = quickest
        return _Next(until_s, free_s, takes_s, most)

    def _free_s(self, now_s: float, plan: Plan) -> float:
        """Return when all that is under way has ended."""
        if not self._flying:
            return now_s
        free_s = max(self._flying[0].sent_s, self._pace.ended_s)
        for batch in self._flying:
            planned_s = expected_s(plan, batch.name, batch.rows) or 0.0
            free_s = max(free_s, batch.sent_s) + planned_s * self._pace.slowdown
        return max(free_s, now_s)
