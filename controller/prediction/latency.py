"""The latency distribution of every candidate, simulated from the live backlog.

Owns the arithmetic from (service times, arrivals, what waits now) to latencies. It must not know
policies or choose.

Model. A fixed sample of futures, the same for every candidate and at every tick, so that two
candidates differ by what they are and not by luck. In each the rate is one of the forecast's and
requests arrive as a Poisson process. A variant takes what waits, up to its largest batch, as soon
as it is free. Rows that wait on a variant stay there; arrivals of the window go to the candidate;
after the window they go to the fastest, and what is left of the candidate's work is done beside
it. Work on other variants of the same device slows the candidate as processor sharing does, scaled
by `contention`. All futures of all candidates advance together, one batch a step; batches that are
short against the window are taken several at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.arrivals import RateForecast

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RATES: Final = 8
_LANES: Final = 8 * _RATES  # futures
_STEPS: Final = 7  # batches of a window that are followed one by one
_EVENTS: Final = 40  # arrivals of a window on the mean; more of them are drawn together
_MOST_EVENTS: Final = 2 * _EVENTS + 12
_LOOKED_AT: Final = 3  # requests of a future
_WEIGHTS: Final[Floats] = np.full(_LANES * _LOOKED_AT, 1.0 / (_LANES * _LOOKED_AT))
_NEVER_S: Final = 1e6
_LEAST_SHARE: Final = 0.5  # of the device for what is left behind
_SLOWEST_RPS: Final = 1e-6
_WAITS: Final = 0.5  # of an arrival: less of one is a rounding error
# A request that comes while short batches follow each other waits for a part of one, on the mean.
_QUICK_WAIT: Final = 1.25


def _unit_events(random: np.random.Generator) -> Floats:
    """Return events of Poisson processes of rate 1, in antithetic pairs. [lanes, events]."""
    uniform = random.random((_LANES // 2, _MOST_EVENTS))
    gaps = -np.log(np.clip(np.concatenate([uniform, 1.0 - uniform]), 1e-9, 1.0))
    events = np.cumsum(gaps, axis=1)[random.permutation(_LANES)]
    return np.asarray(events, dtype=np.float64)


_RANDOM: Final = np.random.default_rng(20261125)  # whatever it is: all candidates share it
_UNIT: Final[Floats] = _unit_events(_RANDOM)
_REGULAR: Final[Floats] = np.arange(0.5, _MOST_EVENTS)
_LANE: Final[Ints] = np.arange(_LANES)
# Whether something is in execution when the window begins, and how much of it is left.
_RUNS: Final[Floats] = (_RANDOM.permutation(_LANES) + 0.5) / _LANES
_LEFT: Final[Floats] = (_RANDOM.permutation(_LANES) + 0.5) / _LANES
_PLACES: Final[Floats] = ((np.arange(_LOOKED_AT) + 0.5) / _LOOKED_AT)[:, None]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the next window looks like on each candidate. First axis: candidates."""

    latency_s: Floats  # [candidates, points]
    weights: Floats  # [points], sums to 1
    utilization_ratio: Floats  # [candidates], at the mean rate
    leftover_s: Floats  # [candidates], expected device time of the work left at the window's end
    throughput_rows_s: Floats  # [candidates]
    single_s: Floats  # [candidates], a batch of one mean request

    def quantiles_s(self, *probabilities: float) -> tuple[Floats, ...]:
        """Return latency quantiles, each per candidate, in seconds."""
        order = np.argsort(self.latency_s, axis=1)
        cumulated = np.cumsum(self.weights[order], axis=1)
        last = self.latency_s.shape[1] - 1
        found = []
        for probability in probabilities:
            index = np.minimum((cumulated < probability).sum(axis=1), last)
            picked = np.take_along_axis(order, index[:, None], axis=1)
            found.append(np.take_along_axis(self.latency_s, picked, axis=1)[:, 0])
        return tuple(found)

    def miss_ratio(self, limit_s: Floats, noise: float) -> Floats:
        """Return the predicted share of requests over a limit, per candidate.

        Args:
            limit_s: the latency a request must not exceed. [candidates].
            noise: the spread of the logarithm of a latency about its point.
        """
        distance = np.log(np.maximum(self.latency_s, 1e-9) / limit_s[:, None]) / max(noise, 1e-3)
        # The logistic curve is within 0.01 of the normal's (Bowling et al. 2009).
        missed = 1.0 / (1.0 + np.exp(-np.clip(1.702 * distance, -50.0, 50.0)))
        return np.asarray(missed @ self.weights)


