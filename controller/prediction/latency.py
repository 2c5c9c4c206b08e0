"""The latency distribution of every candidate, rolled forward from the live backlog.

Owns the arithmetic from (service times, arrivals, what waits now) to latencies. It must not know
policies or choose.

Model. A variant is a server that takes up to N waiting rows at once. Rows that wait on a variant
stay there; arrivals of the next window go to the candidate. The queue follows its fluid path plus
a normal fluctuation of Poisson arrivals; a request waits for what is left of the batch in
execution and for the full batches ahead of it, then for its own batch, which takes in the rest of
the queue and what arrived meanwhile. The batch in execution grows towards the one that feeds
itself, batch by batch: an overload takes a while to fill the largest. Work that still sits on
other variants of the same device slows the candidate as processor sharing does, scaled by
`contention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.arrivals import RateForecast

Floats = NDArray[np.float64]

_TRANSIENT: Final = 5  # batches that are followed one by one
_RATE_POINTS: Final = 6
# Equally likely points of a standard normal, and of a window.
_SPREAD: Final[Floats] = np.array([-1.1503, -0.3186, 0.3186, 1.1503])
_MOMENTS: Final[Floats] = np.array([0.25, 0.75])
# Shares of the running batch that are left when a request arrives, equally likely.
_LEFT: Final[Floats] = np.array([0.2, 0.8])
# A request's own rows, in standard deviations from their mean, and how often: skewed, as sizes are.
_OWN_OFFSETS: Final[Floats] = np.array([-0.45, 0.5, 1.7, 3.3])
_OWN_OFTEN: Final[Floats] = np.array([0.62, 0.24, 0.10, 0.04])
_POINTS: Final = _RATE_POINTS * len(_MOMENTS) * len(_SPREAD)
_WEIGHTS: Final[Floats] = np.repeat(
    _OWN_OFTEN / (len(_LEFT) * _POINTS), len(_LEFT) * _POINTS
)  # own sizes x left x points, flat


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the next window looks like on each candidate. First axis: candidates."""

    latency_s: Floats  # [candidates, points]
    weights: Floats  # [points], sums to 1
    utilization_ratio: Floats  # [candidates], at the mean rate
    # [candidates], expected work left at the window's end, in seconds of the fastest one's time
    leftover_s: Floats
    throughput_rows_s: Floats  # [candidates]
    single_s: Floats  # [candidates], a batch of one mean request
    rate_rps: float

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


