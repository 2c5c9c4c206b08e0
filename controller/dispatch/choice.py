"""Which variant serves the next batch.

Pure, and of the standard library alone, like all that runs inside Triton. It must not keep a queue.

Method. Of all that wait (as many as fit), the best variant that (a) has the oldest of them answered
in time, and (b) leaves those in time that wait on, or come meanwhile, on the variant that is
fastest for them. Both with one of a hundred to spare: what batches take, the number that comes and
the end of the batch under way scatter independently, so their deviations add up in squares. A look
ahead of one batch is what RAMSIS (Mendoza et al., EuroSys 2024) solves a decision process for, and
what SlackFit (Khare et al., NSDI 2025) leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from .plan import Plan

TAIL = 2.33  # standard deviations, of the one of a hundred that is worst
_STEP = 0.02  # of the slow-down, in its logarithm: batches for an overload are chosen anew


def spread(deviation: float) -> float:
    """Return a share of a batch's time, so many of which the worst of a hundred takes longer.

    Args:
        deviation: standard deviation of the logarithm of batches' times.
    """
    return math.expm1(TAIL * deviation) / TAIL


class Moment(NamedTuple):
    """When a batch is to begin, and what is known then."""

    sent_s: float  # the time
    now_s: float  # when the device is free
    late_s: float  # standard deviation of that
    rate: float  # rows a second that come
    slowdown: float  # what batches take over the plan
    spread: float  # of what batches take, as `spread` says it


class Chooser:
    """Chooses by one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # By quality, of equal ones the faster first.
        order = range(len(plan.names))
        self._order = sorted(order, key=lambda v: (-plan.quality[v], plan.took_s[v][-1]))
        self._spread = [(tail - 1.0) / TAIL for tail in plan.tail]
        self.most_rows = max(map(len, plan.took_s))
        self._sizes: dict[int, list[int]] = {}  # by the slow-down
        # Of so many rows, in as many batches as it takes, on the variant that is fastest for them.
        self._fastest = [
            min(
                (row[min(rows, len(row)) - 1] * math.ceil(rows / len(row)), own)
                for row, own in zip(plan.took_s, self._spread)  # noqa: B905 - not in 3.8
            )
            for rows in range(1, self.most_rows + 1)
        ]

    def spread_of(self, name: str, spread: float) -> float:
        """Return the spread of a variant's batches: as the plan says, or as was seen."""
        plan = self._plan
        return max(self._spread[plan.names.index(name)], spread) if name in plan.names else spread

    def best(
        self,
        moment: Moment,
        came_s: float,
        fits: Callable[[int], tuple[int, int, float]],
        waiting_rows: int,
        may: Callable[[int], bool],
    ) -> tuple[int, int] | None:
        """Return the best variant that is in time, and how many go with it; None: there is none.

        Args:
            moment: when the batch is to begin.
            came_s: when the oldest came.
            fits: of the most rows that a batch may have: the requests and rows that would go, and
                when the oldest came that would not.
            waiting_rows: of all that wait.
            may: whether a variant may be asked for the oldest one.
        """
        plan = self._plan
        slack_s = came_s + plan.limit_s - moment.now_s
        known: dict[int, tuple[int, int, float]] = {}
        for v in self._order:
            row = plan.took_s[v]
            if not may(v):
                continue
            most = len(row)
            if most not in known:
                known[most] = fits(most)
            count, rows, next_came_s = known[most]
            takes_s = row[rows - 1] * moment.slowdown
            off_s = max(self._spread[v], moment.spread) * takes_s
            if takes_s + TAIL * math.hypot(off_s, moment.late_s) > slack_s:
                continue
            if self.leaves_time(moment, takes_s, off_s, waiting_rows - rows, next_came_s):
                return v, count
        return None

    def leaves_time(
        self, moment: Moment, takes_s: float, off_s: float, left_rows: int, came_s: float
    ) -> bool:
        """Return whether those who wait on, and those who come meanwhile, are in time afterwards.

        Args:
            moment: when the batch is to begin.
            takes_s: what it takes.
            off_s: standard deviation of that.
            left_rows: of those who wait on.
            came_s: when the oldest of those came; infinite: nobody waits on.
        """
        coming = moment.rate * takes_s
        rows = left_rows + coming
        if rows <= 0.0:
            return True
        needs_s, own = self._needs(rows)
        more_s, _ = self._needs(rows + TAIL * math.sqrt(coming))
        needs_s, more_s = needs_s * moment.slowdown, more_s * moment.slowdown
        needs_off_s = max(own, moment.spread) * needs_s
        off_s = TAIL * math.hypot(off_s, needs_off_s, moment.late_s)
        late_s = takes_s + needs_s + math.hypot(off_s, more_s - needs_s)
        # Whoever comes at once has waited for the whole batch.
        return late_s <= min(came_s, moment.now_s) + self._plan.limit_s - moment.now_s

    def quickest(
        self, waiting_rows: int, first_rows: int, slowdown: float, may: Callable[[int], bool]
    ) -> tuple[int, int, float] | None:
        """Return who gets most done: a variant, the most rows, what a batch takes; None: nobody."""
        plan, sizes = self._plan, self._overload_rows(slowdown)
        found, least_s = None, math.inf
        for v in self._order:
            row = plan.took_s[v]
            if not may(v):
                continue
            most = max(sizes[v], first_rows)
            takes_s = row[min(waiting_rows, most) - 1] * slowdown
            each_s = takes_s / min(waiting_rows, most)
            if each_s < least_s:
                found, least_s = (v, most, takes_s), each_s
        return found

    def _overload_rows(self, slowdown: float) -> list[int]:
        """Return, of each variant, with how many rows a batch gets most done that is in time.

        With batch after batch of T seconds whoever comes waits for 0 to T of them and is in one for
        T: of an objective of L a share of (L - T) / T is in time, all where T is half of L or less.
        """
        step = round(math.log(slowdown) / _STEP)
        if step not in self._sizes:
            limit_s = self._plan.limit_s / math.exp(step * _STEP)
            self._sizes[step] = [_most_in_time(row, limit_s) for row in self._plan.took_s]
        return self._sizes[step]

    def widest(self) -> int:
        """Return the variant with the largest batches."""
        return max(self._order, key=lambda v: len(self._plan.took_s[v]))

    def _needs(self, rows: float) -> tuple[float, float]:
        """Return what so many rows need at least, by the plan, and the spread of that."""
        fastest = self._fastest
        full, rest = divmod(math.ceil(rows), len(fastest))
        if not full:
            return fastest[rest - 1]
        needs_s, own = fastest[-1]
        return full * needs_s + (fastest[rest - 1][0] if rest else 0.0), own


def _most_in_time(row: tuple[float, ...], limit_s: float) -> int:
    """Return the rows of a batch with which most rows a second are in time, or done at all."""

    def done(rows: int) -> tuple[float, float]:
        takes_s = row[rows - 1]
        in_time = max(min((limit_s - takes_s) / takes_s, 1.0), 0.0)
        return rows / takes_s * in_time, rows / takes_s

    return max(range(1, len(row) + 1), key=done)
