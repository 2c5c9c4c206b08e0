"""The batch scenario: busy days, and quiet nights on a device that a neighbour shares.

Owns which engines take part, what they can do by day and by night, and the load that is scaled to
it. Pure: what was measured goes in, a schedule comes out. It must not send anything.

An engine of a fixed shape takes as long for one row as for a full batch, so who comes just after
a batch began needs the time of two. By day the largest engine is needed to bear the load, and two
of its batches fit into the objective. By night the neighbour makes every batch take about three
times as long: two of the largest engine's do not fit, and a small engine bears what comes. An
engine in the middle nearly fits into the night, and does not bear the day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controller.demo.scenario import Schedule, Shape, arrivals

DAY_LOAD: Final = (0.78, 0.92)  # of what the large engine bears by day, at least and at most
_OVER_MIDDLE: Final = 1.04  # within these: over what the engine in the middle bears
NIGHT_LOAD: Final = 0.45  # of what the small engine bears by night
_DAY_SLACK: Final = 1.60  # objective over the time of two batches of the large engine
_NIGHT_SLACK: Final = 1.40  # the same of the small one, by night
_CYCLE_S: Final = 20.0
_DAY: Final = (0.22, 0.28)  # of a cycle, without the ramps
_RAMP_S: Final = (0.7, 1.1)
_VARIES: Final = (0.96, 1.04)  # the load, from one day or night to the next
_BURIED: Final = 1.20  # the load by day over what the small engine bears, at least
_MOST_RPS: Final = 600.0  # what generator and Triton bear beside each other on one core
_STEADY: Final = 1.25  # so much may differ from one measurement to the next
_LEAST_LATE: Final = 1.15  # two batches of the large engine by night, over the objective


@dataclass(frozen=True, slots=True)
class Engine:
    """What one engine gets through, always something to do. Rows a second."""

    rows: int
    day_rows_s: float
    night_rows_s: float

    @property
    def day_ms(self) -> float:
        """Return the time of a batch by day."""
        return 1e3 * self.rows / self.day_rows_s

    @property
    def night_ms(self) -> float:
        """Return the time of a batch by night."""
        return 1e3 * self.rows / self.night_rows_s


@dataclass(frozen=True, slots=True)
class Plan:
    """The load and the objective that fit what was measured."""

    large: Engine
    small: Engine
    objective_ms: float
    rows: int  # of each request
    day_rps: float
    night_rps: float
    unsteady: float = 1.0  # the same engine's fastest measurement by day over its slowest

    @property
    def slowdown(self) -> float:
        """Return how many times as long a batch takes by night."""
        return self.large.night_ms / self.large.day_ms

    def doubts(self) -> list[str]:
        """Return why this machine shows less than it should, a sentence each."""
        found = []
        late = 2 * self.large.night_ms / self.objective_ms
        if late < _LEAST_LATE:
            found.append(
                f"by night two batches of {self.large.rows} take only {late:.2f} times the "
                "objective: the neighbour hardly slows the engines down here"
            )
        if self.day_rps * self.rows < self.small.day_rows_s:
            found.append(
                f"by day batches of {self.small.rows} bear the load as well: the engines are too "
                "alike here"
            )
        if self.unsteady > _STEADY:
            found.append(
                f"the same engine got {self.unsteady:.1f} times as much through in one second as "
                "in another: this machine is shared or throttled, and the load is scaled to it"
            )
        return found


def pick_shapes(batch_ms: Mapping[int, float]) -> tuple[int, ...]:
    """Return which engines take part, the largest first: the smaller ones must not bear the day.

    Where arithmetic is slow beside memory, large batches bring little over middling ones: the
    largest engine that is clearly better than the next is taken then.

    Args:
        batch_ms: time of a batch, by the rows that an engine is made for.
    """
    bears = {rows: rows / took_ms for rows, took_ms in batch_ms.items()}
    shapes = sorted(bears, reverse=True)
    for at, large in enumerate(shapes[:-1]):
        below = shapes[at + 1 :]
        day = _day_load(bears[large], bears[below[0]])
        small = next((s for s in below if bears[s] * _BURIED <= day), below[-1])
        buried = day > bears[below[0]]
        late_by_night = batch_ms[large] >= _NIGHT_SLACK * _LEAST_LATE * batch_ms[small]
        if buried and late_by_night:
            break
    else:  # they are too alike; `Plan.doubts` says so
        large, small, below = shapes[0], shapes[-1], shapes[1:]
    return (large, *[rows for rows in below if rows > small][:1], small)


def plan(large: Engine, small: Engine, middle: Engine | None = None) -> Plan:
    """Scale the load and the objective to what the engines do."""
    objective_ms = 2 * max(_DAY_SLACK * large.day_ms, _NIGHT_SLACK * small.night_ms)
    day_rows_s = _day_load(large.day_rows_s, 0.0 if middle is None else middle.day_rows_s)
    night_rows_s = NIGHT_LOAD * small.night_rows_s
    rows = min(math.ceil(day_rows_s / _MOST_RPS), small.rows)
    return Plan(
        large=large,
        small=small,
        objective_ms=float(math.ceil(objective_ms)),
        rows=rows,
        day_rps=min(day_rows_s / rows, _MOST_RPS),
        night_rps=night_rows_s / rows,
    )


def _day_load(large: float, middle: float) -> float:
    """Return the load by day, as what the engines bear: a little over what the middle one does."""
    least, most = DAY_LOAD
    return min(max(least * large, _OVER_MIDDLE * middle), most * large)


def shape_of(rows: int) -> Shape:
    """Return a load of requests of one size."""
    return Shape(rows=(rows,), row_weights=(1.0,))


def nightly(
    day_rps: float,
    night_rps: float,
    rows: int,
    *,
    seed: int,
    duration_s: float,
    warmup_s: float = 0.0,
) -> Schedule:
    """Draw a schedule of days and nights of random length and load, with ramps between them.

    The neighbour is there from the end of each evening to the beginning of the next morning. The
    warm-up is day. The counted part begins with a day and ends with a night.
    """
    rng = np.random.default_rng(seed)
    count = max(1, round(duration_s / _CYCLE_S))
    cycle_s = duration_s / count
    knots_s, knots_rps = [-warmup_s], [day_rps]
    nights_s: list[tuple[float, float]] = []
    for cycle in range(count):
        evening_s = cycle * cycle_s + float(rng.uniform(*_DAY)) * cycle_s
        falls_s, rises_s = rng.uniform(*_RAMP_S, 2) * min(cycle_s / _CYCLE_S, 1.0)
        dark_s, dawn_s = evening_s + float(falls_s), (cycle + 1) * cycle_s
        day, night = rng.uniform(*_VARIES, 2)
        last = cycle == count - 1
        morning_s = dawn_s if last else dawn_s - float(rises_s)
        knots_s += [evening_s, dark_s, morning_s]
        knots_rps += [float(day) * day_rps, float(night) * night_rps, float(night) * night_rps]
        if not last:
            knots_s.append(dawn_s)
            knots_rps.append(day_rps)
        nights_s.append((dark_s, morning_s))
    schedule = arrivals(rng, shape_of(rows), knots_s, knots_rps, warmup_s, ())
    return replace(schedule, nights_s=tuple(nights_s))
