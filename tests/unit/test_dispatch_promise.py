"""What requests are told of their latency holds for the share that the objective allows."""

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.dispatch.late_binding import Dispatcher
from controller.dispatch.plan import Plan
from controller.dispatch.promise import BEHIND, IN_NEXT, OVERLOAD, PATIENCE, Promise

LIMIT_S = 0.1
PLAN = Plan(("best", "fast"), (0.9, 0.8), ((0.04,) * 8, (0.005,) * 8), (1.1, 1.1), LIMIT_S)


def served(latencies_s, foreseen_s, *, allowed: float = 0.01, behind: int = 30):
    """Tell of each latency, and of it so many requests later; return that, and what was kept."""
    promise, flying, kept = Promise(), deque(), []
    for took_s, seen_s in zip(latencies_s, foreseen_s, strict=True):
        flying.append((promise.tell(IN_NEXT, seen_s, LIMIT_S, allowed), took_s))
        kept.append(took_s <= flying[-1][0].told_s)
        if len(flying) > behind:
            promise.ended(*flying.popleft(), allowed)
    return promise, float(np.mean(kept))


def test_as_long_as_nothing_is_known_the_objective_is_told():
    promise = Promise()
    assert promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01).told_s == LIMIT_S
    assert promise.tell(BEHIND, 0.01, LIMIT_S, 0.01).told_s == LIMIT_S
    assert promise.last_s == LIMIT_S


def test_where_others_were_put_off_it_may_take_twice_their_patience_or_until_they_are_served():
    promise, twice_s = Promise(), 2.0 * PATIENCE * LIMIT_S
    assert promise.tell(OVERLOAD, 0.01, LIMIT_S, 0.01).told_s == pytest.approx(twice_s)
    assert promise.tell(OVERLOAD, twice_s, LIMIT_S, 0.01).told_s == pytest.approx(1.2 * twice_s)
    # Those who are in time all the same are known first, and say nothing of those who are not.
    for _ in range(1000):
        promise.ended(promise.tell(OVERLOAD, 0.01, LIMIT_S, 0.01), 0.05, 0.01)
    assert promise.tell(OVERLOAD, 0.01, LIMIT_S, 0.01).told_s == pytest.approx(twice_s)


@pytest.mark.parametrize("allowed", [0.001, 0.01, 0.05, 0.25, 0.5, 0.9])
def test_it_holds_for_the_share_that_is_allowed(allowed):
    rng = np.random.default_rng(1)
    foreseen_s = rng.uniform(0.005, 0.08, 10_000)
    took_s = foreseen_s * rng.lognormal(0.0, 0.3, 10_000)
    promise, kept = served(took_s, foreseen_s, allowed=allowed)
    assert kept == pytest.approx(1.0 - allowed, abs=0.001 + 0.05 * allowed)
    assert promise.coverage == pytest.approx(1.0 - allowed, abs=0.004 + 0.1 * allowed)


def test_it_holds_though_times_change_while_requests_are_under_way():
    """Two minutes that get slower and faster again, by two thirds, once every ten seconds."""
    rng = np.random.default_rng(2)
    seconds = np.arange(12_000) / 100.0
    foreseen_s = rng.uniform(0.01, 0.04, len(seconds))
    slower = np.where(seconds % 20.0 < 10.0, 1.0, 5.0 / 3.0)
    _, kept = served(foreseen_s * slower * rng.lognormal(0.0, 0.2, len(seconds)), foreseen_s)
    assert kept == pytest.approx(0.99, abs=0.003)


def test_long_ones_are_told_more_than_short_ones():
    rng = np.random.default_rng(3)
    foreseen_s = rng.choice([0.006, 0.06], 4000)
    promise, _ = served(foreseen_s * rng.lognormal(0.0, 0.1, 4000), foreseen_s)
    short = promise.tell(IN_NEXT, 0.006, LIMIT_S, 0.01)
    long = promise.tell(IN_NEXT, 0.06, LIMIT_S, 0.01)
    assert short.told_s < 0.01
    assert 0.06 < long.told_s < LIMIT_S


def test_after_more_were_late_than_are_allowed_the_safe_is_told_until_that_is_made_up_for():
    promise, _ = served([0.01] * 200, [0.01] * 200)
    assert promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01).told_s == pytest.approx(0.01)
    for _ in range(10):
        promise.ended(promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01), 0.15, 0.01)
    assert promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01).told_s >= 0.15
    for _ in range(1200):
        promise.ended(promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01), 0.01, 0.01)
    assert promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01).told_s < 0.15


def test_who_is_put_off_counts_at_once_and_once():
    promise, _ = served([0.01] * 200, [0.01] * 200)
    told = [promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01) for _ in range(10)]
    late = [promise.late(one, 0.12) for one in told]
    assert all(one.missed for one in late)
    assert [promise.late(one, 0.12) for one in late] == late
    owed = promise._credit
    for one in late:
        promise.ended(one, 0.9, 0.01)
    assert promise._credit == pytest.approx(owed + 0.1)


def test_who_was_put_off_and_is_in_time_all_the_same_or_gets_no_answer_is_not_held_against_it():
    promise, _ = served([0.01] * 200, [0.01] * 200)
    told = [promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01) for _ in range(10)]
    before = promise._credit
    late = [promise.late(one, 0.12) for one in told]
    assert promise._credit == pytest.approx(before - 10.0)
    for one in late[:5]:
        promise.ended(one, 0.005, 0.01)
    for one in late[5:]:
        promise.left(one)
    assert promise._credit == pytest.approx(before + 0.05)