@dataclass(frozen=True, slots=True)
class _Variants:
    """The candidates' batches."""

    table_s: Floats  # [candidates, rows 1..widest]
    limits: Ints  # [candidates]
    throughput: Floats  # rows a second. [candidates]
    first: Ints  # index in the flat table, less one row. [candidates, 1]

    @staticmethod
    def of(table_s: Floats, limits: Ints) -> _Variants:
        width = int(limits.max())  # what no candidate forms need not be computed
        table_s = np.ascontiguousarray(table_s[:, :width])
        rows = np.arange(1, width + 1)
        throughput = np.where(rows <= limits[:, None], rows / table_s, 0.0).max(axis=1)
        first = np.arange(len(table_s))[:, None] * width - 1
        return _Variants(table_s, limits, throughput, first)

    def batch_s(self, rows: Floats) -> Floats:
        """Return the time of batches. [candidates, ...] for rows of that shape."""
        first = self.first.reshape(-1, *(1,) * (rows.ndim - 1))
        limits = self.limits.reshape(first.shape)
        return self.table_s.take(
            np.minimum(np.maximum(np.rint(rows), 1.0), limits).astype(np.int64) + first
        )

    def steady_busy(self, rate_rows_s: float) -> Floats:
        """Return the share of the time that batches feeding themselves take. [candidates]."""
        rows = np.arange(1, self.table_s.shape[1] + 1)
        fits = (rows >= rate_rows_s * self.table_s) & (rows <= self.limits[:, None])
        steady = np.where(fits.any(axis=1), fits.argmax(axis=1) + 1, self.limits)
        steady_s = self.table_s[np.arange(len(steady)), steady - 1]
        return np.asarray(np.minimum(rate_rows_s * steady_s / steady, 1.0))