def roll_forward(
    *,
    table_s: Floats,
    limits: NDArray[np.int64],
    waiting_rows: Floats,
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
        other_work_s: seconds of work waiting elsewhere on the same device. [candidates].
        forecast: the arrivals to come.
        horizon_s: until the next decision takes effect.
        contention: 0 (work elsewhere does not slow a candidate) to 1 (they share one device).

    """
    width = int(limits.max())  # what no candidate forms need not be computed
    table_s = np.ascontiguousarray(table_s[:, :width])
    count = len(table_s)
    rows = np.arange(1, width + 1)
    allowed = rows[None, :] <= limits[:, None]
    throughput = np.where(allowed, rows[None, :] / table_s, 0.0).max(axis=1)

    rates = _compress(forecast)
    mean_rows = forecast.rows_per_request
    arriving = rates * mean_rows  # rows per second, [rates]
    burstiness = forecast.rows_squared_per_request / mean_rows

    # The batch that feeds itself: as many rows arrive while it runs as it holds.
    fits = allowed[:, None, :] & (
        rows[None, None, :] >= arriving[None, :, None] * table_s[:, None, :]
    )
    spread_rows = math.sqrt(max(forecast.rows_squared_per_request - mean_rows**2, 0.0))
    steady = np.where(fits.any(axis=2), fits.argmax(axis=2) + 1, limits[:, None])
    smallest = np.minimum(math.ceil(mean_rows - 0.25), limits)[:, None]
    steady = np.maximum(steady, smallest)
    steady_s = np.take_along_axis(table_s, steady - 1, axis=1)  # [candidates, rates]
    busy = np.minimum(arriving[None, :] * steady_s / steady, 1.0)
    moments = _MOMENTS * horizon_s
    first = (np.arange(count) * width - 1)[:, None, None]
    running = _batches_by(moments, table_s, first, waiting_rows, arriving, steady, smallest, limits)

    # Points: rate x moment x fluctuation, flat.
    drift = (arriving[None, :] - throughput[:, None])[:, :, None, None] * moments[:, None]
    wobble = np.sqrt(arriving * burstiness)[:, None, None] * (
        np.sqrt(moments)[:, None] * _SPREAD[None, :]
    )
    queue = waiting_rows[:, None] + (drift + wobble).reshape(count, _POINTS)
    np.maximum(queue, 0.0, out=queue)
    rates_at = np.repeat(arriving, _POINTS // _RATE_POINTS)
    steady_at = np.repeat(running.reshape(count, -1), len(_SPREAD), axis=1)
    in_use = np.maximum(busy, (waiting_rows > 0.0)[:, None])[:, :, None]
    running_s = np.repeat(
        (in_use * table_s.take(running + first)).reshape(count, -1), len(_SPREAD), axis=1
    )
    own_rows = np.maximum(mean_rows + _OWN_OFFSETS * spread_rows, 1.0)
    # Whole batches go ahead; the rest of the queue, and what arrives until then, shares the own.
    whole = np.floor(queue / limits[:, None])
    full_s = table_s[np.arange(count), limits - 1]
    ahead_s = (whole * full_s[:, None])[:, None, :] + running_s[:, None, :] * _LEFT[:, None]
    joined = (queue - whole * limits[:, None])[:, None, :] + rates_at * ahead_s
    batch = np.maximum(steady_at[:, None, None, :], joined[:, None] + own_rows[:, None, None])
    batch = np.minimum(np.rint(batch), limits[:, None, None, None]).astype(np.int64)
    own_s = table_s.take(batch + first[..., None])  # [candidates, own sizes, left, points]
    latency = (own_s + ahead_s[:, None]).reshape(count, -1)
    latency += contention * np.minimum(latency, other_work_s[:, None])

    end = waiting_rows[:, None] + (arriving[None, :] - throughput[:, None]) * horizon_s
    swing = np.sqrt(arriving * burstiness * horizon_s)[None, :, None] * _SPREAD
    # What stays on another variant than the fastest is worked off beside it.
    share = np.full(count, contention)
    share[throughput.argmax()] = 1.0
    left_s = (share / throughput)[:, None, None] * (end[:, :, None] + swing)
    left_s += contention * other_work_s[:, None, None]
    leftover = np.maximum(left_s, 0.0).mean(axis=(1, 2))
    one = np.minimum(np.rint(mean_rows), limits).astype(np.int64)
    return Rollout(
        latency_s=latency,
        weights=_WEIGHTS,
        utilization_ratio=forecast.mean_rps * mean_rows / throughput,
        leftover_s=leftover,
        throughput_rows_s=throughput,
        single_s=table_s[np.arange(count), np.maximum(one, 1) - 1],
        rate_rps=forecast.mean_rps,
    )


def _batches_by(
    moments_s: Floats,
    table_s: Floats,
    first: NDArray[np.int64],
    waiting_rows: Floats,
    arriving: Floats,
    steady: NDArray[np.int64],
    smallest: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the batch in execution at some moments. [candidates, rates, moments].

    A batch gathers what arrived while the one before it ran: an overload takes a while to fill
    the largest one.
    """
    low, high = smallest[:, :, None], limits[:, None, None]
    gathered = np.ceil(arriving[None, :, None] * table_s[:, None, :]).astype(np.int64)
    following = np.minimum(np.maximum(gathered, low), high)  # [candidates, rates, rows]
    width = table_s.shape[1]
    row = (np.arange(steady.size) * width - 1).reshape(*steady.shape, 1)
    began = np.minimum(np.maximum(np.rint(waiting_rows), 1.0), limits).astype(np.int64)
    passed_s = np.zeros((*steady.shape, len(moments_s)))
    batch = np.broadcast_to(np.maximum(began[:, None, None], low), passed_s.shape)
    for _ in range(_TRANSIENT):
        passed_s += table_s.take(batch + first)
        batch = np.where(passed_s < moments_s, following.take(batch + row), batch)
    return np.where(passed_s < moments_s, steady[:, :, None], batch)


def _compress(forecast: RateForecast) -> Floats:
    """Return equally likely rates that stand for the forecast. [_RATE_POINTS]."""
    cumulated = np.cumsum(forecast.weights) - 0.5 * forecast.weights
    levels = (np.arange(_RATE_POINTS) + 0.5) / _RATE_POINTS
    return np.interp(levels, cumulated, forecast.rates_rps)
