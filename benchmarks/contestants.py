"""Who takes part in the comparison of predictors of service times (benchmarks/predictors.py)."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import BayesianRidge, QuantileRegressor, SGDRegressor

from controller.prediction.service import ServiceTimes
from controller.telemetry.observation import BatchSample

Floats = NDArray[np.float64]

QUANTILES = np.array([0.5, 0.9, 0.99])
_WINDOW = 400  # values that a refit sees
_REFIT_POLLS = 4
_RESIDUALS = 400
_PRIOR_LOG = math.log(0.010)


@dataclass(frozen=True, slots=True)
class Value:
    """The mean time of some batches of one size that ended between two polls."""

    variant: int
    rows: int
    count: int
    mean_s: float


@dataclass(frozen=True, slots=True)
class Stream:
    """Polls of values."""

    variants: int
    max_rows: int
    polls: list[list[Value]]


class Predictor(Protocol):
    """Learns polls, predicts the quantiles of log seconds for the whole table."""

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in."""
        ...

    def table(self) -> Floats:
        """Return log seconds. [variants, rows, quantiles]."""
        ...


class Point(Protocol):
    """Learns polls, predicts one number for each cell of the table."""

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in."""
        ...

    def mean(self) -> Floats:
        """Return log seconds. [variants, rows]."""
        ...


@dataclass
class Ours:
    """The governor's: pooled table, one fast drift factor."""

    stream: Stream

    def __post_init__(self) -> None:
        """Start without knowledge."""
        names = tuple(str(v) for v in range(self.stream.variants))
        self._service = ServiceTimes(names, self.stream.max_rows, usual_rows=self.stream.max_rows)

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in."""
        samples = [BatchSample(str(v.variant), v.rows, v.count, v.mean_s, 0.1) for v in poll]
        self._service.observe(samples, now_s)

    def mean(self) -> Floats:
        """Return log seconds. [variants, rows]."""
        return np.log(self._service.table_s()) - 0.5 * self._service.noise[:, None] ** 2

    @property
    def noise(self) -> Floats:
        """Return the spread of log seconds. [variants]."""
        return self._service.noise


@dataclass
class OwnSpread:
    """The governor's with the spread that it tracks itself: what its rollouts are told."""

    stream: Stream

    def __post_init__(self) -> None:
        """Start without knowledge."""
        self._point = Ours(self.stream)

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in."""
        self._point.learn(poll, now_s)

    def table(self) -> Floats:
        """Return log seconds. [variants, rows, quantiles]."""
        return self._point.mean()[:, :, None] + (
            self._point.noise[:, None, None] * norm.ppf(QUANTILES)
        )


@dataclass
class Sgd:
    """SGD on log seconds with a decaying rate."""

    stream: Stream

    def __post_init__(self) -> None:
        """Start at the prior."""
        self._model = SGDRegressor(learning_rate="invscaling", eta0=0.1, power_t=0.15, alpha=1e-5)
        self._grid = _features(self.stream)
        self._known = False

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take one step for each value."""
        del now_s
        if poll:
            rows, logs, weights = _arrays(poll, self._grid)
            self._model.partial_fit(rows, logs - _PRIOR_LOG, sample_weight=np.minimum(weights, 5.0))
            self._known = True

    def mean(self) -> Floats:
        """Return log seconds. [variants, rows]."""
        if not self._known:
            return prior(self.stream)
        flat = self._model.predict(self._grid.reshape(-1, self._grid.shape[2]))
        return flat.reshape(self._grid.shape[:2]) + _PRIOR_LOG


@dataclass
class Refitted:
    """A model that is fitted anew every few polls to the last values."""

    stream: Stream
    make: Callable[[], BayesianRidge]

    def __post_init__(self) -> None:
        """Start at the prior."""
        self._window: deque[Value] = deque(maxlen=_WINDOW)
        self._grid = _features(self.stream)
        self._polls = 0
        self._table = prior(self.stream)

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in; fit every few of them."""
        del now_s
        self._window.extend(poll)
        self._polls += 1
        if len(self._window) >= 5 and (self._polls % _REFIT_POLLS == 0 or self._polls < 10):
            rows, logs, weights = _arrays(self._window, self._grid)
            model = self.make().fit(rows, logs, sample_weight=weights)
            flat = model.predict(self._grid.reshape(-1, self._grid.shape[2]))
            self._table = flat.reshape(self._grid.shape[:2])

    def mean(self) -> Floats:
        """Return log seconds. [variants, rows]."""
        return self._table


@dataclass
class Kalman:
    """ALERT's slow-down over a profile, which is another predictor's table or its own first sight.

    Alone it takes the mean of the first polls as its profile.
    """

    stream: Stream
    over: "Refitted | None" = None
    profile_polls: int = 20

    def __post_init__(self) -> None:
        """Start without a slow-down."""
        self._slow, self._variance, self._noise = 0.0, 0.05, 0.01
        self._profile = self.over or Refitted(self.stream, BayesianRidge)
        self._polls = 0

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Follow the slow-down; learn the profile."""
        self._polls += 1
        table = self._profile.mean()
        corrected = []
        for value in poll:
            seen = math.log(value.mean_s) - table[value.variant, value.rows - 1]
            if self._polls > 4:
                off = seen - self._slow
                self._noise += 0.05 * (min(off * off * value.count, 1.0) - self._noise)
                self._variance += 0.1 * self._noise
                gain = self._variance / (self._variance + self._noise / value.count + 1e-3)
                self._slow += gain * off
                self._variance *= 1.0 - gain
            corrected.append(
                Value(value.variant, value.rows, value.count, value.mean_s * math.exp(-self._slow))
            )
        if self.over is not None:
            self._profile.learn(corrected, now_s)
        elif self._polls <= self.profile_polls:
            self._profile.learn(poll, now_s)

    def mean(self) -> Floats:
        """Return log seconds. [variants, rows]."""
        return self._profile.mean() + self._slow


