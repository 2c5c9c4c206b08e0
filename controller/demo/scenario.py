"""The bursty load of the demo: when requests are sent and how many rows each has.

Owns the arrival process, scaled to what the machine can do. Pure: the seed decides everything,
and every arm gets the same schedule. It must not send anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID_S = 0.005
"""Resolution of the rate curve."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the load is like, relative to what the variants can do. Times in seconds."""

    calm_ratio: tuple[float, float] = (0.40, 0.50)  # of the best variant's capacity
    burst_ratio: tuple[float, float] = (0.50, 0.70)  # of the fastest variant's capacity
    calm_s: tuple[float, float] = (6.0, 10.0)
    burst_s: tuple[float, float] = (0.8, 1.6)  # at full height, ramps not counted
    ramp_s: tuple[float, float] = (0.8, 1.6)  # geometric, up and down
    rows: tuple[int, ...] = (1, 2, 4, 8)
    row_weights: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)

    @property
    def rows_per_request(self) -> float:
        """Return the mean size of a request in rows."""
        return float(np.dot(self.rows, self.row_weights) / sum(self.row_weights))

    @property
    def cycle_s(self) -> float:
        """Return the mean time from one burst to the next."""
        return sum(sum(of) / 2 for of in (self.calm_s, self.burst_s, self.ramp_s, self.ramp_s))


@dataclass(frozen=True, slots=True)
class Scale:
    """What the machine can do, in requests of the load's mix per second.

    Measured through the load generator itself, so it never asks for more than that can send.
    """

    best_rps: float  # of the variant with the highest quality
    fastest_rps: float


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst. Times in seconds from the start of the counted part."""

    start_s: float  # the first moment above the calm rate
    full_s: float  # from here at full height ...
    fall_s: float  # ... to here
    end_s: float  # calm again
    rate_rps: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Every request of one arm. Times before 0 are the warm-up, which is not counted."""

    due_s: Floats  # intended send times, ascending
    rows: Ints
    page: Ints  # which of the prepared requests of that size; the sender takes it modulo
    duration_s: float  # of the counted part
    warmup_s: float
    bursts: tuple[Burst, ...]
    rate_at_s: Floats  # the curve that the arrivals were drawn from, for the plot
    rate_rps: Floats
    nights_s: tuple[tuple[float, float], ...] = ()  # when the device is shared: starts and ends


def bursty(
    scale: Scale, *, seed: int, duration_s: float, warmup_s: float = 0.0, shape: Shape | None = None
) -> Schedule:
    """Draw a schedule: calm stretches and bursts of random height and phase, Poisson arrivals.

    The warm-up is calm. The counted part begins calm and ends calm.
    """
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    count = max(1, round(duration_s / shape.cycle_s))
    ups_s, highs_s, downs_s = (
        rng.uniform(*of, count) for of in (shape.ramp_s, shape.burst_s, shape.ramp_s)
    )
    # The gaps fill what the bursts leave: seeds differ in phase and height, little in burden.
    gaps = rng.uniform(*shape.calm_s, count + 1)
    calm_s = max(duration_s - float(ups_s.sum() + highs_s.sum() + downs_s.sum()), 0.0)
    gaps_s = gaps / gaps.sum() * calm_s
    heights_rps = rng.uniform(*shape.burst_ratio, count) * scale.fastest_rps
    calms_rps = rng.uniform(*shape.calm_ratio, count + 1) * scale.best_rps
    knots_s, knots_rps = [-warmup_s], [float(calms_rps[0])]
    bursts: list[Burst] = []
    now_s = 0.0
    for index in range(count):
        start_s = now_s + float(gaps_s[index])
        full_s = start_s + float(ups_s[index])
        fall_s = full_s + float(highs_s[index])
        now_s = fall_s + float(downs_s[index])
        # A burst is one: where the variants are alike, calm may lie above the fastest's share.
        height_rps = max(float(heights_rps[index]), knots_rps[-1])
        bursts.append(Burst(start_s, full_s, fall_s, now_s, height_rps))
        knots_s += [start_s, full_s, fall_s, now_s]
        knots_rps += [knots_rps[-1], height_rps, height_rps, float(calms_rps[index + 1])]
    knots_s.append(max(duration_s, now_s))
    knots_rps.append(knots_rps[-1])
    return arrivals(rng, shape, knots_s, knots_rps, warmup_s, tuple(bursts))


def steps(
    scale: Scale, *, seed: int, count: int, warmup_s: float = 0.0, shape: Shape | None = None
) -> Schedule:
    """Draw a schedule of sudden steps in load, each at a random phase, with calm between them.

    The ramp is one grid step: this is what the time to relief is measured on.
    """
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    calm_rps = float(np.mean(shape.calm_ratio)) * scale.best_rps
    height_rps = max(float(np.mean(shape.burst_ratio)) * scale.fastest_rps, calm_rps)
    knots_s, knots_rps = [-warmup_s], [calm_rps]
    bursts: list[Burst] = []
    now_s = 0.0
    for _ in range(count):
        start_s = now_s + float(rng.uniform(2.0, 3.0))
        full_s, fall_s = start_s + GRID_S, start_s + 1.0
        now_s = fall_s + GRID_S
        bursts.append(Burst(start_s, full_s, fall_s, now_s, height_rps))
        knots_s += [start_s, full_s, fall_s, now_s]
        knots_rps += [calm_rps, height_rps, height_rps, calm_rps]
    knots_s.append(now_s + 1.0)
    knots_rps.append(calm_rps)
    return arrivals(rng, shape, knots_s, knots_rps, warmup_s, tuple(bursts))


def steady(rate_rps: float, *, seed: int, duration_s: float, warmup_s: float = 0.0) -> Schedule:
    """Draw a schedule of one rate throughout: what the governor's own cost is measured on."""
    knots_s, knots_rps = [-warmup_s, duration_s], [rate_rps, rate_rps]
    return arrivals(np.random.default_rng(seed), Shape(), knots_s, knots_rps, warmup_s, ())


def arrivals(
    rng: np.random.Generator,
    shape: Shape,
    knots_s: Sequence[float],
    knots_rps: Sequence[float],
    warmup_s: float,
    bursts: tuple[Burst, ...],
) -> Schedule:
    """Draw a Poisson process along a rate curve that is geometric between its knots."""
    duration_s = knots_s[-1]
    grid_s = np.arange(-warmup_s, duration_s + GRID_S / 2, GRID_S)
    rate_rps = np.exp(np.interp(grid_s, knots_s, np.log(np.maximum(knots_rps, 1e-3))))
    # A unit-rate process on the integrated rate, mapped back to time.
    expected = np.concatenate(([0.0], np.cumsum((rate_rps[1:] + rate_rps[:-1]) / 2 * GRID_S)))
    total = expected[-1]
    gaps = rng.exponential(1.0, int(total + 10 * np.sqrt(total) + 100))
    marks = np.cumsum(gaps)
    due_s = np.interp(marks[marks < total], expected, grid_s)
    weights = np.array(shape.row_weights) / sum(shape.row_weights)
    rows = rng.choice(np.array(shape.rows, dtype=np.int64), size=len(due_s), p=weights)
    page = rng.integers(0, 2**31, size=len(due_s))
    return Schedule(due_s, rows, page, duration_s, warmup_s, bursts, grid_s, rate_rps)
