"""How systems in the field predict service times, for benchmarks/predictors.py.

Re-implemented from their descriptions. Each predicts a mean; quantiles come from its own last
residuals, the same way for all.
"""

import math
from collections import deque

import numpy as np
from contestants import Floats, Stream, Value, prior

_SHORTEST_S = 1e-6


class Linear:
    """Seconds linear in rows over each variant's last batches (Clipper, BentoML: 50, every 5 s)."""

    def __init__(self, stream: Stream, *, window: int = 50, period_s: float = 5.0) -> None:
        self._window = [deque[Value](maxlen=window) for _ in range(stream.variants)]
        self._rows = np.arange(1, stream.max_rows + 1, dtype=np.float64)
        self._table = prior(stream)
        self._period_s = period_s
        self._fitted_s = -math.inf

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in; fit where the period is over."""
        for value in poll:
            self._window[value.variant].append(value)
        if now_s - self._fitted_s < self._period_s and now_s > 2.0 * self._period_s:
            return
        self._fitted_s = now_s
        for variant, window in enumerate(self._window):
            found = self._fit(window)
            if found is not None:
                fixed_s, row_s = found
                self._table[variant] = np.log(np.maximum(fixed_s + row_s * self._rows, _SHORTEST_S))

    def _fit(self, window: deque[Value]) -> tuple[float, float] | None:
        if not window:
            return None
        rows = np.array([value.rows for value in window], dtype=np.float64)
        mean_s = np.array([value.mean_s for value in window])
        count = np.array([value.count for value in window], dtype=np.float64)
        return _line(rows, mean_s, count)

    def mean(self) -> Floats:
        """Return log seconds. [variants, rows]."""
        return self._table


class Bucketed(Linear):
    """The same over the means of buckets, negative coefficients refused (Dynamo: 64 samples)."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, window=64, period_s=0.0)

    def _fit(self, window: deque[Value]) -> tuple[float, float] | None:
        buckets: dict[int, list[Value]] = {}
        for value in window:
            buckets.setdefault(int(math.log2(value.rows)), []).append(value)
        if len(buckets) < 2:
            return None
        rows, mean_s = [], []
        for values in buckets.values():
            count = sum(value.count for value in values)
            rows.append(sum(value.rows * value.count for value in values) / count)
            mean_s.append(sum(value.mean_s * value.count for value in values) / count)
        fixed_s, row_s = _line(np.array(rows), np.array(mean_s), np.ones(len(rows)))
        return (fixed_s, row_s) if fixed_s >= 0.0 and row_s >= 0.0 else None


class Longest:
    """The longest of the last ten of each variant and size (Clockwork)."""

    def __init__(self, stream: Stream) -> None:
        self._seen: dict[tuple[int, int], deque[float]] = {}
        self._stream = stream

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in."""
        del now_s
        for value in poll:
            key = (value.variant, value.rows)
            self._seen.setdefault(key, deque(maxlen=10)).append(value.mean_s)

    def mean(self) -> Floats:
        """Return log seconds; a size that was not seen costs as much a row as the next that was."""
        table = prior(self._stream)
        for variant in range(self._stream.variants):
            known = sorted(rows for v, rows in self._seen if v == variant)
            for rows in range(1, self._stream.max_rows + 1) if known else ():
                near = min(known, key=lambda one: abs(one - rows))
                longest_s = max(self._seen[variant, near])
                table[variant, rows - 1] = math.log(longest_s * rows / near)
        return table


def _line(rows: Floats, mean_s: Floats, count: Floats) -> tuple[float, float]:
    """Return (seconds, seconds a row) of the line of least squares; one size: in proportion."""
    centre, level_s = np.average(rows, weights=count), np.average(mean_s, weights=count)
    spread = float(np.average((rows - centre) ** 2, weights=count))
    if spread == 0.0:
        return 0.0, float(level_s / centre)
    row_s = float(np.average((rows - centre) * (mean_s - level_s), weights=count)) / spread
    return float(level_s - row_s * centre), row_s
