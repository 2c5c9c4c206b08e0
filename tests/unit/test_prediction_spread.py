"""What the sums of a tick tell of the requests in it."""

from collections.abc import Callable

import numpy as np
import pytest

from controller.prediction.spread import Spread
from controller.telemetry.observation import VariantReading

TICK_S = 0.02


class Said:
    """What was said of requests, by a function of when they came."""

    def __init__(self, of: Callable[[float], float | None]):
        self._of = of

    def at(self, came_s):
        return list(map(self._of, came_s))

    def least(self, from_s, to_s):
        said = self.at(np.linspace(from_s, to_s, 50))
        return None if None in said else min(said)


def always(limit_s: float | None) -> Said:
    return Said(lambda _: limit_s)


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
    assert spread.late_share(alone, 1.0, always(0.0299)) == 1.0
    assert spread.late_share(alone, 1.0, always(0.0301)) == 0.0


@pytest.mark.parametrize("limit_s", [0.012, 0.02, 0.027])
def test_requests_of_one_batch_waited_evenly_up_to_twice_the_mean(limit_s: float):
    # A batch takes 10 ms and holds whoever came in the 20 ms of the one before it.
    waits_s = np.linspace(0.0, 0.020, 41)
    batch = reading((0.010 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    truly = float(((0.010 + waits_s) > limit_s).mean())
    spread = busy(41, TICK_S)
    spread.late_share(reading([0.020], queue_s=0.0, batches=1), 0.98, always(limit_s))
    found = spread.late_share(batch, 1.0, always(limit_s))
    assert found == pytest.approx(truly, abs=0.03)


def test_nobody_waited_longer_than_the_batch_before_took():
    # By chance more came early than late: the mean is more than half of the 10 ms.
    waits_s = np.array([0.004, 0.006, 0.007, 0.008, 0.009, 0.0095])
    batch = reading((0.010 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    assert busy(6, TICK_S).late_share(batch, 1.0, always(0.0201)) == 0.0


def test_who_shared_a_batch_among_lone_ones_waited_and_took_longer():
    # Lone requests take 3 ms, two together 5: these came while a lone one was executed.
    spread = busy(4, TICK_S)
    for _ in range(50):
        spread.late_share(reading([0.003], queue_s=0.0, batches=1), 1.0, always(1.0))
    tick = reading([0.003, 0.003, 0.0073, 0.0058], queue_s=0.0031, batches=3)
    late = spread.late_share(tick, 1.0, always(0.0065))
    assert late is not None
    assert 0.1 < late < 0.4  # one of four
    assert spread.late_share(tick, 1.0, always(0.0082)) == 0.0


class Queue:
    """A single server that takes all that wait, looked at in ticks."""

    def __init__(self, rate_rps: float, row_s: float, fixed_s: float, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        came_s = np.cumsum(rng.exponential(1.0 / rate_rps, int(rate_rps * 120.0)))
        self.latency_s = np.empty(len(came_s))
        ticks: dict[int, list[float]] = {}  # requests, batches, seconds in the queue, executing
        free_s, at = 0.0, 0
        while at < len(came_s):
            begins_s = max(free_s, came_s[at])
            end = int(np.searchsorted(came_s, begins_s, side="right"))
            took_s = (fixed_s + row_s * (end - at)) * float(np.exp(rng.normal(0.0, 0.05)))
            free_s = begins_s + took_s
            self.latency_s[at:end] = free_s - came_s[at:end]
            tick = ticks.setdefault(int(free_s / TICK_S), [0, 0, 0.0, 0.0])
            sums = (end - at, 1, float((begins_s - came_s[at:end]).sum()), took_s * (end - at))
            tick[:] = [one + more for one, more in zip(tick, sums, strict=True)]
            at = end
        self.ticks = ticks

    def late_by_sums(self, limit_s: float) -> float:
        spread, late, total = Spread(), 0.0, 0
        for number in range(max(self.ticks) + 1):
            count, batches, queue_s, compute_s = self.ticks.get(number, (0, 0, 0.0, 0.0))
            spread.observe(int(count), TICK_S)
            if count:
                known = VariantReading(
                    "m",
                    True,
                    0,
                    completed_requests=int(count),
                    completed_rows=int(count),
                    executions=int(batches),
                    queue_s=queue_s,
                    compute_s=compute_s,
                )
                middle_s = (number + 0.5) * TICK_S
                share = spread.late_share(known, middle_s, always(limit_s), window_s=TICK_S)
                assert share is not None
                late, total = late + share * count, total + int(count)
        return late / total


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("late", [0.01, 0.03])
@pytest.mark.parametrize(
    ("rate_rps", "row_s", "fixed_s"),
    [
        (80.0, 0.0022, 0.0006),  # a batch grows with its rows, mostly one or two
        (190.0, 0.0022, 0.0006),
        (350.0, 0.0022, 0.0006),  # hardly idle
        (480.0, 0.0001, 0.0125),  # a batch takes as long whatever it holds, one or two a tick
        (300.0, 0.0003, 0.0300),
    ],
)
def test_the_share_that_is_late_is_found_in_the_sums(rate_rps, row_s, fixed_s, late, seed):
    queue = Queue(rate_rps, row_s, fixed_s, seed=seed)
    found = queue.late_by_sums(float(np.quantile(queue.latency_s, 1.0 - late)))
    assert 0.7 * late < found < 1.6 * late


def test_who_a_full_batch_holds_came_in_the_time_in_which_so_many_come():
    # 800 requests a second; sixteen of them came within 20 ms, all of them some 100 ms ago.
    waits_s = np.linspace(0.090, 0.110, 16)
    batch = reading((0.010 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    spread = busy(16, TICK_S)
    assert spread.late_share(batch, 1.0, always(0.121)) == 0.0
    assert spread.late_share(batch, 1.0, always(0.099)) == 1.0
    assert spread.late_share(batch, 1.0, always(0.110)) == pytest.approx(0.5, abs=0.05)


def test_of_several_batches_in_a_tick_one_may_be_far_above_the_mean():
    spread = busy(4, TICK_S)
    for _ in range(50):
        spread.late_share(reading([0.003], queue_s=0.0, batches=1), 1.0, always(1.0))
    mixed = reading([0.003, 0.003, 0.003, 0.009, 0.009, 0.009], queue_s=0.006, batches=4)
    found = spread.late_share(mixed, 1.0, always(0.0075))
    assert found is not None
    assert 0.05 < found < 0.5
    alike = reading([0.003] * 4, queue_s=0.0, batches=4)
    assert spread.late_share(alike, 1.0, always(0.0031)) == 0.0


def test_each_is_compared_with_what_was_said_when_it_came():
    # A burst was seen 15 ms before the batch ended: who came earlier was told less.
    waits_s = np.linspace(0.0, 0.020, 41)
    batch = reading((0.005 + waits_s).tolist(), queue_s=float(waits_s.sum()), batches=1)
    spread = busy(41, TICK_S)
    late = spread.late_share(batch, 1.0, Said(lambda came_s: 0.010 if came_s < 0.985 else 0.030))
    assert late == pytest.approx(0.5, abs=0.11)


def test_of_whom_nothing_was_said_nothing_is_told():
    batch = reading([0.01, 0.02], queue_s=0.01, batches=1)
    assert busy(2, TICK_S).late_share(batch, 1.0, always(None)) is None


def test_requests_that_hardly_differ_are_all_late_or_none():
    # What is left of a difference of two sums is a rounding error, and no width to divide by.
    spread = busy(8, TICK_S)
    for number in range(2000):
        took_s = 0.003 * (1.0 + 1e-3 * (number % 7))
        alike = reading([took_s] * 5, queue_s=0.0, batches=5)
        assert spread.late_share(alike, 1.0, always(0.001)) == 1.0
        assert spread.late_share(alike, 1.0, always(0.1)) == 0.0
