"""The queue of a dispatcher: who is in the next batch, and which variant serves it.

Owns who waits. Of the standard library alone, in Python 3.8's terms: Triton's Python loads this
very file. It must not know a clock, a thread or a tensor.

A batch is bound when the device is about to be free, by `choice`. Where nothing has the oldest in
time, whoever can no longer be in time is put off, so that those behind him still are (Clockwork,
Gujarati et al., OSDI 2020, refuses such requests instead), and the others go to the variant that
gets most done. Who was put off goes along where a batch has room for him that costs nearly nothing,
or as soon as nobody else is late for it. After twenty objectives every tenth batch is theirs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from .choice import Chooser, Moment, spread
from .outlook import Outlook, Queue
from .pace import Arrivals, Pace
from .plan import Plan, expected_s
from .promise import OVERLOAD, PATIENCE, Promise, Told
from .shunned import Shunned, longest_answer_s
from .waiting import leave, prefix, together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A batch is on its way to a variant and back for about a millisecond. So long before the device is
# free the next one is sent.
_AHEAD_S = 0.001
_FREE = 1.02  # of a batch's time: so much longer it may be for those who were put off
_TURN = 10  # of so many batches one is theirs, once one of them lost his `PATIENCE`
_REMEMBERED = 1024  # latencies


class Request(NamedTuple):
    """One request that waits."""

    came_s: float
    rows: int
    kind: Any  # only requests of one kind (shapes, parameters) fit into a batch together
    payload: Any
    told: Told | None = None  # None: nothing was known when it came


class Batch(NamedTuple):
    """What goes out together."""

    name: str  # Triton's, of the variant
    requests: tuple[Request, ...]
    rows: int
    sent_s: float


class Dispatcher:
    """The queue of one model, and who serves its next batch."""

    def __init__(self, plan: Plan) -> None:
        """Begin with a plan of which nothing is known but names, until another one is set."""
        self._waiting: deque[Request] = deque()
        self._rows = 0  # that wait
        self._put_off: deque[Request] = deque()  # they are late whatever is done
        self._late_s = -math.inf  # when somebody was put off last
        self._since_turn = 0  # batches, since those who were put off had one
        self._arrivals, self._pace = Arrivals(), Pace()
        self._shunned = Shunned()
        # Requests.
        self.arrived = self.completed = self.failed = self.refused = self.in_time = 0
        self.served: dict[str, int] = {}  # requests, by variant
        self._latencies_s: deque[float] = deque(maxlen=_REMEMBERED)
        self.promise = Promise()
        self.untold: str | None = None  # why nothing could be told of a request, if that ever was
        self._outlook = Outlook(self._pace)
        self.plan, self._chooser = plan, Chooser(plan)
        self._knows = False

    def set_plan(self, plan: Plan) -> None:
        """Serve by another plan from the next batch on."""
        if self._knows:
            self._pace.replan(self.plan, plan)
        else:
            self._pace.forget()
        self._knows = True
        if (plan.limit_s, plan.allowed) != (self.plan.limit_s, self.plan.allowed):
            self.promise = Promise()  # it was about another objective
        self._outlook.renewed()
        for name in set(plan.names).difference(self.plan.names):
            self._shunned.pardon(name)  # it was away, and is there again
        self.plan, self._chooser = plan, Chooser(plan)

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting) + len(self._put_off)

    @property
    def slowdown(self) -> float:
        """Return what batches took lately over what the plan says."""
        return self._pace.slowdown

    def come(self, now_s: float, rows: int, kind: Any = None, payload: Any = None) -> bool:
        """Take in a request; return whether there was room for it."""
        most = self.plan.most_waiting
        if most is not None and self.waiting >= most:
            self.refused += 1
            return False
        told = self._tell(now_s, rows, kind) if self._knows else None
        self._rows += rows
        self._waiting.append(Request(now_s, rows, kind, payload, told))
        self._arrivals.rows += rows
        self.arrived += 1
        return True

    def overdue(self, now_s: float) -> list[Request]:
        """Return those who have waited for too long; they wait no more."""
        found: list[Request] = []
        timeout_s = self.plan.timeout_s
        if timeout_s is None:
            return found
        for queue in (self._put_off, self._waiting):
            while queue and now_s - queue[0].came_s > timeout_s:
                found.append(queue.popleft())
                if queue is self._waiting:
                    self._rows -= found[-1].rows
        self.refused += len(found)
        for request in found:
            self.promise.left(request.told)
        return found

    def patient_s(self, now_s: float) -> float | None:
        """Return in how many seconds somebody has waited for too long; None: nobody will have."""
        timeout_s = self.plan.timeout_s
        if timeout_s is None or not self.waiting:
            return None
        oldest = [queue[0].came_s for queue in (self._put_off, self._waiting) if queue]
        return max(min(oldest) + timeout_s - now_s, 0.0)

    def take(self, now_s: float, behind: Batch | None = None) -> Batch | None:
        """Return the next batch; None: nothing waits.

        Args:
            now_s: the time.
            behind: the batch that is under way; None: the device is free.
        """
        if not self.waiting:
            return None
        moment = self._moment(now_s, behind)
        batch = self._next(moment)
        self._outlook.sent(batch, moment.rate)
        return batch

    def again(self, batch: Batch, why: str = "") -> Batch | None:
        """Return a batch whose variant could not be asked, or failed, on another; None: on none.

        It is not chosen again for a second, longer if that is not the first time, nor is who failed
        before. Who does not fit into the other's batch waits again, in front.
        """
        plan, requests = self.plan, batch.requests
        self._shunned.add(batch.name, batch.sent_s, why)
        others = [v for v in range(len(plan.names)) if self._may(v, requests[0].rows, batch.sent_s)]
        if not others:
            return None
        most = {v: min(batch.rows, len(plan.took_s[v])) for v in others}
        v = min(others, key=lambda v: (-most[v], plan.took_s[v][most[v] - 1]))
        count, rows = prefix(requests, len(plan.took_s[v]))
        self._waiting.extendleft(reversed(requests[count:]))
        self._rows += batch.rows - rows
        other = Batch(plan.names[v], requests[:count], rows, batch.sent_s)
        self._outlook.landed(batch)
        self._outlook.sent(other)
        return other

    def apart(self, batch: Batch) -> list[Batch]:
        """Return a batch that failed, of several requests, as one of each: one may be at fault."""
        self._outlook.landed(batch)
        return [Batch(batch.name, (one,), one.rows, batch.sent_s) for one in batch.requests]

    def pardon(self, name: str) -> None:
        """Take note that it was the requests, and not the variant."""
        self._shunned.pardon(name)

    def shunned(self, now_s: float) -> dict[str, str]:
        """Return which variants are left alone for a while, and why."""
        return self._shunned.why(now_s)

    def gives_up(self, batch: Batch, now_s: float) -> bool:
        """Leave a variant alone that does not answer a batch at all; return whether that is so."""
        planned_s = expected_s(self.plan, batch.name, batch.rows)
        longest_s = longest_answer_s(planned_s and planned_s * self.slowdown)
        silent = now_s - batch.sent_s > longest_s
        if silent:
            self._shunned.add(batch.name, now_s, "it did not answer", silent=True)
        return silent

    def send_away(self) -> list[Request]:
        """Return all that wait; nobody waits any more."""
        found = [*self._put_off, *self._waiting]
        self._put_off.clear()
        self._waiting.clear()
        self._rows = 0
        self.failed += len(found)
        return found

    def ended(self, batch: Batch, now_s: float, *, failed: bool = False) -> None:
        """Take note that a batch was answered, and of the time since it began."""
        self._outlook.landed(batch)
        count = len(batch.requests)
        if failed:
            self.failed += count
            for request in batch.requests:
                self.promise.left(request.told)
            return
        self._shunned.pardon(batch.name)
        self.completed += count
        self.served[batch.name] = self.served.get(batch.name, 0) + count
        for request in batch.requests:
            took_s = now_s - request.came_s
            self.in_time += took_s <= self.plan.limit_s
            self._latencies_s.append(took_s)
            self._hear(request, took_s)
        self._pace.ended(self.plan, batch.name, batch.rows, batch.sent_s, now_s)

    def sends_s(self, batch: Batch) -> float:
        """Return when the next batch may be sent, ahead of this one's end.

        Of one that was sent ahead itself it is known when the one before it has ended.
        """
        return self._ends_s(batch) - _AHEAD_S

    def quantiles_s(self, *shares: float) -> list[float | None]:
        """Return quantiles of the last thousand latencies; None: there are none."""
        known: list[float | None] = [*sorted(self._latencies_s)] or [None]
        return [known[min(math.ceil(share * len(known)), len(known)) - 1] for share in shares]

    def _tell(self, now_s: float, rows: int, kind: Any) -> Told | None:
        """Return what to tell of a request that comes now."""
        oldest = self._waiting[0] if self._waiting else None
        alike = oldest is None or oldest.kind == kind
        queue = Queue(self._rows + rows, now_s if oldest is None else oldest.came_s, alike)
        may = lambda v: self._may(v, rows, now_s)  # noqa: E731 - as in `_in_time`
        try:
            where, foreseen_s = self._outlook.of(now_s, queue, self.plan, self._chooser, may)
            if now_s < self._late_s + self.plan.limit_s:
                where, foreseen_s = OVERLOAD, max(foreseen_s, self._off_s(may))
            return self.promise.tell(where, foreseen_s, self.plan.limit_s, self.plan.allowed)
        except Exception as error:  # noqa: BLE001 - no request is to fail for what it is told
            self.untold = f"{type(error).__name__}: {error}"
            return None

    def _off_s(self, may: Callable[[int], bool]) -> float:
        """Return how long it takes until all are served who were put off, if the overload lasts."""
        found = self._chooser.quickest(self._chooser.most_rows, 1, self.slowdown, may)
        if found is None or not self._put_off:
            return 0.0
        _, most, takes_s = found
        rows = len(self._put_off) * self._arrivals.rows / self.arrived
        return rows / most * takes_s * _TURN  # one batch of so many is theirs

    def _hear(self, request: Request, took_s: float) -> None:
        """Learn what to tell from what a request took."""
        try:
            self.promise.ended(request.told, took_s, self.plan.allowed)
        except Exception as error:  # noqa: BLE001 - it was answered
            self.untold = f"{type(error).__name__}: {error}"

    # -- batches -------------------------------------------------------------------------------

    def _next(self, moment: Moment) -> Batch:
        if self._waiting:
            found = self._put_off_first(moment) or self._in_time(moment)
            if found is not None:
                return found
            self._put_off_late(moment)
            # Perhaps those who are left can be in time after all.
            found = self._in_time(moment) if self._waiting else None
            if found is not None:
                return found
        return self._most_done(moment, self._waiting or self._put_off)

    def _moment(self, now_s: float, behind: Batch | None) -> Moment:
        pace, late_s, begins_s = self._pace, 0.0, now_s
        seen = spread(pace.deviation)
        if behind is not None:
            ends_s = self._ends_s(behind)
            begins_s = max(now_s, ends_s)
            began_s = max(behind.sent_s, pace.ended_s)
            late_s = self._chooser.spread_of(behind.name, seen) * (ends_s - began_s)
        rate = self._arrivals.rate(now_s)
        return Moment(now_s, begins_s, late_s, rate, pace.slowdown, seen)

    def _ends_s(self, batch: Batch) -> float:
        """Return when a batch ends, as far as the plan knows; its beginning where it does not."""
        planned_s = expected_s(self.plan, batch.name, batch.rows)
        began_s = max(batch.sent_s, self._pace.ended_s)
        return began_s + (planned_s * self.slowdown if planned_s else 0.0)

    def _in_time(self, moment: Moment) -> Batch | None:
        """Return the best batch that is in time, and leaves time; None: there is none."""
        most = self._chooser.most_rows
        alike = together(self._waiting, most)
        oldest = alike[0]
        # The first of another kind waits on, whatever goes.
        kind = oldest.kind
        other_s = next((one.came_s for one in self._waiting if one.kind != kind), math.inf)

        def fits(most: int) -> tuple[int, int, float]:
            count, rows = prefix(alike, most)
            next_s = alike[count].came_s if count < len(alike) else math.inf
            return count, rows, min(next_s, other_s)

        found = self._chooser.best(
            moment,
            oldest.came_s,
            fits,
            self._rows,
            lambda v: self._may(v, oldest.rows, moment.now_s),
        )
        return found and self._go(self._waiting, alike[: found[1]], found[0], moment)

    def _put_off_first(self, moment: Moment) -> Batch | None:
        """Return a batch of those who were put off, if nobody else is late for it."""
        if not self._put_off:
            return None
        alike = together(self._put_off, self._chooser.most_rows)
        found = self._quickest(sum(request.rows for request in alike), alike[0], moment)
        if found is None:
            return None
        v, _, takes_s = found
        off_s = self._chooser.spread_of(self.plan.names[v], moment.spread) * takes_s
        came_s = self._waiting[0].came_s
        waited = (moment.now_s - alike[0].came_s) / self.plan.limit_s
        turn = waited > PATIENCE and self._since_turn >= _TURN - 1
        if not turn and not self._chooser.leaves_time(moment, takes_s, off_s, self._rows, came_s):
            return None
        return self._most_done(moment, self._put_off)

    def _put_off_late(self, moment: Moment) -> None:
        """Put off who would be late even in the next batch of the variant that gets most done."""
        waiting, limit_s = self._waiting, self.plan.limit_s
        while waiting:
            found = self._quickest(self._rows, waiting[0], moment)
            if found is None or waiting[0].came_s + limit_s >= moment.now_s + found[2]:
                return
            late, self._late_s = waiting.popleft(), moment.sent_s
            self._rows -= late.rows
            told = self.promise.late(late.told, moment.now_s + found[2] - late.came_s)
            self._put_off.append(late._replace(told=told))

    def _most_done(self, moment: Moment, queue: deque[Request]) -> Batch:
        """Return a batch on the variant that gets most done."""
        alike = together(queue, self._chooser.most_rows)
        found = self._quickest(sum(request.rows for request in alike), alike[0], moment)
        # Nobody takes so many rows, or all were shunned: the widest says why.
        v = self._chooser.widest() if found is None else found[0]
        most = len(self.plan.took_s[v]) if found is None else found[1]
        return self._go(queue, alike[: prefix(alike, most)[0]], v, moment)

    def _go(
        self, queue: deque[Request], requests: Sequence[Request], v: int, moment: Moment
    ) -> Batch:
        rows = sum(request.rows for request in requests)
        leave(queue, requests)
        self._since_turn += 1
        if queue is self._waiting:
            self._rows -= rows
            along = self._along(requests[0].kind, rows, v)
            rows += sum(request.rows for request in along)
            requests = [*requests, *along]
        else:
            self._since_turn = 0
        return Batch(self.plan.names[v], tuple(requests), rows, moment.sent_s)

    def _along(self, kind: Any, rows: int, v: int) -> list[Request]:
        """Return those who were put off and go along with so many rows, as it costs little."""
        found: list[Request] = []
        row = self.plan.took_s[v]
        if not self._put_off or rows > len(row):
            return found
        most = bisect_right(row, row[rows - 1] * _FREE)
        while self._put_off and self._put_off[0].kind == kind:
            rows += self._put_off[0].rows
            if rows > most:
                break
            found.append(self._put_off.popleft())
        return found

    def _quickest(
        self, rows: int, oldest: Request, moment: Moment
    ) -> tuple[int, int, float] | None:
        may = lambda v: self._may(v, oldest.rows, moment.now_s)  # noqa: E731 - as in `_in_time`
        return self._chooser.quickest(rows, oldest.rows, moment.slowdown, may)

    def _may(self, v: int, rows: int, now_s: float) -> bool:
        """Return whether a variant takes so many rows and was not shunned."""
        if rows > len(self.plan.took_s[v]):
            return False
        return not self._shunned.has(self.plan.names[v], now_s)
