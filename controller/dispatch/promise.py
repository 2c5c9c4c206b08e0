"""What is told of a request's latency when it comes: meant to hold for 99 of a hundred, say.

Of the standard library alone, like all that runs inside Triton. It must not decide.

Method. The queue foresees when a request is answered (`outlook`). By what factor it came out
otherwise is remembered by how long was foreseen, in shares of the objective: a quantile of the
factors of the like is told. Which quantile is steered by what was told too little so far, beyond
what is allowed (the integral in Angelopoulos, Candes & Tibshirani, conformal PID control, NeurIPS
2023): the share that is told too little tends to what is allowed, but for what a burst nobody
foresaw has too many, beyond fifty. Where more were told too little, no less than the objective is
told until that is made up for. Who is put off is known to be late long before he is answered, so
he counts at once.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

IN_NEXT, BEHIND, OVERLOAD = range(3)  # where a request that comes will be: what a moment is like
_REMEMBERED = 1024  # factors of moments of one kind
_ENOUGH = 20  # of them, for a quantile
_KINDS = 8  # of moments in the next batch, each longer by the root of e, up to an objective
_COUNTED = 1000  # requests, for the coverage
_AIM = 0.8  # of the share that is allowed: bursts come on top
_FULL = 15.0  # requests that may be told too little by now: then that share is added
_LEAST, _MOST = 0.05, 5.0  # of the share that is allowed
_OWED, _CREDIT = -50.0, 100.0  # requests, at most
_PATIENT = -2.0  # of them: with fewer what is safe is told
_SHORTEST_S = 1e-6
PATIENCE = 20.0  # objectives that whoever is put off waits until it is his turn
_OFF = 2.0 * PATIENCE  # until he is served, as others' turns come first
_ROOM = 1.2  # for more who are put off


class Told(NamedTuple):
    """What was told of one request, and on what grounds."""

    told_s: float
    foreseen_s: float
    like: tuple[int, int]
    missed: bool = False  # it is counted as late already


class _Factors:
    """The last factors of one kind, in their order and by size."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, factor: float) -> None:
        self._last.append(factor)
        insort(self._sorted, factor)
        if len(self._last) > _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]

    def quantile(self, late: float) -> float | None:
        """Return what all but a share are within; None: too few are known."""
        count = len(self._sorted)
        if count < _ENOUGH:
            return None
        return self._sorted[min(max(int((1.0 - late) * count), 0), count - 1)]


class Promise:
    """Tells, and learns from what came."""

    def __init__(self) -> None:
        self.last_s: float | None = None  # what was told last
        self._kept: deque[bool] = deque(maxlen=_COUNTED)
        self._factors: dict[tuple[int, int], _Factors] = {}
        # Requests that may be told too little, as so many were told enough; below 0: too many were.
        self._credit = 0.0

    @property
    def coverage(self) -> float | None:
        """Return the share of recent requests within what was told of them; None: too few."""
        return sum(self._kept) / len(self._kept) if len(self._kept) >= _ENOUGH else None

    def tell(self, where: int, foreseen_s: float, limit_s: float, allowed: float) -> Told:
        """Return what to tell of a request.

        Args:
            where: it is in the next batch, or behind it, or others were put off before it.
            foreseen_s: how long it takes, if it is in the next batch; in an overload until those
                are served who were put off, if that is longer.
            limit_s: the objective.
            allowed: share of the requests that may take longer than they are told.
        """
        size, foreseen_s = 0, max(foreseen_s, _SHORTEST_S)
        if where == IN_NEXT:
            foreseen_s = min(foreseen_s, limit_s)
            size = max(round(2.0 * math.log(foreseen_s / limit_s)), -_KINDS)
        elif where == OVERLOAD:
            foreseen_s = max(foreseen_s, limit_s)
        else:
            foreseen_s = limit_s
        factors = self._factors.get((where, size))
        late = min(max(_AIM + self._credit / _FULL, _LEAST), _MOST) * allowed
        factor = factors.quantile(late) if factors else None
        safe_s = limit_s
        if where == OVERLOAD:
            safe_s = max(_OFF * limit_s, _ROOM * foreseen_s)
        told_s = safe_s if factor is None else factor * foreseen_s
        # In an overload those who were put off are known last, so factors alone tell too little.
        if self._credit < _PATIENT or where == OVERLOAD:
            told_s = max(told_s, safe_s)
        self.last_s = told_s
        return Told(told_s, foreseen_s, (where, size))

    def late(self, told: Told | None, least_s: float) -> Told | None:
        """Take note that a request will take so long at least; return what was told of it."""
        if told is None or told.missed or told.told_s >= least_s:
            return told
        self._owe(1.0)
        return told._replace(missed=True)

    def ended(self, told: Told | None, took_s: float, allowed: float) -> None:
        """Learn from what a request took."""
        if told is None:
            return
        missed = took_s > told.told_s
        self._kept.append(not missed)
        self._owe(float(missed) - float(told.missed) - allowed)
        self._factors.setdefault(told.like, _Factors()).add(took_s / told.foreseen_s)

    def left(self, told: Told | None) -> None:
        """Take note that a request will get no answer, so that it was told nothing wrong."""
        if told is not None and told.missed:
            self._owe(-1.0)

    def _owe(self, requests: float) -> None:
        self._credit = min(max(self._credit - requests, _OWED), _CREDIT)
