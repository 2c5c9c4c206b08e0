"""What the sums of a tick tell of the requests in it."""

import numpy as np
import pytest

from controller.prediction.spread import Spread
from controller.telemetry.observation import VariantReading

TICK_S = 0.02


def reading(latencies_s: list[float], queue_s: float, batches: int) -> VariantReading:
    count, total_s = len(latencies_s), sum(latencies_s)
    return VariantReading(
        "m",
        True,
        0,
        completed_requests=count,
        completed_rows=count,
        executions=batches,
        queue_s=queue_s,
        compute_s=total_s - queue_s,
    )


def busy(requests: int, seconds: float) -> Spread:
    spread = Spread()
    for _ in range(200):
        spread.observe(requests, seconds)
    return spread


def test_a_lone_request_is_known_to_the_microsecond():
    spread = busy(1, TICK_S)
    alone = reading([0.030], queue_s=0.010, batches=1)
    assert spread.late_share(alone, 1.0, lambda _: 0.0299) == 1.0
    assert spread.late_share(alone, 1.0, lambda _: 0.0301) == 0.0


@pytest.mark.parametrize("limit_s", [0.012, 0.02, 0.027])
def test_requests_of_one_batch_waited_evenly_up_to_twice_the_mean(limit_s: float):
    # A batch takes 10 ms and holds whoever came in the 20 ms before it.
    waits_s = np.linspace(0.0, 0.020, 41)
    batch = reading((0.010 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    truly = float(((0.010 + waits_s) > limit_s).mean())
    found = busy(41, TICK_S).late_share(batch, 1.0, lambda _: limit_s)
    assert found == pytest.approx(truly, abs=0.03)


def test_who_a_full_batch_holds_came_in_the_time_in_which_so_many_come():
    # 800 requests a second; sixteen of them came within 20 ms, all of them some 100 ms ago.
    waits_s = np.linspace(0.090, 0.110, 16)
    batch = reading((0.010 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    spread = busy(16, TICK_S)
    assert spread.late_share(batch, 1.0, lambda _: 0.121) == 0.0
    assert spread.late_share(batch, 1.0, lambda _: 0.099) == 1.0
    assert spread.late_share(batch, 1.0, lambda _: 0.110) == pytest.approx(0.5, abs=0.05)


def test_of_several_batches_in_a_tick_one_may_be_far_above_the_mean():
    spread = busy(4, TICK_S)
    for _ in range(50):
        spread.late_share(reading([0.003], queue_s=0.0, batches=1), 1.0, lambda _: 1.0)
    mixed = reading([0.003, 0.003, 0.003, 0.009, 0.009, 0.009], queue_s=0.006, batches=4)
    found = spread.late_share(mixed, 1.0, lambda _: 0.0075)
    assert found is not None
    assert 0.05 < found < 0.5
    alike = reading([0.003] * 4, queue_s=0.0, batches=4)
    assert spread.late_share(alike, 1.0, lambda _: 0.0031) == 0.0


def test_each_is_compared_with_what_was_said_when_it_came():
    # A burst was seen 15 ms before the batch ended: who came earlier was told less.
    waits_s = np.linspace(0.0, 0.020, 41)
    batch = reading((0.005 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    spread = busy(41, TICK_S)
    late = spread.late_share(batch, 1.0, lambda came_s: 0.010 if came_s < 0.985 else 0.030)
    assert late == pytest.approx(0.5, abs=0.11)


def test_of_whom_nothing_was_said_nothing_is_told():
    batch = reading([0.01, 0.02], queue_s=0.01, batches=1)
    assert busy(2, TICK_S).late_share(batch, 1.0, lambda _: None) is None


def test_requests_that_hardly_differ_are_all_late_or_none():
    # What is left of a difference of two sums is a rounding error, and no width to divide by.
    spread = busy(8, TICK_S)
    for number in range(2000):
        took_s = 0.003 * (1.0 + 1e-3 * (number % 7))
        alike = reading([took_s] * 5, queue_s=0.0, batches=5)
        assert spread.late_share(alike, 1.0, lambda _: 0.001) == 1.0
        assert spread.late_share(alike, 1.0, lambda _: 0.1) == 0.0