@dataclass
class WithResiduals:
    """Quantiles for who predicts a mean: those of his last residuals."""

    point: Point
    _residuals: deque[float] = field(default_factory=lambda: deque(maxlen=_RESIDUALS))

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Note how far off the prediction was, then learn."""
        table = self.point.mean()
        for value in poll:
            self._residuals.append(
                math.log(value.mean_s) - float(table[value.variant, value.rows - 1])
            )
        self.point.learn(poll, now_s)

    def table(self) -> Floats:
        """Return log seconds. [variants, rows, quantiles]."""
        known = len(self._residuals) >= 20
        off = np.quantile(self._residuals, QUANTILES) if known else np.array([0.0, 0.2, 0.5])
        return self.point.mean()[:, :, None] + off


@dataclass
class Quantiles:
    """One model for each quantile, fitted anew every few polls."""

    stream: Stream
    make: Callable[[float], "HistGradientBoostingRegressor | QuantileRegressor"]

    def __post_init__(self) -> None:
        """Start at the prior."""
        self._window: deque[Value] = deque(maxlen=_WINDOW)
        self._grid = _features(self.stream)
        self._polls = 0
        self._table = prior(self.stream)[:, :, None] + np.array([0.0, 0.2, 0.5])

    def learn(self, poll: list[Value], now_s: float) -> None:
        """Take a poll in; fit every few of them."""
        del now_s
        self._window.extend(poll)
        self._polls += 1
        if len(self._window) >= 20 and (self._polls % _REFIT_POLLS == 0 or self._polls < 10):
            rows, logs, weights = _arrays(self._window, self._grid)
            grid = self._grid.reshape(-1, self._grid.shape[2])
            found = [
                self.make(float(q)).fit(rows, logs, sample_weight=weights).predict(grid)
                for q in QUANTILES
            ]
            ordered = np.maximum.accumulate(np.stack(found, axis=1), axis=1)
            self._table = ordered.reshape(*self._grid.shape[:2], len(QUANTILES))

    def table(self) -> Floats:
        """Return log seconds. [variants, rows, quantiles]."""
        return self._table


PREDICTORS: dict[str, Callable[[Stream], Predictor]] = {
    "governor": lambda s: WithResiduals(Ours(s)),
    "governor, its own spread": OwnSpread,
    "SGD, decaying rate": lambda s: WithResiduals(Sgd(s)),
    "Bayesian ridge": lambda s: WithResiduals(Refitted(s, BayesianRidge)),
    "Kalman on a profile": lambda s: WithResiduals(Kalman(s)),
    "Kalman on Bayesian ridge": lambda s: WithResiduals(Kalman(s, over=Refitted(s, BayesianRidge))),
    "boosted quantiles": lambda s: Quantiles(
        s,
        lambda q: HistGradientBoostingRegressor(
            loss="quantile", quantile=q, max_iter=50, min_samples_leaf=5
        ),
    ),
    "quantile regression": lambda s: Quantiles(
        s, lambda q: QuantileRegressor(quantile=q, alpha=1e-4, solver="highs")
    ),
}


def _features(stream: Stream) -> Floats:
    """Return a shared curve, and each variant's level and slope. [variants, rows, features]."""
    log_n = np.log(np.arange(1, stream.max_rows + 1))
    grid = np.zeros((stream.variants, stream.max_rows, 2 + 2 * stream.variants))
    grid[:, :, 0] = log_n
    grid[:, :, 1] = np.maximum(log_n - math.log(4.0), 0.0)
    for variant in range(stream.variants):
        grid[variant, :, 2 + 2 * variant] = 1.0
        grid[variant, :, 3 + 2 * variant] = log_n
    return grid


def prior(stream: Stream) -> Floats:
    """Return what is taken before anything is known, as log seconds. [variants, rows]."""
    log_n = np.log(np.arange(1, stream.max_rows + 1))
    return np.broadcast_to(_PRIOR_LOG + log_n, (stream.variants, stream.max_rows)).copy()


def _arrays(values: Iterable[Value], grid: Floats) -> tuple[Floats, Floats, Floats]:
    """Return features, log seconds and weights."""
    listed = list(values)
    return (
        np.array([grid[v.variant, v.rows - 1] for v in listed]),
        np.log([v.mean_s for v in listed]),
        np.array([float(v.count) for v in listed]),
    )
