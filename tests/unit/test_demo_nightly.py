"""The batch scenario's load: seeded, with nights, scaled to engines that were measured."""

from dataclasses import replace

import numpy as np
import pytest

from controller.demo.batch import choices_of
from controller.demo.nightly import Engine, nightly, pick_shapes, plan
from controller.embedded.ladder import LadderVariant

# Measured on an AMD EPYC with AVX-512, one thread (ms).
BATCH_MS = {2: 14.4, 4: 17.4, 8: 19.8, 16: 30.0, 32: 42.5}


def engine(rows, slowdown=2.9):
    rows_s = 1e3 * rows / BATCH_MS[rows]
    return Engine(rows, rows_s, rows_s / slowdown)


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_seed_decides_everything(seed):
    one, two, other = (
        nightly(400.0, 60.0, 1, seed=of, duration_s=32.0, warmup_s=6.0)
        for of in (seed, seed, seed + 10)
    )
    assert np.array_equal(one.due_s, two.due_s)
    assert one.nights_s == two.nights_s
    assert one.nights_s != other.nights_s


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("duration_s", [10.0, 30.0, 100.0])
def test_each_arm_begins_with_a_day_and_ends_with_a_night(seed, duration_s):
    schedule = nightly(400.0, 60.0, 1, seed=seed, duration_s=duration_s, warmup_s=6.0)
    nights = schedule.nights_s
    assert len(nights) == max(1, round(duration_s / 20.0))
    ends = [0.0, *(at for night in nights for at in night)]
    assert ends == sorted(ends)
    assert nights[0][0] > 0.2 * duration_s / len(nights)
    assert nights[-1][1] == schedule.duration_s == duration_s
    by_night = sum(end - start for start, end in nights) / duration_s
    assert 0.5 < by_night < 0.75


def test_the_load_is_high_by_day_and_low_by_night():
    schedule = nightly(400.0, 60.0, 1, seed=3, duration_s=320.0)
    nights = sum(
        ((schedule.due_s >= start) & (schedule.due_s < end)).sum()
        for start, end in schedule.nights_s
    )
    nights_s = sum(end - start for start, end in schedule.nights_s)
    assert nights / nights_s == pytest.approx(60.0, rel=0.05)
    # Mornings and evenings, which lie between, are part of the day here.
    by_day = (len(schedule.due_s) - nights) / (schedule.duration_s - nights_s)
    assert 250.0 < by_day < 400.0
    assert set(schedule.rows) == {1}


def test_the_small_engine_is_the_largest_that_cannot_bear_the_day():
    assert pick_shapes(BATCH_MS) == (32, 16, 8)


def test_where_large_batches_bring_little_a_smaller_engine_is_the_large_one():
    # Measured on a processor without AVX-512: arithmetic is slow there beside memory.
    assert pick_shapes({32: 185.2, 16: 94.4, 8: 55.2, 4: 33.6, 2: 30.0}) == (16, 8, 4)
    # The large one must be late by night, which takes a small one that is faster.
    alike = pick_shapes({32: 34.0, 16: 32.5, 8: 31.0, 4: 30.0, 2: 29.0})
    assert alike == (32, 16, 2)


def test_the_largest_engine_that_is_served_is_the_variants_own():
    took_ms = {32: 185.2, 16: 94.4, 8: 55.2, 4: 33.6, 2: 30.0}
    engines = [
        LadderVariant(
            name="large" if rows == 32 else f"large.b{rows}",
            model=f"digits_large_{rows}",
            quality=0.91,
            quality_error=0.005,
            compression="",
            params=1,
            batch_ms={rows: took},
            max_batch=rows,
            profile_of=None if rows == 32 else "large",
        )
        for rows, took in took_ms.items()
    ]
    own, *profiles = choices_of(engines)
    assert (own.name, own.model, own.max_batch, own.profile_of) == (
        "large",
        "digits_large_16",
        16,
        None,
    )
    assert [(c.name, c.model, c.profile_of) for c in profiles] == [
        ("large.b8", "digits_large_8", "large"),
        ("large.b4", "digits_large_4", "large"),
    ]


def test_the_plan_is_made_so_that_one_engine_is_right_by_day_and_another_by_night():
    large, middle, small = engine(32), engine(16), engine(8)
    found = plan(large, small, middle)
    assert found.doubts() == []
    assert found.slowdown == pytest.approx(2.9)
    assert 2 * large.day_ms < found.objective_ms / 1.3
    assert 2 * small.night_ms < found.objective_ms / 1.1
    assert found.day_rps * found.rows > 1.03 * middle.day_rows_s  # nor is one in the middle
    assert 2 * large.night_ms > 1.3 * found.objective_ms
    assert found.day_rps * found.rows > 1.05 * small.day_rows_s
    assert found.day_rps * found.rows < 0.87 * large.day_rows_s
    assert found.night_rps * found.rows < 0.5 * small.night_rows_s


def test_a_machine_that_is_not_steady_is_doubted():
    found = plan(engine(32), engine(8), engine(16))
    assert replace(found, unsteady=1.2).doubts() == []
    (doubt,) = replace(found, unsteady=1.61).doubts()
    assert "1.6 times as much" in doubt


def test_a_fast_machine_gets_larger_requests_instead_of_more():
    found = plan(Engine(32, 4000.0, 1400.0), Engine(8, 2000.0, 700.0))
    assert found.rows > 1
    assert found.day_rps <= 600.0


def test_a_machine_whose_engines_are_alike_or_whose_neighbour_does_nothing_is_told():
    alike = plan(Engine(32, 800.0, 270.0), Engine(8, 790.0, 265.0))
    assert any("alike" in doubt for doubt in alike.doubts())
    idle = plan(engine(32, slowdown=1.0), engine(8, slowdown=1.0))
    assert any("hardly slows" in doubt for doubt in idle.doubts())
