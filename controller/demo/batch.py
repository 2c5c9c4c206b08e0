"""The batch scenario on a real server: which engines are served, and how fast they are here.

Owns the engines' part of the bench: the choice of them, and their calibration by day and by night.
What follows from it is `nightly`'s.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from controller.demo.bench import Bench, Models, models_of
from controller.demo.governed import Choice
from controller.demo.neighbour import PROCESSES, Neighbour
from controller.demo.nightly import Engine, Plan, pick_shapes, plan, shape_of
from controller.demo.scores import Served
from controller.embedded.ladder import Ladder, LadderVariant

_DAY_S, _DAY_TIMES = 1.2, 3
_NIGHT_S, _NIGHT_TIMES = 2.0, 2
_LEAD_S = 0.3
_LONG_S = 600.0
_NEIGHBOURS = (PROCESSES, 4, 5, 6)
_SLOWER = 2.2  # so many times as long a batch takes by night, at least: three processes do it alone
_IN_FLIGHT = 2.5  # batches, so that one is always full and waits
_SMALL_REQUESTS = 4  # rows at most that a request of this scenario has

Progress = Callable[[str, float | None], None]


def engine_models(ladder: Ladder) -> Models:
    """Return the engines that fit this machine, by what was measured when they were made."""
    choices = choices_of(ladder.variants)
    smallest = min(choice.max_batch or 1 for choice in choices)
    return models_of(ladder, choices, min(smallest, _SMALL_REQUESTS))


def choices_of(engines: Sequence[LadderVariant]) -> tuple[Choice, ...]:
    """Return those that are served. The largest is the variant's own, whichever was made as that.

    In the order of the numbers that they answer with: those that are not served lie between.
    """
    shapes = pick_shapes({v.max_batch: v.batch_ms[v.max_batch] for v in engines})
    own = next(v.name for v in engines if v.profile_of is None)  # all have its weights
    return tuple(
        Choice(own, v.model, v.quality, v.max_batch)
        if v.max_batch == shapes[0]
        else Choice(v.name, v.model, v.quality, v.max_batch, own)
        for v in engines
        if v.max_batch in shapes
    )


def calibrate(bench: Bench, progress: Progress) -> Plan:
    """Measure what each engine gets through by day and by night.

    The median of some short measurements in turn, as the machine differs from second to second.

    Raises:
        LoadError: a request failed.
        ServerError: Triton has ended.
        DeviceError: the neighbour failed.
    """
    days = _measure(bench, bench.choices, progress, "by day", _DAY_S, _DAY_TIMES)
    by_day = _medians(days)
    own = next(choice for choice in bench.choices if choice.profile_of is None)
    night = "by night"
    for bench.neighbours in _NEIGHBOURS:
        with _night(bench):
            tried = _medians(_measure(bench, [own], progress, night, _NIGHT_S, 1))[own.name]
            if by_day[own.name] >= _SLOWER * tried or bench.neighbours == _NEIGHBOURS[-1]:
                nights = _measure(bench, bench.choices, progress, night, _NIGHT_S, _NIGHT_TIMES)
                by_night = _medians(nights)
                break
    engines = sorted(
        (Engine(c.max_batch or 1, by_day[c.name], by_night[c.name]) for c in bench.choices),
        key=lambda engine: -engine.rows,
    )
    unsteady = max(max(rates) / max(min(rates), 1e-9) for rates in days.values())
    found = replace(plan(engines[0], engines[-1], *engines[1:-1]), unsteady=unsteady)
    bench.objective_ms = found.objective_ms
    bench.served = tuple(
        Served(c.name, c.quality, by_day[c.name] / found.rows, c.max_batch) for c in bench.choices
    )
    return found


@contextmanager
def _night(bench: Bench) -> Iterator[None]:
    assert bench.core is not None  # noqa: S101 - the session chose it
    with Neighbour(bench.core, bench.neighbours, rises_s=0.0) as neighbour:
        now_s = time.monotonic()
        # Until we are done: whatever is left of it ends with the neighbour.
        neighbour.begin([(now_s, now_s + _LONG_S)])
        time.sleep(_LEAD_S)
        yield


def _measure(
    bench: Bench,
    choices: tuple[Choice, ...] | list[Choice],
    progress: Progress,
    when: str,
    duration_s: float,
    times: int,
) -> dict[str, list[float]]:
    """Return the rows a second of each, of each measurement."""
    found: dict[str, list[float]] = {choice.name: [] for choice in choices}
    turns = [choice for _ in range(times) for choice in choices]
    for index, choice in enumerate(turns):
        progress(f"measuring {choice.name} {when}", index / len(turns))
        through = bench.measure(
            choice,
            duration_s=duration_s,
            shape=shape_of(1),
            seed=index,
            concurrency=round(_IN_FLIGHT * (choice.max_batch or 1)),
        )
        found[choice.name].append(through.rows_rps)
    return found


def _medians(measured: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(rates) for name, rates in measured.items()}