class _Futures:
    """When rows arrive, in clumps of equal size. Lanes are futures."""

    def __init__(self, forecast: RateForecast, horizon_s: float) -> None:
        mean_rows = forecast.rows_per_request
        rates = np.maximum(_compress(forecast) * mean_rows, _SLOWEST_RPS)
        self.mean_rows_s = float(rates.mean())
        rows_s = np.repeat(rates, _LANES // _RATES)
        # Requests of uneven size are as irregular as fewer of their size-weighted mean.
        clump = forecast.rows_squared_per_request / mean_rows
        per_window = float(rows_s[-1]) * horizon_s / clump
        together = max(per_window / _EVENTS, 1.0)
        self.clump_rows = clump * together
        self.events = min(int(1.7 * per_window / together) + 10, _MOST_EVENTS)
        # Many arrivals drawn as one would be too irregular.
        regular = _REGULAR[: self.events]
        unit = regular + together**-0.5 * (_UNIT[:, : self.events] - regular)
        self.at_s = unit * (self.clump_rows / rows_s)[:, None]  # [lanes, events]
        span_s = 4.0 * max(float(self.at_s[:, -1].max()), horizon_s) + 1.0
        self._latest_s = 0.5 * span_s
        self._offset_s = _LANE * span_s
        self._first = _LANE * self.events
        self._keys = (self.at_s + self._offset_s[:, None]).ravel()

    def arrived_rows(self, until_s: Floats) -> Floats:
        """Return the rows that came by then. [..., lanes] for moments of that shape."""
        keys = np.minimum(until_s, self._latest_s) + self._offset_s
        count = np.searchsorted(self._keys, keys, side="right") - self._first
        return np.asarray(count * self.clump_rows)

    def next_s(self, rows: Floats) -> Floats:
        """Return when the first row after so many comes. [..., lanes]."""
        event = np.rint(rows / self.clump_rows).astype(np.int64)
        known = np.minimum(np.maximum(event, 0), self.events - 1)
        at_s = self.at_s.take(known + self._first)
        return np.where(event < self.events, at_s, _NEVER_S)


def roll_forward(
    *,
    table_s: Floats,
    limits: Ints,
    waiting_rows: Floats,
    running_rows: Floats,
    other_work_s: Floats,
    forecast: RateForecast,
    horizon_s: float,
    contention: float,
) -> Rollout:
    """Roll every candidate's queue forward over one window.

    Args:
        table_s: service times. [candidates, rows 1..max].
        limits: the largest batch each candidate forms. [candidates].
        waiting_rows: rows that wait on each candidate now. [candidates].
        running_rows: rows of the batch in execution, as the last ones were; 0: none. [candidates].
        other_work_s: seconds of work waiting elsewhere on the same device. [candidates].
        forecast: the arrivals to come.
        horizon_s: until the next decision takes effect.
        contention: 0 (work elsewhere does not slow a candidate) to 1 (they share one device).

    """
    variants = _Variants.of(table_s, limits)
    futures = _Futures(forecast, horizon_s)
    utilization = forecast.mean_rps * forecast.rows_per_request / variants.throughput
    # What is in execution now: with some chance, and with some part of it left.
    in_use = np.where(running_rows > 0.0, np.minimum(utilization, 1.0), 0.0)
    in_use[waiting_rows > 0.0] = 1.0
    # Where rows wait and no batch ended lately, the one in execution is a long one.
    run_rows = np.where(running_rows > 0.0, running_rows, waiting_rows)
    run_s = variants.batch_s(run_rows[:, None])
    free_s = np.where(in_use[:, None] > _RUNS, _LEFT * run_s, 0.0)
    residual_s = 0.5 * in_use * run_s[:, 0]
    elsewhere_s = contention * (other_work_s + residual_s.sum() - residual_s)
    latency_s, left_s = _simulate(
        variants,
        futures,
        start_rows=waiting_rows[:, None],
        free_s=free_s,
        elsewhere_s=np.broadcast_to(elsewhere_s[:, None], free_s.shape),
        horizon_s=horizon_s,
        contention=contention,
    )
    return Rollout(
        latency_s=latency_s,
        weights=_WEIGHTS,
        utilization_ratio=utilization,
        leftover_s=left_s,
        throughput_rows_s=variants.throughput,
        single_s=variants.batch_s(np.full((len(limits), 1), forecast.rows_per_request))[:, 0],
    )


def _simulate(
    variants: _Variants,
    futures: _Futures,
    *,
    start_rows: Floats,
    free_s: Floats,
    elsewhere_s: Floats,
    horizon_s: float,
    contention: float,
) -> tuple[Floats, Floats]:
    """Return latencies of some requests and the work that is left, per candidate.

    Args:
        variants: the candidates' batches.
        futures: when rows arrive.
        start_rows: that wait now. [candidates, 1].
        free_s: when the batch in execution ends. [candidates, lanes].
        elsewhere_s: work that slows a candidate. [candidates, lanes].
        horizon_s: until when arrivals come to the candidate.
        contention: how much of the device the fastest variant keeps from what is left.

    """
    limits = variants.limits[:, None].astype(np.float64)
    step_s = horizon_s / _STEPS
    total_rows = futures.arrived_rows(np.full(_LANES, horizon_s))  # [lanes]
    place = np.maximum(np.ceil(total_rows / futures.clump_rows * _PLACES), 1.0)
    event = np.minimum(place, futures.events).astype(np.int64) - 1
    born_s = futures.at_s[_LANE, event][:, None]  # [looked at, 1, lanes]
    place_rows = place[:, None] * futures.clump_rows + start_rows  # [looked at, candidates, lanes]
    done_s = np.full(place_rows.shape, np.nan)
    taken_rows = np.zeros(free_s.shape)
    least_rows = _WAITS * futures.clump_rows
    for _ in range(_STEPS + 2):  # each takes such a part of the window at least
        waiting = start_rows + futures.arrived_rows(free_s) - taken_rows
        idle = waiting < least_rows
        begin_s = free_s
        if idle.any():
            coming_s = futures.next_s(taken_rows - start_rows)
            begin_s = np.where(idle, np.maximum(free_s, coming_s), free_s)
        active = begin_s < horizon_s
        if not active.any():
            break
        batch = np.minimum(np.where(idle, futures.clump_rows, waiting), limits)
        alone_s = variants.batch_s(batch)
        quick = alone_s < step_s
        # Several short batches together: what arrives meanwhile goes along, if there is time.
        until_s = begin_s + step_s
        more = start_rows + futures.arrived_rows(until_s - alone_s) - taken_rows
        can = variants.throughput[:, None] * (step_s - np.minimum(elsewhere_s, 0.5 * step_s))
        upto = taken_rows + np.where(quick, np.maximum(batch, np.minimum(more, can)), batch)
        end_s = begin_s + alone_s + np.minimum(alone_s, elsewhere_s)
        ready_s = np.where(quick, begin_s + 0.5 * (step_s + alone_s), end_s)
        inside = active & (place_rows > taken_rows) & (place_rows <= upto + least_rows)
        done_s = np.where(inside, np.maximum(ready_s, born_s + _QUICK_WAIT * alone_s), done_s)
        worked_s = np.where(active, np.where(quick, step_s, alone_s), 0.0)
        elsewhere_s = np.maximum(elsewhere_s - worked_s, 0.0)
        taken_rows = np.where(active, upto, taken_rows)
        free_s = np.where(active, np.where(quick, until_s, end_s), free_s)
    left_rows = np.maximum(start_rows + total_rows - taken_rows, 0.0)
    ahead_rows = np.maximum(place_rows - taken_rows - least_rows, 0.0)
    left = _Left(ahead_rows, left_rows, born_s, free_s)
    later_s = _work_off(variants, futures, left, horizon_s=horizon_s, contention=contention)
    done_s = np.where(np.isnan(done_s), later_s, done_s)
    latency_s = np.moveaxis(done_s - born_s, 0, 2).reshape(len(limits), -1)
    whole = np.floor(left_rows / limits)
    rest = left_rows - whole * limits
    left_s = whole * variants.batch_s(limits)
    left_s += np.where(rest > least_rows, variants.batch_s(rest), 0.0)
    left_s += np.maximum(free_s - horizon_s, 0.0) + elsewhere_s
    return latency_s, left_s.mean(axis=1)


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left after the window. [candidates, lanes], of each request that is looked at."""

    ahead_rows: Floats  # in line before it. [looked at, candidates, lanes]
    rows: Floats  # in line altogether
    born_s: Floats  # when it came. [looked at, 1, lanes]
    free_s: Floats  # when the batch in execution ends


def _work_off(
    variants: _Variants, futures: _Futures, left: _Left, *, horizon_s: float, contention: float
) -> Floats:
    """Return when what is left is done. [looked at, candidates, lanes].

    Beside the fastest, to which arrivals go then; on the fastest, together with those.
    """
    limits = variants.limits[:, None].astype(np.float64)
    fastest = int(variants.throughput.argmax())
    busy = float(variants.steady_busy(futures.mean_rows_s)[fastest])
    share = np.full(limits.shape, max(1.0 - contention * busy, _LEAST_SHARE))
    share[fastest] = 1.0
    whole = np.floor(left.ahead_rows / limits)
    starts_s = left.free_s + whole * variants.batch_s(limits) / share
    batch_rows = left.rows - whole * limits
    joining_s = np.maximum(starts_s[:, fastest] - horizon_s, 0.0)
    batch_rows[:, fastest] += futures.mean_rows_s * joining_s
    batches_s = np.stack([variants.batch_s(rows) for rows in batch_rows])
    return np.asarray(np.maximum(starts_s, left.born_s) + batches_s / share)


def _compress(forecast: RateForecast) -> Floats:
    """Return equally likely rates that stand for the forecast. [_RATES]."""
    cumulated = np.cumsum(forecast.weights) - 0.5 * forecast.weights
    levels = (np.arange(_RATES) + 0.5) / _RATES
    return np.interp(levels, cumulated, forecast.rates_rps)
