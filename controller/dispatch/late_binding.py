"""Which variant serves the next batch, and who is in it.

Owns the queue of a dispatcher and its choice. Pure, and of the standard library alone: Triton's
Python loads this very file. It must not know a clock, a thread or a tensor.

Method. When the device is free, all that wait (as many as fit) go out as one batch, on the best
variant that (a) has the oldest of them answered in time, and (b) leaves those in time that come
meanwhile: so many as the rate of the last half second makes likely, two standard deviations more,
on the variant that is fastest for them. Where none does, the fastest serves. A look ahead of one
batch is what RAMSIS (Mendoza et al., EuroSys 2024) solves a decision process for, and what
SlackFit (Khare et al., NSDI 2025) leaves out.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_WINDOW_S = 0.5  # in which arrivals are counted
_DEVIATIONS = 2.0  # of a Poisson count
_GAIN = 0.1  # of the slow-down, at each batch
_SPREAD_GAIN = 0.02  # of the same one's variance
_TAIL = 2.33  # deviations, of the one of a hundred batches that takes longest
_LARGEST = 0.5  # of a batch's surprise, in its logarithm: one that stood still is no drift
# A batch is on its way to a variant and back for about a millisecond. Behind a short one, of which
# that is much, the next one is sent so long before the device is free.
_AHEAD_S = 0.002
_SHORT_S = 0.010
_REMEMBERED = 1024  # latencies
_SHUNNED_S = 1.0  # a variant that could not be asked


class Plan(NamedTuple):
    """What may serve, and how long each takes."""

    names: tuple[str, ...]  # Triton's, of the variants that may serve now
    quality: tuple[float, ...]
    took_s: tuple[tuple[float, ...], ...]  # of 1, 2, ... rows; as many as fit into a batch
    tail: tuple[float, ...]  # what a batch's time is multiplied with, to be kept nearly always
    limit_s: float  # the objective
    timeout_s: float | None = None  # who waits longer is refused
    most_waiting: int | None = None  # who finds so many requests waiting is refused

    @classmethod
    def read(cls, value: dict[str, Any]) -> Plan:
        """Return a plan from JSON values. Raises ValueError, KeyError, TypeError."""
        plan = cls(
            tuple(map(str, value["names"])),
            tuple(map(float, value["quality"])),
            tuple(tuple(map(float, row)) for row in value["took_s"]),
            tuple(map(float, value["tail"])),
            float(value["limit_s"]),
            None if value.get("timeout_s") is None else float(value["timeout_s"]),
            None if value.get("most_waiting") is None else int(value["most_waiting"]),
        )
        sizes = {len(plan.names), len(plan.quality), len(plan.took_s), len(plan.tail)}
        if len(sizes) != 1 or not plan.names:
            raise ValueError("a plan needs as many of each as it has variants, and one at least")
        numbers = [plan.limit_s, *plan.tail, *(took for row in plan.took_s for took in row)]
        if not all(plan.took_s) or not all(math.isfinite(x) and x > 0.0 for x in numbers):
            raise ValueError("times of a plan are positive, and every variant has one")
        if not all(0.0 <= one <= 1.0 for one in plan.quality):
            raise ValueError("quality is from 0 to 1")
        return plan

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return self._asdict()


class Request(NamedTuple):
    """One request that waits."""

    came_s: float
    rows: int
    kind: Any  # only requests of one kind (shapes, parameters) fit into a batch together
    payload: Any


class Batch(NamedTuple):
    """What goes out together."""

    name: str  # Triton's, of the variant
    requests: tuple[Request, ...]
    rows: int
    began_s: float


class Dispatcher:
    """The queue of one model, and who serves its next batch."""

    def __init__(self, plan: Plan) -> None:
        self._waiting: deque[Request] = deque()
        self._rows = 0  # that wait
        self._arrived_rows = 0
        self._seen: deque[tuple[float, int]] = deque()  # (when, rows that had arrived)
        self._slow = 0.0  # logarithm of what batches took lately over the plan
        self._last: tuple[str, int] | None = None  # (variant, rows) of the last batch
        self._ended_s = -math.inf  # when that ended
        self._variance = 0.0  # of the same logarithm, from batch to batch
        self._shunned: dict[str, float] = {}
        # Requests.
        self.arrived = self.completed = self.failed = self.refused = self.in_time = 0
        self.served: dict[str, int] = {}  # requests, by variant
        self._latencies_s: deque[float] = deque(maxlen=_REMEMBERED)
        self.set_plan(plan)

    def set_plan(self, plan: Plan) -> None:
        """Serve by another plan from the next batch on."""
        before = getattr(self, "plan", None)
        if before is not None and self._last is not None:
            # What is known of the device's pace is so of its time, not of the plan's.
            old, new = _expected(before, *self._last), _expected(plan, *self._last)
            self._slow = self._slow + math.log(old / new) if old and new else 0.0
        self.plan = plan
        # By quality, of equal ones the faster first.
        order = range(len(plan.names))
        self._order = sorted(order, key=lambda v: (-plan.quality[v], plan.took_s[v][-1]))
        most = max(map(len, plan.took_s))
        # Of so many rows, in as many batches as it takes, on the variant that is fastest for them.
        self._fastest_s = [
            min(
                row[min(rows, len(row)) - 1] * math.ceil(rows / len(row)) * tail
                for row, tail in zip(plan.took_s, plan.tail)  # noqa: B905 - Python 3.8 has none
            )
            for rows in range(1, 2 * most + 1)
        ]

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    @property
    def slowdown(self) -> float:
        """Return what batches took lately over what the plan says."""
        return math.exp(self._slow)

    def come(self, now_s: float, rows: int, kind: Any = None, payload: Any = None) -> bool:
        """Take in a request; return whether there was room for it."""
        most = self.plan.most_waiting
        if most is not None and len(self._waiting) >= most:
            self.refused += 1
            return False
        self._waiting.append(Request(now_s, rows, kind, payload))
        self._rows += rows
        self._arrived_rows += rows
        self.arrived += 1
        return True

    def overdue(self, now_s: float) -> list[Request]:
        """Return those who have waited for too long; they wait no more."""
        found: list[Request] = []
        timeout_s = self.plan.timeout_s
        while timeout_s is not None and self._waiting:
            if now_s - self._waiting[0].came_s <= timeout_s:
                break
            found.append(self._waiting.popleft())
            self._rows -= found[-1].rows
        self.refused += len(found)
        return found

    def take(self, now_s: float) -> Batch | None:
        """Return the next batch; None: nothing waits."""
        if not self._waiting:
            return None
        rate = self._rate(now_s)
        head = self._together()
        v = self._choose(now_s, head, rate)
        requests, rows = _prefix(head, len(self.plan.took_s[v]))
        self._leave(requests)
        return Batch(self.plan.names[v], tuple(requests), rows, now_s)

    def again(self, batch: Batch) -> Batch | None:
        """Return a batch whose variant could not be asked, on another one; None: there is none.

        It is not chosen again for a second, nor is who failed before.
        """
        plan = self.plan
        self._shunned[batch.name] = batch.began_s + _SHUNNED_S
        others = [
            v
            for v in self._order
            if not self._is_shunned(v, batch.began_s) and len(plan.took_s[v]) >= batch.rows
        ]
        if not others:
            return None
        fastest = min(others, key=lambda v: plan.took_s[v][batch.rows - 1])
        return batch._replace(name=plan.names[fastest])

    def ended(self, batch: Batch, now_s: float, *, failed: bool = False) -> None:
        """Take note that a batch was answered, and of the time since it began."""
        count = len(batch.requests)
        if failed:
            self.failed += count
            return
        self.completed += count
        self.served[batch.name] = self.served.get(batch.name, 0) + count
        for request in batch.requests:
            took_s = now_s - request.came_s
            self.in_time += took_s <= self.plan.limit_s
            self._latencies_s.append(took_s)
        self._last = batch.name, batch.rows
        # One that was sent ahead waited for the one before it.
        began_s, self._ended_s = max(batch.began_s, self._ended_s), now_s
        expected_s = _expected(self.plan, batch.name, batch.rows)
        if expected_s and now_s > began_s:
            surprise = math.log((now_s - began_s) / expected_s) - self._slow
            surprise = max(-_LARGEST, min(surprise, _LARGEST))
            self._slow += _GAIN * surprise
            self._variance += _SPREAD_GAIN * (surprise * surprise - self._variance)

    def ends_s(self, batch: Batch) -> float:
        """Return when a batch ends, as far as the plan knows; its beginning where it does not."""
        expected_s = _expected(self.plan, batch.name, batch.rows)
        return batch.began_s + (expected_s * self.slowdown if expected_s else 0.0)

    def sends_s(self, batch: Batch) -> float:
        """Return when the next batch may be sent ahead of this one's end; infinite: not before.

        Behind a long one that would be early for nothing: what it takes more than expected would
        make those late that were in time when they were bound.
        """
        ends_s = self.ends_s(batch)
        return ends_s - _AHEAD_S if ends_s - batch.began_s <= _SHORT_S else math.inf

    def quantiles_s(self, *shares: float) -> list[float | None]:
        """Return quantiles of the last thousand latencies; None: there are none."""
        known = sorted(self._latencies_s)
        if not known:
            return [None for _ in shares]
        return [known[min(math.ceil(share * len(known)), len(known)) - 1] for share in shares]

    # -- the choice ----------------------------------------------------------------------------

    def _choose(self, now_s: float, head: Sequence[Request], rate: float) -> int:
        plan, slow = self.plan, self.slowdown
        # The plan's spread is of means of several batches, and of a quiet host.
        spread = math.exp(_TAIL * math.sqrt(self._variance))
        rows = sum(request.rows for request in head)
        batches: dict[int, tuple[int, int]] = {}  # (requests, rows), by the most that fit
        slack_s = head[0].came_s + plan.limit_s - now_s
        fallback, least_s = -1, math.inf
        for v in self._order:
            row = plan.took_s[v]
            if head[0].rows > len(row) or self._is_shunned(v, now_s):
                continue
            if rows <= len(row):
                count, taken = len(head), rows
            elif len(row) in batches:
                count, taken = batches[len(row)]
            else:
                requests, taken = _prefix(head, len(row))
                count = len(requests)
                batches[len(row)] = count, taken
            takes_s = row[taken - 1] * max(plan.tail[v], spread) * slow
            if takes_s <= slack_s and self._leaves_time(now_s, head, count, taken, takes_s, rate):
                return v
            if takes_s / taken < least_s:
                fallback, least_s = v, takes_s / taken
        if fallback < 0:  # nobody takes so many rows, or all were shunned: the widest says why
            fallback = max(self._order, key=lambda v: len(plan.took_s[v]))
        return fallback

    def _leaves_time(
        self,
        now_s: float,
        head: Sequence[Request],
        count: int,
        taken: int,
        takes_s: float,
        rate: float,
    ) -> bool:
        """Return whether those who wait on, and those who come meanwhile, are in time after it."""
        coming = rate * takes_s
        rows = self._rows - taken + coming + _DEVIATIONS * math.sqrt(coming)
        if rows <= 0.0:
            return True
        # The oldest of them; whoever comes at once has waited for the whole batch.
        came_s = head[count].came_s if count < len(head) else now_s
        fastest_s, at = self._fastest_s, math.ceil(rows)
        needs_s = (
            fastest_s[at - 1] if at <= len(fastest_s) else fastest_s[-1] * rows / len(fastest_s)
        )
        return takes_s + needs_s * self.slowdown <= came_s + self.plan.limit_s - now_s

    def _rate(self, now_s: float) -> float:
        """Return rows a second, of the last half second. After idleness all came within it."""
        seen = self._seen
        seen.append((now_s, self._arrived_rows))
        while len(seen) > 1 and seen[1][0] <= now_s - _WINDOW_S:
            seen.popleft()
        return (self._arrived_rows - seen[0][1]) / _WINDOW_S

    def _together(self) -> list[Request]:
        """Return those who wait and fit together with the oldest, as many as a batch can hold."""
        most, kind = max(map(len, self.plan.took_s)), self._waiting[0].kind
        found: list[Request] = []
        rows = 0
        for request in self._waiting:
            if request.kind != kind:
                continue
            found.append(request)
            rows += request.rows
            if rows > most:  # one more than fits: it is who waits on
                break
        return found

    def _leave(self, requests: Sequence[Request]) -> None:
        self._rows -= sum(request.rows for request in requests)
        waiting = self._waiting
        for at, request in enumerate(requests):
            if waiting[0] is request:
                waiting.popleft()
                continue
            # Others of another kind are between. By identity: tensors are not to be compared.
            gone = set(map(id, requests[at:]))
            self._waiting = deque(one for one in waiting if id(one) not in gone)
            break

    def _is_shunned(self, v: int, now_s: float) -> bool:
        until_s = self._shunned.get(self.plan.names[v]) if self._shunned else None
        return until_s is not None and now_s < until_s


def _prefix(requests: Sequence[Request], most: int) -> tuple[list[Request], int]:
    """Return the first ones that fit into so many rows, one at least, and their rows."""
    found, rows = [requests[0]], requests[0].rows
    for request in requests[1:]:
        if rows + request.rows > most:
            break
        found.append(request)
        rows += request.rows
    return found, rows


def _expected(plan: Plan, name: str, rows: int) -> float | None:
    """Return what a batch takes by a plan; None: it says nothing of it."""
    if name not in plan.names:
        return None
    row = plan.took_s[plan.names.index(name)]
    return row[rows - 1] if rows <= len(row) else None
