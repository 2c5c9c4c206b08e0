"""The demo's load: seeded, the same for every arm, scaled to the machine."""

import numpy as np
import pytest

from controller.demo.scenario import Scale, Shape, bursty, steps

SCALE = Scale(best_rps=120.0, fastest_rps=1000.0)


@pytest.mark.parametrize("seed", range(1, 11))
def test_a_seed_decides_everything(seed):
    one = bursty(SCALE, seed=seed, duration_s=30.0, warmup_s=5.0)
    two = bursty(SCALE, seed=seed, duration_s=30.0, warmup_s=5.0)
    other = bursty(SCALE, seed=seed + 100, duration_s=30.0, warmup_s=5.0)
    assert np.array_equal(one.due_s, two.due_s)
    assert np.array_equal(one.rows, two.rows)
    assert one.bursts == two.bursts
    assert one.bursts != other.bursts


@pytest.mark.parametrize("seed", range(1, 11))
def test_bursts_take_a_fifth_to_two_fifths_of_the_time_whatever_the_seed(seed):
    schedule = bursty(SCALE, seed=seed, duration_s=30.0)
    share = sum(burst.end_s - burst.start_s for burst in schedule.bursts) / 30.0
    assert 0.2 <= share <= 0.4
    assert schedule.duration_s == 30.0
    assert all(burst.start_s > 0 and burst.end_s < 30.0 for burst in schedule.bursts)


def test_rates_follow_the_capacities_of_the_best_and_the_fastest_variant():
    shape = Shape()
    schedule = bursty(SCALE, seed=3, duration_s=1200.0, shape=shape)
    high = sum(burst.fall_s - burst.full_s for burst in schedule.bursts)
    sent = sum(
        np.sum((schedule.due_s >= burst.full_s) & (schedule.due_s < burst.fall_s))
        for burst in schedule.bursts
    )
    assert sent / high == pytest.approx(0.60 * SCALE.fastest_rps, rel=0.03)
    calm = np.ones(len(schedule.due_s), bool)
    for burst in schedule.bursts:
        calm &= (schedule.due_s < burst.start_s) | (schedule.due_s >= burst.end_s)
    calm_s = 1200.0 - sum(burst.end_s - burst.start_s for burst in schedule.bursts)
    assert calm.sum() / calm_s == pytest.approx(0.45 * SCALE.best_rps, rel=0.03)


def test_the_warm_up_lies_before_zero_and_is_calm():
    schedule = bursty(SCALE, seed=1, duration_s=20.0, warmup_s=6.0)
    warm = np.sum(schedule.due_s < 0)
    assert schedule.due_s.min() >= -6.0
    assert 0.3 * SCALE.best_rps * 6 < warm < 0.65 * SCALE.best_rps * 6


def test_requests_have_the_mix_of_sizes_that_was_asked_for():
    shape = Shape()
    schedule = bursty(SCALE, seed=2, duration_s=120.0, shape=shape)
    assert set(np.unique(schedule.rows)) == {1, 2, 4, 8}
    assert schedule.rows.mean() == pytest.approx(shape.rows_per_request, rel=0.05)


def test_due_times_ascend():
    schedule = bursty(SCALE, seed=5, duration_s=30.0, warmup_s=2.0)
    assert np.all(np.diff(schedule.due_s) >= 0)
    assert schedule.due_s.max() <= schedule.duration_s


def test_variants_that_are_alike_still_give_bursts_above_the_calm_rate():
    schedule = bursty(Scale(1000.0, 100.0), seed=1, duration_s=30.0)
    assert all(burst.rate_rps >= 0.4 * 1000.0 for burst in schedule.bursts)


def test_steps_are_sudden_and_at_random_phase():
    schedule = steps(SCALE, seed=1, count=50)
    starts = np.array([burst.start_s for burst in schedule.bursts])
    assert len(starts) == 50
    assert all(burst.full_s - burst.start_s < 0.01 for burst in schedule.bursts)
    phase = (starts % 0.020) / 0.020  # against a tick of 20 ms
    assert phase.min() < 0.15
    assert phase.max() > 0.85
