"""What is told of a percentile is true of that share of all requests."""

import math

import numpy as np
import pytest

from controller.policy.model import Objective
from controller.prediction.calibration import Outcome
from controller.prediction.outcomes import Outcomes
from controller.prediction.promise import Promise
from controller.prediction.spread import late_share

ALLOWED = 0.01
OFFSET_S = 0.02


def outcome(latency_s: float, told_s: float, requests: int = 1, *, teaches: bool = True) -> Outcome:
    return Outcome(latency_s, told_s, told_s, told_s, requests, teaches)


def told_s(promise: Promise, stated_s: float) -> float:
    return promise.told_s(stated_s)


@pytest.mark.parametrize("wrong_by", [0.3, 0.875, 3.0])
@pytest.mark.parametrize("spread", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("every", [1, 13])  # ticks between traces
def test_of_many_requests_the_objectives_share_is_within_what_was_told(
    wrong_by: float, spread: float, every: int
) -> None:
    """However wrong what is stated, however wide the requests of a tick spread.

    Where means say that nobody was late, traces alone repair it, and they are believed by their
    number: so much more than allowed may then be late, and no more. The seed is fixed, as one run
    of so many requests is a sample: what is asserted is four of its standard errors wide.
    """
    ticks = 20_000
    noise = np.exp(spread * np.random.default_rng(1).standard_normal((ticks, 5)) - spread)
    promise = Promise(ALLOWED, OFFSET_S)
    late, bounds = [], []
    for tick in range(ticks):
        # A burst each 500 ticks, that nothing stated foresees.
        burst = 1.8 if tick % 500 < 10 else 1.0
        told = told_s(promise, 0.04)
        latencies_s = 0.04 * wrong_by * burst * noise[tick]
        mean_s = float(latencies_s.mean())
        promise.completed(5)
        promise.averaged(outcome(mean_s, told, 5), late_share(mean_s, told))
        if tick % every == 0:
            promise.sampled([outcome(float(latencies_s[0]), told)])
        if tick >= ticks // 4:
            late.append(float(np.mean(latencies_s > told)))
            known = min(tick // every, 3000)
            bounds.append(ALLOWED * (1.0 + 2000.0 / known))
    chance = 4.0 * math.sqrt(float(np.mean(bounds)) / (len(late) / every))  # of so many traces
    assert 0.2 * ALLOWED <= np.mean(late) <= np.mean(bounds) + chance


@pytest.mark.parametrize("wrong_by", [0.5, 1.0, 2.5])
def test_where_requests_spread_as_assumed_the_share_that_is_late_is_that_allowed(
    wrong_by: float,
) -> None:
    drawn = np.random.default_rng(1)
    promise = Promise(ALLOWED, OFFSET_S)
    late: list[bool] = []
    for _ in range(20_000):
        told = told_s(promise, 0.04)
        mean_s = 0.04 * wrong_by * math.exp(0.3 * drawn.standard_normal())
        latencies_s = mean_s * (1.0 + 0.33 * (2.0 * drawn.random(10) - 1.0))
        late += (latencies_s > told).tolist()
        promise.completed(10)
        promise.averaged(outcome(mean_s, told, 10), late_share(mean_s, told))
    assert np.mean(late[len(late) // 4 :]) == pytest.approx(ALLOWED, rel=0.25)


def test_a_burst_of_late_requests_widens_what_is_told_by_their_number() -> None:
    promise = Promise(ALLOWED, OFFSET_S)
    before_s = told_s(promise, 0.04)
    promise.averaged(outcome(0.2, before_s, 3), 1.0)
    few_s = told_s(promise, 0.04)
    promise.averaged(outcome(0.2, before_s, 300), 1.0)
    assert before_s < few_s < told_s(promise, 0.04)


@pytest.mark.parametrize("together", [1, 8])
def test_traces_that_come_in_bodies_say_the_same_as_one_by_one(together: int) -> None:
    """Where means are right, single requests change nothing, however Triton hands them over."""
    drawn = np.random.default_rng(3)
    promise = Promise(ALLOWED, OFFSET_S)
    late: list[bool] = []
    singles: list[Outcome] = []
    for tick in range(30_000):
        told = told_s(promise, 0.04)
        mean_s = 0.04 * math.exp(0.3 * drawn.standard_normal())
        latencies_s = mean_s * (1.0 + 0.33 * (2.0 * drawn.random(10) - 1.0))
        late += (latencies_s > told).tolist()
        promise.completed(10)
        promise.averaged(outcome(mean_s, told, 10), late_share(mean_s, told))
        singles.append(outcome(float(latencies_s[0]), told))
        if tick % together == together - 1:
            promise.sampled(singles)
            singles = []
    assert np.mean(late[len(late) // 4 :]) == pytest.approx(ALLOWED, rel=0.25)


def test_what_single_requests_said_is_forgotten_when_it_is_no_longer_so() -> None:
    promise = Promise(ALLOWED, OFFSET_S)

    def minutes(count: float, late: float) -> list[float]:
        told = []
        for tick in range(round(count * 480)):  # eight traces a second, a hundred requests
            told.append(told_s(promise, 0.04))
            promise.completed(12)
            promise.averaged(outcome(0.03, told[-1], 12), 0.0)
            missed = late > 0.0 and tick % round(1.0 / late) == 0
            promise.sampled([outcome(2.0 * told[-1] if missed else 0.03, told[-1])])
        return told

    calm = minutes(10.0, 0.01)[-1]
    bad = max(minutes(3.0, 0.1))
    after = minutes(10.0, 0.0)
    assert bad > 1.5 * calm  # the means show nothing of it
    assert after[-1] <= calm


def test_what_a_stall_caught_counts_as_late_and_teaches_nothing() -> None:
    promise = Promise(ALLOWED, OFFSET_S)
    before = promise.factor
    for _ in range(20):
        promise.sampled([outcome(1.0, 0.1, teaches=False)])
    assert promise.factor == before
    assert promise.coverage == 0.0


@pytest.mark.parametrize("latency_s", [1e-6, 1e6, math.inf, math.nan])
def test_the_factor_stays_bounded(latency_s: float) -> None:
    promise = Promise(ALLOWED, OFFSET_S)
    for _ in range(1000):
        told = told_s(promise, 0.04)
        promise.averaged(outcome(latency_s, told, 10_000), float(latency_s > told))
    assert 0.5 < promise.factor < 7.0
    assert told_s(promise, 0.0) >= 0.0


def test_after_a_busy_hour_a_quiet_one_is_told_something_and_teaches() -> None:
    """What is far below the objective was told as nothing at all, which no outcome could mend."""
    promise = Promise(ALLOWED, OFFSET_S)
    for _ in range(1000):
        promise.averaged(outcome(0.03, told_s(promise, 0.04), 100), 0.0)
    assert promise.factor < 0.7  # far more was stated than came
    assert told_s(promise, 0.005) > 0.0

    def late(latency_s: float, stated_s: float, requests: int) -> float:
        missed = 0
        for _ in range(requests):
            told = told_s(promise, stated_s)
            missed += latency_s > told
            promise.averaged(outcome(latency_s, told), float(latency_s > told))
        return missed / requests

    assert late(0.002, 0.005, 1000) < 0.15
    # Nor is it told more than it takes for so long that the next busy hour is told too little.
    assert late(0.002, 0.005, 20_000) == pytest.approx(ALLOWED, rel=0.2)
    assert late(0.045, 0.050, 1000) < 0.05


def test_it_survives_a_restart_and_forgets_with_another_objective() -> None:
    promise = Promise(ALLOWED, OFFSET_S)
    promise.averaged(outcome(1.0, 0.1, 500), 1.0)
    same = Promise(ALLOWED, OFFSET_S)
    same.restore(promise.state())
    assert same.factor == pytest.approx(promise.factor, rel=1e-5)
    for other in (Promise(ALLOWED, 2 * OFFSET_S), Promise(10 * ALLOWED, OFFSET_S)):
        other.restore(promise.state())
        assert other.factor == Promise(ALLOWED, OFFSET_S).factor
    with pytest.raises(ValueError, match="out of range"):
        same.restore({"log_factor": 1e9, "offset_s": OFFSET_S, "allowed": ALLOWED})


def test_what_a_governor_without_promises_stored_is_taken_back() -> None:
    before, after = (Outcomes("m", Objective(0.08, 99.0), ["m_a"]) for _ in range(2))
    before.calibrations["m_a"].observe([outcome(0.09, 0.05)] * 300, 0.0)
    after.restore(before.state()["variants"])  # the whole state, then
    assert after.calibrations["m_a"].factor == pytest.approx(before.calibrations["m_a"].factor)
