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

With k instances k batches run together, each (1 + (k - 1) c) times as long as alone, where c is
what was learned of how much they are in each other's way (`controller.prediction.overlap`). What
waits is then taken in as by one server that much faster, when all are busy (Sakasegawa 1977 says
how often that is); a batch itself gets no faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.prediction.arrivals import RATE_POINTS, RateForecast
from controller.prediction.rollout import (
    AWAY,
    LEFT,
    MOMENTS,
    OWN_OFFSETS,
    POINTS,
    SPREAD,
    Rollout,
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_TRANSIENT: Final = 5  # batches that are followed one by one
# The points of a queue's length, rate x moment x fluctuation, flat: which rate, which moment, and
# the fluctuation.
_RATE_AT: Final = np.repeat(np.arange(RATE_POINTS), POINTS // RATE_POINTS)
_MOMENT_AT: Final = np.tile(np.repeat(np.arange(len(MOMENTS)), len(SPREAD)), RATE_POINTS)
_SPREAD_AT: Final = np.tile(SPREAD, POINTS // len(SPREAD))
_AWAY_AT: Final = np.tile(AWAY, POINTS // len(AWAY))


class Situation(NamedTuple):
    """What waits and what is to come for one model. First axis of arrays: candidates."""

    table_s: Floats  # service times. [candidates, rows 1..max]
    limits: NDArray[np.int64]  # the largest batch each candidate forms. [candidates]
    waiting_rows: Floats  # rows that wait on each candidate now. [candidates]
    running_rows: Floats  # of the batch in execution, as the last were; 0: none. [candidates]
    other_work_s: Floats  # seconds of work waiting elsewhere on the same device. [candidates]
    forecast: RateForecast
    instances: Floats | None = None  # of each candidate; None: one each. [candidates]
    overlap: Floats | None = None  # how much these are in each other's way, from 0. [candidates]


def roll_forward(
    situations: Sequence[Situation], *, horizon_s: float, contention: float
) -> Rollout:
    """Roll every candidate's queue forward over one window.

    Args:
        situations: of models; their candidates are stacked in the result, in order.
        horizon_s: until the next decision takes effect.
        contention: 0 (work elsewhere does not slow a candidate) to 1 (they share one device).

    """
    sizes = [len(situation.limits) for situation in situations]
    limits, waiting_rows, running_rows, other_work_s = (
        np.concatenate(arrays)
        for arrays in zip(
            *((s.limits, s.waiting_rows, s.running_rows, s.other_work_s) for s in situations),
            strict=True,
        )
    )
    waiting_rows, other_work_s = waiting_rows.astype(np.float32), other_work_s.astype(np.float32)
    width = int(limits.max())  # what no candidate forms need not be computed
    # In single precision: it is enough, and takes half of the time.
    table_s = np.concatenate(
        [situation.table_s[:, :width] for situation in situations], dtype=np.float32
    )
    count = len(table_s)
    instances, overlap = _together(situations)
    # Between two batches that begin while all instances are busy.
    paced_s = table_s if instances is None else table_s / gain(instances, overlap)[:, None]
    rows = np.arange(1, width + 1, dtype=np.float32)
    allowed = rows[None, :] <= limits[:, None]
    throughput = np.where(allowed, rows[None, :] / paced_s, 0.0).max(axis=1)

    mean_rps, mean_rows, squared_rows, arriving = _spread_out(situations, sizes)
    burstiness = (squared_rows / mean_rows).astype(np.float32)

    # The batch that feeds itself: as many rows arrive while it runs as it holds.
    fits = allowed[:, None, :] & (rows[None, None, :] >= arriving[:, :, None] * paced_s[:, None, :])
    steady = np.where(fits.any(axis=2), fits.argmax(axis=2) + 1, limits[:, None])
    smallest = np.minimum(np.ceil(mean_rows - 0.25), limits).astype(np.int64)[:, None]
    steady = np.maximum(steady, smallest)
    first = (np.arange(count) * width - 1)[:, None]  # a candidate's in the flat table, less one
    steady_s = paced_s.take(steady + first)  # [candidates, rates]
    busy = np.minimum(arriving * steady_s / steady.astype(np.float32), 1.0)
    moments = MOMENTS * horizon_s
    began = np.maximum(waiting_rows, running_rows)
    running = _batches_by(moments, paced_s, first, began, arriving, steady, smallest, limits)

    # Points: rate x moment x fluctuation, flat.
    surplus = arriving - throughput[:, None]
    queue = _queue_by(moments, waiting_rows, surplus, np.sqrt(arriving * burstiness[:, None]))
    rates_at = arriving[:, _RATE_AT]
    running_at = np.repeat(running.reshape(count, -1), len(SPREAD), axis=1)
    # Where so much of what waits now is left, the batch in execution is no smaller.
    left_now = np.minimum(queue, np.minimum(waiting_rows, limits)[:, None])
    running_at = np.maximum(running_at, left_now.astype(np.int64))
    all_busy = (
        busy if instances is None else busy ** (np.sqrt(2.0 * instances + 2.0) - 1.0)[:, None]
    )
    in_use = np.repeat(all_busy, POINTS // RATE_POINTS, axis=1)
    in_use[waiting_rows > 0.0] = 1.0
    running_s = in_use * paced_s.take(running_at + first)
    latency = _latencies(
        table_s,
        paced_s,
        limits,
        _own_rows(mean_rows, squared_rows),
        queue,
        rates_at,
        running_at,
        running_s,
        None if instances is None else _slowed_by(busy, (instances - 1.0) * overlap),
    )
    if contention > 0.0 and other_work_s.any():
        shared = np.minimum(latency, other_work_s[:, None])
        shared *= contention
        latency += shared

    starts = [0, *itertools.accumulate(sizes[:-1])]
    fastest = throughput == np.repeat(np.maximum.reduceat(throughput, starts), sizes)
    # What stays on another variant than the fastest is worked off beside it.
    share = np.where(fastest, 1.0, contention)
    left = waiting_rows[:, None] + surplus * horizon_s
    swing = np.sqrt(arriving * (burstiness * horizon_s)[:, None])
    left_s = (left[:, :, None] + swing[:, :, None] * SPREAD) * (share / throughput)[:, None, None]
    left_s += contention * other_work_s[:, None, None]
    one = np.minimum(np.rint(mean_rows), limits).astype(np.int64)
    return Rollout(
        latency_s=latency,
        utilization_ratio=mean_rps * mean_rows / throughput,
        leftover_s=np.maximum(left_s, 0.0).sum(axis=(1, 2)) / (left_s.size / count),
        throughput_rows_s=throughput,
        single_s=table_s[np.arange(count), np.maximum(one, 1) - 1],
    )


def gain(instances: Floats, overlap: Floats) -> Singles:
    """Return how many times as much all instances together do as one. [candidates].

    Args:
        instances: of each candidate. [candidates].
        overlap: how much these are in each other's way: 0 not at all, 1 as if there were but one.
    """
    return np.asarray(instances / (1.0 + (instances - 1.0) * overlap), dtype=np.float32)


def _own_rows(mean_rows: Floats, squared_rows: Floats) -> Floats:
    """Return the rows of the requests that are looked at. [candidates, own sizes]."""
    deviation = np.sqrt(np.maximum(squared_rows - mean_rows**2, 0.0))[:, None]
    own_rows = mean_rows[:, None]
    if deviation.any():  # else all are alike, and so would their latencies be
        own_rows = own_rows + OWN_OFFSETS * deviation
    return np.maximum(own_rows, 1.0)


def _slowed_by(busy: Singles, others: Floats) -> Singles:
    """Return by how much batches of other instances slow one's own. [candidates, points]."""
    return np.repeat(1.0 + busy * others.astype(np.float32)[:, None], POINTS // RATE_POINTS, axis=1)


def _together(situations: Sequence[Situation]) -> tuple[Floats | None, Floats]:
    """Return the instances of all candidates, None: one each; and how much they overlap."""
    if all(situation.instances is None for situation in situations):
        return None, np.empty(0)
    instances, overlap = [], []
    for situation in situations:
        ones = np.ones(len(situation.limits))
        instances.append(ones if situation.instances is None else situation.instances)
        overlap.append(ones if situation.overlap is None else situation.overlap)
    return np.concatenate(instances), np.concatenate(overlap)


def _latencies(
    table_s: Singles,
    paced_s: Singles,
    limits: NDArray[np.int64],
    own_rows: Floats,
    queue: Singles,
    rates_at: Singles,
    running_at: NDArray[np.int64],
    running_s: Singles,
    beside: Singles | None,
) -> Singles:
    """Return the latency of a request of each size at each point. [candidates, all points].

    Whole batches go ahead. The rest of the queue, and what arrives until then, shares the own,
    unless the own rows do not fit beside it.

    In place: nothing else takes as long.

    Args:
        table_s: service times. [candidates, rows 1..max].
        paced_s: the same, between two batches that begin while all instances are busy.
        limits: the largest batch each candidate forms. [candidates].
        own_rows: of the request. [candidates, own sizes].
        queue: rows that wait. [candidates, points].
        rates_at: rows that arrive a second. [candidates, points].
        running_at: rows of the batch in execution. [candidates, points].
        running_s: until the next may begin after it; 0: one may at once. [candidates, points].
        beside: by how much batches of other instances slow the own one; None: there is but one.
    """
    count, width = table_s.shape
    own = own_rows.astype(np.float32)[:, :, None]
    full = limits.astype(np.float32)[:, None]
    batches = np.floor(queue / full)
    rest = (queue - batches * full)[:, None]
    # 1 where it does, else 0: arithmetic of numbers and truths together is slow.
    spills = (rest + own > full[:, :, None]).astype(np.float32)  # [candidates, own sizes, points]
    full_s = paced_s[np.arange(count), limits - 1][:, None, None]
    joined = rest * (np.float32(1.0) - spills) + own
    left_s = running_s[:, None, None] * LEFT[:, None]
    # From here on [candidates, own sizes, left, points].
    latency = ((batches[:, None] + spills) * full_s)[:, :, None] + left_s
    rows = latency * rates_at[:, None, None]
    rows += joined[:, :, None]
    np.maximum(rows, running_at.astype(np.float32)[:, None, None], out=rows)
    np.minimum(rows, full[:, :, None, None], out=rows)
    first = np.arange(count, dtype=np.float32) * width - 1.0  # in the flat table, less one
    rows += first[:, None, None, None] + np.float32(0.5)  # cut off below: it rounds
    own_s = table_s.take(rows.astype(np.intp), mode="clip")
    latency += own_s if beside is None else own_s * beside[:, None, None]
    return np.asarray(latency.reshape(count, -1))


def _spread_out(
    situations: Sequence[Situation], sizes: list[int]
) -> tuple[Floats, Floats, Floats, Singles]:
    """Return each candidate's forecast: requests a second, rows and squared rows of a request.

    And points of the rows a second, equally likely. [candidates, rates].
    """
    forecasts = [situation.forecast for situation in situations]
    moments = np.array(
        [
            (forecast.mean_rps, forecast.rows_per_request, forecast.rows_squared_per_request)
            for forecast in forecasts
        ]
    )
    rates = np.array([forecast.levels_rps for forecast in forecasts]) * moments[:, 1:2]
    mean_rps, mean_rows, squared_rows = np.repeat(moments, sizes, axis=0).T
    return (
        mean_rps,
        mean_rows,
        squared_rows,
        np.repeat(rates.astype(np.float32), sizes, axis=0),
    )


def _queue_by(
    moments_s: Singles, waiting_rows: Singles, surplus: Singles, spread: Singles
) -> Singles:
    """Return points of the queue's length at some moments. [candidates, points].

    A Brownian motion with a drift that is reflected at an empty queue (Harrison 1985). It is at
    least what waits now plus the motion, and at least the motion's highest value so far, which is
    how a reflected one that starts empty is distributed (time reversed).

    Args:
        moments_s: when.
        waiting_rows: now. [candidates].
        surplus: rows a second that arrive beyond what can be served. [candidates, rates].
        spread: the motion's deviation after a second. [candidates, rates].

    """
    # Each point has its own number of everything: short axes that are stretched are slow.
    surplus, spread = surplus[:, _RATE_AT], spread[:, _RATE_AT]
    at_s = moments_s[_MOMENT_AT]
    drift, root = surplus * at_s, spread * np.sqrt(at_s)
    free = waiting_rows[:, None] + drift + root * _SPREAD_AT
    # Where the queue shrinks on the whole, its highest value came before the moment.
    falling = np.minimum(surplus, np.float32(-1e-9)) * at_s
    away = root * _AWAY_AT
    peak_share = np.minimum(-0.5 * away / falling, 1.0)  # of sqrt(time)
    highest = away * peak_share + falling * peak_share**2
    # Where it grows, the highest value is the last.
    rising = np.maximum(drift, 0.0)
    grown = rising + root * (_SPREAD_AT + (_AWAY_AT - _SPREAD_AT) * np.exp(-2.0 * rising / root))
    reflected = np.where(surplus > 0.0, grown, highest)
    return np.asarray(np.maximum(np.maximum(free, reflected), 0.0))


def _batches_by(
    moments_s: Singles,
    table_s: Singles,
    first: NDArray[np.int64],
    began_rows: Floats,
    arriving: Singles,
    steady: NDArray[np.int64],
    smallest: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the batch in execution at some moments. [candidates, rates, moments].

    A batch gathers what arrived while the one before it ran: an overload takes a while to fill
    the largest one.
    """
    low = smallest[:, :, None]
    gathered = np.ceil(arriving[:, :, None] * table_s[:, None, :]).astype(np.int64)
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
    own = np.arange(steady.size).reshape(steady.shape)
    found = np.empty((*steady.shape, len(moments_s)), dtype=np.int64)
    for moment, at_s in enumerate(moments_s):
        ended = (ended_s < at_s).sum(axis=0)  # how many, by then
        found[..., moment] = batches.take(ended * steady.size + own)
    return found
