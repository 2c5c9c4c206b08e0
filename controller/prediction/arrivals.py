"""Arrivals of the next moments, as a distribution of the rate.

Owns the forecast of one model's request rate and of the rows a request carries. It must not know
variants or latencies.

Method: several Gamma-Poisson filters with exponential forgetting, each with its own memory, are
mixed by how well each predicted the newest counts (Bayesian model averaging with a fixed share,
Herbster & Warmuth 1998, so that no expert ever dies out). A step in load moves the weight to the
shortest memory within a few ticks; a calm hour moves it to the longest.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MEMORIES_S: Final = (0.06, 0.25, 1.0, 5.0)
_SHARE: Final = 0.02  # weight an expert gets back each observation
_SCORE_MEMORY_S: Final = 0.5  # how long a good or bad forecast counts
# Nine equally likely points of a standard normal: medians of its nine equal slices.
_Z: Final[Floats] = np.array(
    [-1.5932, -0.9674, -0.5895, -0.2822, 0.0, 0.2822, 0.5895, 0.9674, 1.5932]
)
# How many equally likely rates stand for a forecast, and at which quantiles they are.
RATE_POINTS: Final = 6
_LEVELS: Final[Floats] = (np.arange(RATE_POINTS) + 0.5) / RATE_POINTS
_PRIOR_COUNT: Final = 0.5  # Jeffreys' prior of a Poisson rate
_MOST_OWED: Final = 64.0  # a full batch that was counted and did not come
_MIN_STEP_S: Final = 1e-4
_MAX_STEP_S: Final = 5.0


class RateForecast(NamedTuple):
    """A weighted sample of the request rate to come, sorted ascending."""

    rates_rps: Floats  # [points]
    weights: Floats  # [points], sums to 1
    cumulated: list[float]  # the sums of the weights up to each point
    levels_rps: Floats  # [RATE_POINTS], equally likely: they stand for it
    mean_rps: float
    rows_per_request: float
    rows_squared_per_request: float  # second moment, for the spread of the work

    @classmethod
    def of(cls, rates_rps: Floats, weights: Floats, rows: float, squared: float) -> RateForecast:
        """Return the forecast that is these rates, of requests of so many rows."""
        sums = weights.cumsum()
        (levels_rps,) = _compressed(rates_rps[None], weights[None], sums[None])
        mean_rps = float(rates_rps @ weights)
        return cls(rates_rps, weights, sums.tolist(), levels_rps, mean_rps, rows, squared)

    def quantile(self, probability: float) -> float:
        """Return a quantile of the rate in requests per second."""
        at = bisect_left(self.cumulated, probability)
        return float(self.rates_rps[min(at, len(self.cumulated) - 1)])


class ArrivalForecaster:
    """Follows one model's arrivals."""

    def __init__(self) -> None:
        experts = len(_MEMORIES_S)
        self._counts = [_PRIOR_COUNT] * experts
        self._exposure_s = [0.05] * experts
        self._weights = [1.0 / experts] * experts
        self._log_weights = [-math.log(experts)] * experts
        self._owed = 0.0  # arrivals counted too early, to be taken off later ones
        self._rows = 1.0
        self._rows_squared = 1.0
        self._rows_weight = 0.0
        self._forecast: RateForecast | None = None  # until something is observed

    @property
    def rows_per_request(self) -> float:
        """Return the mean rows of a request."""
        return self._rows

    @property
    def mean_rps(self) -> float:
        """Return the expected rate in requests per second, without making a forecast."""
        rates = zip(self._weights, self._counts, self._exposure_s, strict=True)
        return sum([w * (n + _PRIOR_COUNT) / s for w, n, s in rates]) / sum(self._weights)

    def observe(self, arrivals: float, window_s: float) -> None:
        """Take in how many requests arrived in a window.

        A negative count (queue and completion counters are not read at one instant) is owed by
        the next ones.
        """
        if window_s <= 0.0 or not math.isfinite(arrivals):
            return
        self._forecast = None
        window_s = min(max(window_s, _MIN_STEP_S), _MAX_STEP_S)
        arrivals += self._owed
        count = max(arrivals, 0.0)
        self._owed = max(min(arrivals - count, 0.0), -_MOST_OWED)
        fade, *keeps = _fading(window_s)
        lgamma, log, exp = math.lgamma, math.log, math.exp
        arranged = lgamma(count + 1.0)
        scored, counts, exposures_s = [], [], []
        for log_weight, seen, exposure_s, keep in zip(
            self._log_weights, self._counts, self._exposure_s, keeps, strict=True
        ):
            # Predictive of a Gamma-Poisson filter: negative binomial.
            shape, until_s = seen + _PRIOR_COUNT, exposure_s + window_s
            likelihood = (
                lgamma(shape + count)
                - lgamma(shape)
                + shape * log(exposure_s / until_s)
                + count * log(window_s / until_s)
            )
            scored.append(log_weight * fade + likelihood - arranged)
            counts.append(seen * keep + count)
            exposures_s.append(exposure_s * keep + window_s)
        self._counts, self._exposure_s = counts, exposures_s
        top = max(scored)
        raw = [exp(value - top) for value in scored]
        total = sum(raw)
        share = _SHARE / len(raw)
        self._weights = [(1.0 - _SHARE) * value / total + share for value in raw]
        self._log_weights = [log(weight) for weight in self._weights]

    def observe_rows(self, requests: float, rows: float) -> None:
        """Take in how many rows completed requests carried together."""
        if requests <= 0.0 or rows <= 0.0:
            return
        self._forecast = None
        mean = rows / requests
        keep = 0.998**requests
        weight = self._rows_weight * keep + requests
        step = requests / weight
        self._rows += step * (mean - self._rows)
        # The counters give sums only. The squared mean of a small window still sees the spread:
        # E[mean²] = E[r]² + Var[r] / requests.
        variance = max(requests * (mean - self._rows) ** 2, 0.0)
        self._rows_squared += step * (self._rows**2 + variance - self._rows_squared)
        self._rows_weight = weight

    def forecast(self) -> RateForecast:
        """Return the rate of the next moments as a weighted sample."""
        if self._forecast is None:
            renew([self])
        assert self._forecast is not None  # noqa: S101 - it was just made
        return self._forecast

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        return {
            "rows": self._rows,
            "rows_squared": self._rows_squared,
            "rows_weight": min(self._rows_weight, 200.0),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError if it is not."""
        rows, squared, weight = (
            float(state[key]) for key in ("rows", "rows_squared", "rows_weight")
        )
        if not (1.0 <= rows < 1e6 and rows * rows <= squared * 1.001 < 1e12 and weight >= 0.0):
            raise ValueError("rows per request out of range")
        self._forecast = None
        self._rows, self._rows_squared, self._rows_weight = rows, squared, weight


@lru_cache(maxsize=1)
def _fading(window_s: float) -> tuple[float, ...]:
    """Return what a window leaves of scores, and of what each expert saw: many models ask."""
    return tuple(math.exp(-window_s / memory_s) for memory_s in (_SCORE_MEMORY_S, *_MEMORIES_S))


def renew(forecasters: Sequence[ArrivalForecaster]) -> None:
    """Make the forecasts of several models at once, which takes little longer than one."""
    due = [one for one in forecasters if one._forecast is None]  # noqa: SLF001 - of this module
    if not due:
        return
    weights = np.array([one._weights for one in due])  # noqa: SLF001
    weights /= weights.sum(axis=1, keepdims=True)
    shape = np.array([one._counts for one in due]) + _PRIOR_COUNT  # noqa: SLF001
    mean = shape / np.array([one._exposure_s for one in due])  # noqa: SLF001
    # Wilson & Hilferty 1931: the cube root of a Gamma variable is nearly normal.
    ninth = 1.0 / (9.0 * shape)
    roots = 1.0 - ninth[:, :, None] + _Z * np.sqrt(ninth)[:, :, None]
    points = (mean[:, :, None] * np.maximum(roots, 0.0) ** 3).reshape(len(due), -1)
    spread = np.repeat(weights / len(_Z), len(_Z), axis=1)
    order, rows = np.argsort(points, axis=1), np.arange(len(due))[:, None]
    points, spread = points[rows, order], spread[rows, order]
    sums = spread.cumsum(axis=1)
    levels_rps = _compressed(points, spread, sums)
    means_rps = (points * spread).sum(axis=1).tolist()
    for one, rates_rps, often, until, levels, expected_rps in zip(
        due, points, spread, sums.tolist(), levels_rps, means_rps, strict=True
    ):
        each, squared = one._rows, max(one._rows_squared, one._rows**2)  # noqa: SLF001
        one._forecast = RateForecast(  # noqa: SLF001
            rates_rps, often, until, levels, expected_rps, each, squared
        )


def _compressed(rates_rps: Floats, weights: Floats, cumulated: Floats) -> Floats:
    """Return equally likely rates that stand for each forecast. [forecasts, RATE_POINTS].

    Args:
        rates_rps: ascending. [forecasts, points].
        weights: of these; they sum to 1. [forecasts, points].
        cumulated: their sums up to each. [forecasts, points].
    """
    middles = cumulated - 0.5 * weights
    if len(middles) == 1:
        return np.asarray(np.interp(_LEVELS, middles[0], rates_rps[0]))[None]
    # Between the points about each level, and at the ends as they are (as `np.interp` does it).
    last = rates_rps.shape[1] - 1
    after = (middles[:, None, :] <= _LEVELS[:, None]).sum(axis=2)
    low, high = np.maximum(after - 1, 0), np.minimum(after, last)
    rows = np.arange(len(rates_rps))[:, None]
    low_at, high_at = middles[rows, low], middles[rows, high]
    low_rps, high_rps = rates_rps[rows, low], rates_rps[rows, high]
    slope = (high_rps - low_rps) / np.where(high > low, high_at - low_at, 1.0)
    return np.asarray(slope * (_LEVELS - low_at) + low_rps)
