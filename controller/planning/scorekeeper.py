"""How a model does: attainment, burn rate, effective quality over the last minute.

Owns the counting of completed requests against the objective. It must not decide.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np

from controller.telemetry.observation import VariantReading

_WINDOW_S: Final = 60.0
_LIMIT: Final = 20_000
_FEWEST: Final = 20
_LATELY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Score:
    """The last minute. None where too little was seen (or no traces come)."""

    attainment: float | None
    burn_rate: float | None  # 1: the error budget is spent exactly as fast as allowed
    effective_quality: float | None
    mean_quality: float | None
    measured_s: float | None  # latency at the objective's percentile
    requests: int
    rejected_rps: float = 0.0  # lately, by a limit of Triton's queue
    rejected_total: int = 0


class Scorekeeper:
    """Counts outcomes of one model."""

    def __init__(self) -> None:
        # (time, latency, quality) of those requests that are known one by one
        self._outcomes: deque[tuple[float, float, float]] = deque(maxlen=_LIMIT)
        # (second, completed, failed, rejected) of all
        self._counts: deque[tuple[float, int, int, int]] = deque(maxlen=_LIMIT)
        self._rejected = 0
        self._served_s: dict[str, float] = {}  # when each variant last served

    def add(self, now_s: float, latency_s: float, quality: float) -> None:
        """Take in one completed request."""
        self._outcomes.append((now_s, latency_s, quality))

    def count(
        self, now_s: float, readings: Sequence[VariantReading], serving: str | None = None
    ) -> None:
        """Take in how many requests ended on the variants of this model.

        A variant that others use, too, counts while it serves this model, and just after.

        Args:
            now_s: the observation's time.
            readings: of the variants.
            serving: Triton's name of the one that serves; None: not known.
        """
        if serving is not None:
            self._served_s[serving] = now_s
            readings = [
                reading
                for reading in readings
                if now_s - self._served_s.get(reading.model, -math.inf) <= _LATELY_S
            ]
        completed = failed = rejected = 0
        for reading in readings:
            completed += reading.completed_requests
            failed += reading.failed_requests
            rejected += reading.rejected_requests
        if not completed and not failed:
            return
        second, self._rejected = math.floor(now_s), self._rejected + rejected
        if self._counts and self._counts[-1][0] == second:
            _, *before = self._counts.pop()
            completed, failed, rejected = (
                completed + before[0],
                failed + before[1],
                rejected + before[2],
            )
        self._counts.append((second, completed, failed, rejected))

    def score(self, now_s: float, limit_s: float, percentile: float) -> Score:
        """Return the score of the last minute."""
        for kept in (self._outcomes, self._counts):
            while kept and now_s - kept[0][0] > _WINDOW_S:
                kept.popleft()
        count = len(self._outcomes)
        lately = takewhile(lambda one: now_s - one[0] <= _LATELY_S, reversed(self._counts))
        rejected_rps = sum(one[3] for one in lately) / _LATELY_S
        answered = self._answered_ratio()
        if count < _FEWEST:
            nothing = count == 0 and answered == 0.0 and len(self._counts) >= _FEWEST
            attainment = 0.0 if nothing else None
            burn_rate = None if attainment is None else 1.0 / (1.0 - percentile / 100.0)
            return Score(
                attainment, burn_rate, attainment, None, None, count, rejected_rps, self._rejected
            )
        table = np.array(self._outcomes)
        met = table[:, 1] <= limit_s
        # One request of several is traced, and of those that failed none is: all are counted.
        attainment = float(met.mean()) * answered
        return Score(
            attainment=attainment,
            burn_rate=(1.0 - attainment) / (1.0 - percentile / 100.0),
            effective_quality=float((met * table[:, 2]).mean()) * answered,
            mean_quality=float(table[:, 2].mean()),
            measured_s=float(np.quantile(table[:, 1], percentile / 100.0)),
            requests=count,
            rejected_rps=rejected_rps,
            rejected_total=self._rejected,
        )

    def _answered_ratio(self) -> float:
        """Return which share of the requests that ended got an answer."""
        completed = sum(one[1] for one in self._counts)
        failed = sum(one[2] for one in self._counts)
        return completed / (completed + failed) if failed else 1.0
