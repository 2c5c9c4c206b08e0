"""How a model does: attainment, burn rate, effective quality over the last minute.

Owns the counting of completed requests against the objective. It must not decide.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

_WINDOW_S: Final = 60.0
_LIMIT: Final = 20_000
_FEWEST: Final = 20


@dataclass(frozen=True, slots=True)
class Score:
    """The last minute. None where too little was seen (or no traces come)."""

    attainment: float | None
    burn_rate: float | None  # 1: the error budget is spent exactly as fast as allowed
    effective_quality: float | None
    mean_quality: float | None
    measured_s: float | None  # latency at the objective's percentile
    requests: int


class Scorekeeper:
    """Counts outcomes of one model."""

    def __init__(self) -> None:
        # (time, latency, quality), a failed request has an infinite latency
        self._outcomes: deque[tuple[float, float, float]] = deque(maxlen=_LIMIT)

    def add(self, now_s: float, latency_s: float, quality: float) -> None:
        """Take in one completed request; an infinite latency is a failed one."""
        self._outcomes.append((now_s, latency_s, quality))

    def score(self, now_s: float, limit_s: float, percentile: float) -> Score:
        """Return the score of the last minute."""
        while self._outcomes and now_s - self._outcomes[0][0] > _WINDOW_S:
            self._outcomes.popleft()
        count = len(self._outcomes)
        if count < _FEWEST:
            return Score(None, None, None, None, None, count)
        table = np.array(self._outcomes)
        met = table[:, 1] <= limit_s
        attainment = float(met.mean())
        finite = table[np.isfinite(table[:, 1])]
        return Score(
            attainment=attainment,
            burn_rate=(1.0 - attainment) / (1.0 - percentile / 100.0),
            effective_quality=float((met * table[:, 2]).mean()),
            mean_quality=float(finite[:, 2].mean()) if len(finite) else None,
            measured_s=float(np.quantile(finite[:, 1], percentile / 100.0))
            if len(finite)
            else None,
            requests=count,
        )
