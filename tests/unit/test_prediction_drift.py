"""How fast the speed of each device is followed, however often anybody asks."""

import math

import numpy as np
import pytest

from controller.prediction.drift import Drift

TICK_S = 0.02  # between calls
SAMPLES_S = 0.5  # between the statistics, which tell of batches


def follow(
    drift: Drift,
    slow: dict[int, float],
    *,
    start_s: float,
    ticks: int,
    samples_s: float = SAMPLES_S,
) -> float:
    """Follow for some ticks; each variant's batches take so many times as long. Return the time."""
    every = round(samples_s / TICK_S)
    for tick in range(1, ticks + 1):
        if tick % every == 0:
            for variant, factor in slow.items():
                drift.note(variant, math.log(factor) - drift.of(variant), 20.0)
        drift.follow(start_s + tick * TICK_S)
    return start_s + ticks * TICK_S


@pytest.mark.parametrize("samples_s", [0.02, 0.1, 0.5])
def test_a_machine_twice_as_slow_is_seen_within_a_second_and_a_half(samples_s):
    drift = Drift(1)
    now_s = follow(drift, {0: 1.0}, start_s=0.0, ticks=250, samples_s=samples_s)
    assert drift.of(0) == pytest.approx(0.0, abs=0.01)
    follow(drift, {0: 2.0}, start_s=now_s, ticks=75, samples_s=samples_s)
    assert 0.8 * math.log(2.0) <= drift.of(0) <= math.log(2.0)


def test_each_device_is_followed_by_the_time_since_its_own_batches():
    """Of one there are samples at every tick, of the other twice a second."""
    drift = Drift(2)
    drift.place((0, 1), np.eye(2))
    now_s = follow(drift, {0: 1.0, 1: 1.0}, start_s=0.0, ticks=250)
    for tick in range(1, 76):
        drift.note(0, -drift.of(0), 20.0)
        if tick % 25 == 0:
            drift.note(1, math.log(2.0) - drift.of(1), 20.0)
        drift.follow(now_s + tick * TICK_S)
    assert drift.of(0) == pytest.approx(0.0, abs=0.01)
    assert 0.8 * math.log(2.0) <= drift.of(1) <= math.log(2.0)


def test_one_sample_after_a_long_silence_is_believed_and_without_any_it_is_forgotten():
    drift = Drift(1)
    now_s = follow(drift, {0: 2.0}, start_s=0.0, ticks=250)
    seen = drift.of(0)
    assert seen > 0.95 * math.log(2.0)
    now_s = follow(drift, {}, start_s=now_s, ticks=round(600.0 / TICK_S))
    assert drift.of(0) == pytest.approx(seen / math.e, rel=0.01)
    drift.note(0, -drift.of(0), 20.0)
    drift.follow(now_s + TICK_S)
    assert drift.of(0) == pytest.approx(0.0, abs=0.03)


def test_devices_that_are_told_apart_keep_when_they_were_heard_of():
    drift = Drift(2)
    now_s = follow(drift, {0: 1.0, 1: 1.0}, start_s=0.0, ticks=250)
    drift.place((0, 1), np.eye(2))
    follow(drift, {0: 2.0, 1: 1.0}, start_s=now_s, ticks=75)
    assert 0.8 * math.log(2.0) <= drift.of(0) <= math.log(2.0)
    assert drift.of(1) == pytest.approx(0.0, abs=0.01)


def test_a_gpu_that_is_used_for_the_first_time_is_not_as_slow_as_the_one_that_was_left():
    drift = Drift(2)
    drift.place((0,), np.ones((2, 1)))
    now_s = follow(drift, {0: 3.0}, start_s=0.0, ticks=250)
    drift.place((0, 1), np.eye(2))
    assert drift.ratios() == {0: pytest.approx(3.0, rel=0.1), 1: 1.0}
    assert drift.of(1) == 0.0
    # Nor is one as it should be again because everybody left it.
    drift.place((1,), np.ones((2, 1)))
    follow(drift, {}, start_s=now_s, ticks=50)
    assert drift.ratios()[0] == pytest.approx(3.0, rel=0.1)
    drift.place((0, 1), np.eye(2))
    assert drift.of(0) == pytest.approx(math.log(3.0), rel=0.1)


@pytest.mark.parametrize("device", [-1, 0, 1])
def test_one_whose_number_is_learned_late_or_lost_for_a_moment_keeps_its_speed(device):
    drift = Drift(2)
    follow(drift, {0: 2.0}, start_s=0.0, ticks=250)
    seen = drift.of(0)
    for number, known in ((device, True), (0, False), (device, True)):
        drift.place((number,), np.ones((2, 1)), known=known)
        assert drift.of(0) == drift.of(1) == seen


def test_devices_that_nobody_knows_for_a_moment_keep_their_speed():
    drift = Drift(2)
    drift.place((0, 1), np.eye(2))
    follow(drift, {0: 1.0, 1: 2.0}, start_s=0.0, ticks=250)
    before = drift.ratios()
    drift.place((0,), np.ones((2, 1)), known=False)
    drift.place((0, 1), np.eye(2))
    assert drift.ratios() == before