def test_the_coverage_is_of_recent_requests():
    promise = Promise()
    assert promise.coverage is None
    promise.ended(promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01), 0.2, 0.01)
    assert promise.coverage is None, "one says nothing"
    for took_s, count in ((0.2, 999), (0.01, 1000)):
        for _ in range(count):
            promise.ended(promise.tell(OVERLOAD, 0.01, LIMIT_S, 0.01), took_s, 0.01)
    assert promise.coverage == 1.0


def test_an_overload_is_forgiven_within_some_thousand_requests():
    promise, _ = served([0.01] * 200, [0.01] * 200)
    for _ in range(5000):
        promise.ended(promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01), 3.0, 0.01)
    for _ in range(6000):
        promise.ended(promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01), 0.01, 0.01)
    assert promise.tell(IN_NEXT, 0.01, LIMIT_S, 0.01).told_s == pytest.approx(0.01)


def test_who_was_told_enough_is_not_late_for_being_put_off():
    promise = Promise()
    told = promise.tell(OVERLOAD, 0.01, LIMIT_S, 0.01)
    assert promise.late(told, 0.3) == told
    assert promise.late(None, 0.3) is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 30.0), st.floats(0.0, 60.0))),
    st.floats(1e-4, 0.999),
)
def test_what_is_told_is_a_time_whatever_comes(moments, allowed):
    promise = Promise()
    for where, foreseen_s, took_s in moments * 10:
        told = promise.tell(where, foreseen_s, LIMIT_S, allowed)
        assert math.isfinite(told.told_s)
        assert told.told_s >= 0.0
        promise.ended(told, took_s, allowed)


# -- in the queue ------------------------------------------------------------------------------


def test_nothing_is_told_before_there_is_a_plan():
    one = Dispatcher(PLAN)
    one.come(0.0, 1)
    assert one.promise.last_s is None
    assert one.take(0.0).requests[0].told is None


def test_who_comes_behind_a_batch_is_foreseen_its_rest_and_his_own():
    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    one.come(0.0, 1)
    first = one.take(0.0)
    one.come(0.03, 1)
    second = one.take(0.039, first)
    told = second.requests[0].told
    assert first.requests[0].told.foreseen_s == pytest.approx(0.04)
    assert told.foreseen_s == pytest.approx(0.01 + 0.04)


def test_who_finds_more_waiting_than_fit_is_behind_the_next_batch():
    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    for _ in range(9):
        one.come(0.0, 1)
    batch, rest = one.take(0.0), one.take(0.005)
    assert {request.told.like[0] for request in batch.requests} == {IN_NEXT}
    assert [request.told.like[0] for request in rest.requests] == [BEHIND]


def test_what_of_another_kind_waits_in_front_is_in_the_next_batch_and_not_who_comes():
    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    one.come(0.0, 1, "small")
    one.come(0.0, 1, "large")
    one.come(0.0, 8, "small")
    first = one.take(0.0)
    assert [request.told.like[0] for request in first.requests] == [IN_NEXT]
    assert [request.told.like[0] for request in one._waiting] == [BEHIND, BEHIND]


def test_another_objective_is_told_of_anew():
    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    before = one.promise
    one.set_plan(PLAN._replace(took_s=((0.05,) * 8, (0.005,) * 8)))
    assert one.promise is before
    one.set_plan(PLAN._replace(allowed=0.5))
    assert one.promise is not before


def test_no_request_is_lost_where_nothing_can_be_told(monkeypatch):
    def fails(*_):
        raise RuntimeError("planted")

    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    monkeypatch.setattr(Promise, "tell", fails)
    assert one.come(0.0, 1)
    batch = one.take(0.0)
    monkeypatch.setattr(Promise, "ended", fails)
    one.ended(batch, 0.01)
    assert (one.completed, one.failed, one.waiting) == (1, 0, 0)
    assert one.untold == "RuntimeError: planted"


def test_a_batch_that_went_elsewhere_is_no_longer_under_way():
    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    one.come(0.0, 1)
    batch = one.take(0.0)
    other = one.again(batch)
    one.ended(other._replace(sent_s=0.001), 0.006)
    one.come(0.01, 1)
    assert one.take(0.01).requests[0].told.foreseen_s == pytest.approx(0.005, rel=0.1)


def test_in_an_overload_it_is_told_that_it_takes_long():
    """Though it is ever longer, nearly everybody who came in it is served within that."""
    one = Dispatcher(PLAN)
    one.set_plan(PLAN)
    now_s, at, kept = 0.0, 0, []
    while now_s < 60.0:  # 2,000 come in a second, 1,600 are served
        while at / 2000.0 <= now_s:
            one.come(at / 2000.0, 1)
            at += 1
        batch = one.take(now_s)
        now_s += 0.005
        one.ended(batch, now_s)
        kept += [now_s - r.came_s <= r.told.told_s for r in batch.requests if r.came_s > 1.0]
    assert one.promise.last_s >= 2.0 * PATIENCE * LIMIT_S
    assert np.mean(kept) > 0.985
