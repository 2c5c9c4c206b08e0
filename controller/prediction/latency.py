"""The latency distribution of every candidate, rolled forward from the live backlog.

Owns the arithmetic from (service times, arrivals, what waits now) to latencies. It must not know
policies or choose.

Model. A variant is a server that takes up to N waiting rows at once. Rows that wait on a variant
stay there; arrivals of the next window go to the candidate. The queue is a Brownian motion
with drift, reflected where it is empty; a request waits for what is left of the batch in
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
_LEVELS: Final[Floats] = (np.arange(_RATE_POINTS) + 0.5) / _RATE_POINTS
# Points of a standard normal (means of its slices), of its absolute value, and how often they are.
_SPREAD: Final[Floats] = np.array([-0.9658, 0.1288, 0.8610, 1.5885, 2.4209])
_AWAY: Final[Floats] = np.array([0.2562, 0.7636, 1.3002, 1.9121, 2.6652])
_SPREAD_OFTEN: Final[Floats] = np.array([0.4, 0.3, 0.2, 0.08, 0.02])
# Equally likely points of a window.
_MOMENTS: Final[Floats] = np.array([0.25, 0.75])
# Shares of the running batch that are left when a request arrives, equally likely.
_LEFT: Final[Floats] = np.array([0.2, 0.8])
# A request's own rows, in standard deviations from their mean, and how often: skewed, as sizes are.
_OWN_OFFSETS: Final[Floats] = np.array([-0.45, 0.5, 1.7, 3.3])
_OWN_OFTEN: Final[Floats] = np.array([0.62, 0.24, 0.10, 0.04])
_POINTS: Final = _RATE_POINTS * len(_MOMENTS) * len(_SPREAD)
_WEIGHTS: Final[Floats] = np.multiply.outer(
    np.repeat(_OWN_OFTEN / len(_LEFT), len(_LEFT)),
    np.tile(_SPREAD_OFTEN, _RATE_POINTS * len(_MOMENTS)) / (_RATE_POINTS * len(_MOMENTS)),
).ravel()  # own sizes x left x points, flat


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

    def quantiles_s(self, *probabilities: float) -> tuple[Floats, ...]:
        """Return latency quantiles, each per candidate, in seconds."""
        order = self.latency_s.argsort(axis=1)
        below = self.weights.take(order).cumsum(axis=1)
        below[:, -1] = np.inf  # however the sum is rounded
        rows = np.arange(len(order))
        found = [order[rows, (below < probability).argmin(axis=1)] for probability in probabilities]
        return tuple(self.latency_s[rows, at] for at in found)

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
    width = int(limits.max())  # what no candidate forms need not be computed
    table_s = np.ascontiguousarray(table_s[:, :width])
    count = len(table_s)
    rows = np.arange(1, width + 1)
    allowed = rows[None, :] <= limits[:, None]
    throughput = np.where(allowed, rows[None, :] / table_s, 0.0).max(axis=1)

    mean_rows, squared_rows = forecast.rows_per_request, forecast.rows_squared_per_request
    arriving = _compress(forecast) * mean_rows  # rows per second, [rates]
    burstiness = squared_rows / mean_rows

    # The batch that feeds itself: as many rows arrive while it runs as it holds.
    fits = allowed[:, None, :] & (
        rows[None, None, :] >= arriving[None, :, None] * table_s[:, None, :]
    )
    steady = np.where(fits.any(axis=2), fits.argmax(axis=2) + 1, limits[:, None])
    smallest = np.minimum(math.ceil(mean_rows - 0.25), limits)[:, None]
    steady = np.maximum(steady, smallest)
    first = (np.arange(count) * width - 1)[:, None]  # a candidate's in the flat table, less one
    steady_s = table_s.take(steady + first)  # [candidates, rates]
    busy = np.minimum(arriving[None, :] * steady_s / steady, 1.0)
    moments = _MOMENTS * horizon_s
    began = np.maximum(waiting_rows, running_rows)
    running = _batches_by(moments, table_s, first, began, arriving, steady, smallest, limits)

    # Points: rate x moment x fluctuation, flat.
    surplus = arriving[None, :] - throughput[:, None]
    queue = _queue_by(moments, waiting_rows, surplus, np.sqrt(arriving * burstiness))
    rates_at = np.repeat(arriving, _POINTS // _RATE_POINTS)
    running_at = np.repeat(running.reshape(count, -1), len(_SPREAD), axis=1)
    # Where so much of what waits now is left, the batch in execution is no smaller.
    left_now = np.minimum(queue, np.minimum(waiting_rows, limits)[:, None])
    running_at = np.maximum(running_at, left_now.astype(np.int64))
    in_use = np.repeat(busy, _POINTS // _RATE_POINTS, axis=1)
    in_use[waiting_rows > 0.0] = 1.0
    running_s = in_use * table_s.take(running_at + first)
    spread_rows = math.sqrt(max(squared_rows - mean_rows**2, 0.0))
    own_rows = np.maximum(mean_rows + _OWN_OFFSETS * spread_rows, 1.0)
    # Whole batches go ahead. The rest of the queue, and what arrives until then, shares the own,
    # unless the own rows do not fit beside it.
    full, full_s = limits[:, None], table_s[np.arange(count), limits - 1][:, None, None]
    rest = np.fmod(queue, full)[:, None]
    spills = rest + own_rows[:, None] > full[:, :, None]  # [candidates, own sizes, points]
    ahead_s = ((queue // full)[:, None] + spills) * full_s
    ahead_s = ahead_s[:, :, None] + running_s[:, None, None] * _LEFT[:, None]
    joined = np.where(spills, 0.0, rest) + own_rows[:, None]
    batch = np.maximum(running_at[:, None, None], joined[:, :, None] + rates_at * ahead_s)
    batch = np.minimum(np.rint(batch), full[:, :, None, None]).astype(np.int64)
    own_s = table_s.take(batch + first[..., None, None])  # [candidates, own sizes, left, points]
    latency = (own_s + ahead_s).reshape(count, -1)
    latency += contention * np.minimum(latency, other_work_s[:, None])

    # What stays on another variant than the fastest is worked off beside it.
    share = np.full(count, contention)
    share[throughput.argmax()] = 1.0
    left = waiting_rows[:, None] + (arriving[None, :] - throughput[:, None]) * horizon_s
    swing = np.sqrt(arriving * burstiness * horizon_s)[None, :, None] * _SPREAD
    left_s = (share / throughput)[:, None, None] * (left[:, :, None] + swing)
    left_s += contention * other_work_s[:, None, None]
    one = np.minimum(np.rint(mean_rows), limits).astype(np.int64)
    return Rollout(
        latency_s=latency,
        weights=_WEIGHTS,
        utilization_ratio=forecast.mean_rps * mean_rows / throughput,
        leftover_s=np.maximum(left_s, 0.0).sum(axis=(1, 2)) / (left_s.size / count),
        throughput_rows_s=throughput,
        single_s=table_s[np.arange(count), np.maximum(one, 1) - 1],
    )


def _queue_by(moments_s: Floats, waiting_rows: Floats, surplus: Floats, spread: Floats) -> Floats:
    """Return points of the queue's length at some moments. [candidates, points].

    A Brownian motion with a drift that is reflected at an empty queue (Harrison 1985). It is at
    least what waits now plus the motion, and at least the motion's highest value so far, which is
    how a reflected one that starts empty is distributed (time reversed).

    Args:
        moments_s: when.
        waiting_rows: now. [candidates].
        surplus: rows a second that arrive beyond what can be served. [candidates, rates].
        spread: the motion's deviation after a second. [rates].

    """
    drift = (surplus[:, :, None] * moments_s)[..., None]
    root = np.multiply.outer(spread, np.sqrt(moments_s))[..., None]  # [rates, moments, 1]
    free = waiting_rows[:, None, None, None] + drift + root * _SPREAD
    # Where the queue shrinks on the whole, its highest value came before the moment.
    falling = np.minimum(surplus, -1e-9)[:, :, None, None]
    away = root * _AWAY
    peak_share = np.minimum(-0.5 * away / (falling * moments_s[:, None]), 1.0)  # of sqrt(time)
    highest = away * peak_share + falling * moments_s[:, None] * peak_share**2
    # Where it grows, the highest value is the last.
    rising = np.maximum(drift, 0.0)
    grown = rising + root * (_SPREAD + (_AWAY - _SPREAD) * np.exp(-2.0 * rising / root))
    reflected = np.where(surplus[:, :, None, None] > 0.0, grown, highest)
    return np.maximum(np.maximum(free, reflected), 0.0).reshape(len(surplus), -1)


def _batches_by(
    moments_s: Floats,
    table_s: Floats,
    first: NDArray[np.int64],
    began_rows: Floats,
    arriving: Floats,
    steady: NDArray[np.int64],
    smallest: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the batch in execution at some moments. [candidates, rates, moments].

    A batch gathers what arrived while the one before it ran: an overload takes a while to fill
    the largest one.
    """
    low = smallest[:, :, None]
    gathered = np.ceil(arriving[None, :, None] * table_s[:, None, :]).astype(np.int64)
    following = np.minimum(np.maximum(gathered, low), limits[:, None, None])
    width = table_s.shape[1]  # of `following`, too: [candidates, rates, rows]
    row = (np.arange(steady.size) * width - 1).reshape(steady.shape)
    began = np.minimum(np.maximum(np.rint(began_rows), 1.0), limits).astype(np.int64)
    batches = np.empty((_TRANSIENT + 1, *steady.shape), dtype=np.int64)
    batches[0] = np.maximum(began[:, None], smallest)
    for i in range(1, _TRANSIENT):
        batches[i] = following.take(batches[i - 1] + row)
    batches[_TRANSIENT] = steady
    ended_s = table_s.take(batches[:_TRANSIENT] + first).cumsum(axis=0)
    ended = (ended_s[..., None] < moments_s).sum(axis=0)  # how many, by each moment
    at = ended * steady.size + np.arange(steady.size).reshape(*steady.shape, 1)
    return np.asarray(batches.take(at))


def _compress(forecast: RateForecast) -> Floats:
    """Return equally likely rates that stand for the forecast. [_RATE_POINTS]."""
    cumulated = forecast.weights.cumsum() - 0.5 * forecast.weights
    return np.interp(_LEVELS, cumulated, forecast.rates_rps)
