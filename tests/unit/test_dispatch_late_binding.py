"""A dispatcher's choice: the best that is in time, and leaves those in time that come meanwhile."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.dispatch.late_binding import Dispatcher
from controller.dispatch.pace import Arrivals, Pace
from controller.dispatch.plan import Plan

LIMIT_S = 0.1
# A batch of the best takes 40 ms however full, of the fast 5.
PLAN = Plan(("best", "fast"), (0.9, 0.8), ((0.04,) * 8, (0.005,) * 8), (1.1, 1.1), LIMIT_S)


def planned(plan: Plan) -> Dispatcher:
    """Return a dispatcher that was told a plan."""
    one = Dispatcher(plan)
    one.set_plan(plan)
    return one


def waiting(*came_s: float, plan: Plan = PLAN, rows: int = 1) -> Dispatcher:
    """Return a dispatcher with requests that came then."""
    one = planned(plan)
    for at, when_s in enumerate(came_s):
        one.come(when_s, rows, None, at)
    return one


def answered(one: Dispatcher, now_s: float, took_s: float):
    """Take a batch and answer it."""
    batch = one.take(now_s)
    one.ended(batch, now_s + took_s)
    return batch


def slowed(by: float, batches: int) -> Dispatcher:
    """Return one whose device took so many times as long as the plan says."""
    one = planned(PLAN)
    for at in range(batches):
        one.come(float(at), 1)
        batch = one.take(float(at))
        one.ended(batch, at + by * {"best": 0.04, "fast": 0.005}[batch.name])
    return one


def test_a_lone_request_gets_the_best():
    batch = waiting(0.0).take(0.0)
    assert (batch.name, batch.rows) == ("best", 1)


def test_one_that_has_waited_too_long_for_the_best_gets_the_fast():
    assert waiting(0.0).take(0.05).name == "best"
    assert waiting(0.0).take(0.057).name == "fast"


def test_with_nothing_in_time_the_fastest_serves():
    assert waiting(0.0).take(0.5).name == "fast"


def test_those_who_come_meanwhile_count():
    """At 100 requests a second 8 and more come within a batch of the best, and must be in time."""
    one = Dispatcher(PLAN)
    for at in range(50):
        one.come(at * 0.01, 1)
        answered(one, at * 0.01, 0.004)
    one.come(0.5, 1)
    assert one.take(0.5).name == "best", "they fit into a batch of the fast"
    slow = PLAN._replace(took_s=((0.06,) * 8, (0.03,) * 8))
    busy = Dispatcher(slow)
    for at in range(50):
        busy.come(at * 0.01, 1)
        answered(busy, at * 0.01, 0.004)
    busy.set_plan(slow)
    busy._pace = Pace()
    busy.come(0.5, 1)
    assert busy.take(0.5).name == "fast", "after 60 ms there were three batches more of 30"


def test_no_more_than_fit_go_out_and_the_oldest_first():
    one = waiting(*(0.001 * at for at in range(20)))
    first, second, third = (one.take(0.02) for _ in range(3))
    assert [request.payload for request in first.requests] == list(range(8))
    assert [request.payload for request in second.requests] == list(range(8, 16))
    assert third.rows == 4
    assert one.take(0.02) is None
    assert one.waiting == 0


def test_only_requests_of_one_kind_go_together():
    one = Dispatcher(PLAN)
    for at, kind in enumerate("aabab"):
        one.come(0.0, 1, kind, at)
    assert [r.payload for r in one.take(0.0).requests] == [0, 1, 3]
    assert [r.payload for r in one.take(0.0).requests] == [2, 4]


def test_tensors_of_requests_are_never_compared():
    one = Dispatcher(PLAN)
    for kind in "abaabb":
        one.come(0.0, 1, kind, {"IN": np.zeros((2, 3))})
    assert [one.take(0.0).rows for _ in range(2)] == [3, 3]
    assert one.take(0.0) is None


def test_a_request_goes_where_its_rows_fit():
    small = PLAN._replace(took_s=((0.04,) * 2, (0.005,) * 8))
    assert waiting(0.0, rows=2, plan=small).take(0.0).name == "best"
    assert waiting(0.0, rows=3, plan=small).take(0.0).name == "fast"


def test_a_device_that_runs_slower_than_the_plan_is_found_out_in_a_few_batches():
    assert slowed(2.0, 30).slowdown == pytest.approx(2.0, rel=0.1)
    one = slowed(2.0, 300)
    assert one.slowdown == pytest.approx(2.0, rel=0.01)
    one.come(1000.0, 1)
    assert one.take(1000.005).name == "best"
    one.come(2000.0, 1)
    assert one.take(2000.015).name == "fast", "88 ms would be too late for it"


def test_times_that_scatter_leave_more_room_than_the_plan_says():
    one = Dispatcher(PLAN)
    random = np.random.default_rng(1)
    for at in range(500):
        one.come(float(at), 1)
        batch = one.take(float(at))
        one.ended(batch, at + {"best": 0.04, "fast": 0.005}[batch.name] * random.lognormal(0, 0.3))
    one.come(1000.0, 1)
    assert one.take(1000.03).name == "fast", "one of a hundred takes twice as long"
    calm = Dispatcher(PLAN)
    calm.come(1000.0, 1)
    assert calm.take(1000.03).name == "best"


def test_a_batch_that_was_sent_ahead_is_not_charged_with_its_wait():
    one = Dispatcher(PLAN)
    for at in range(16):
        one.come(0.001 * at, 1)
    first = one.take(0.07)
    assert first.name == "fast"
    assert one.sends_s(first) == pytest.approx(0.074), "a millisecond before its end"
    second = one.take(0.074, first)
    one.ended(first, 0.075)
    one.ended(second, 0.080)
    assert one.slowdown == pytest.approx(1.0)


def test_what_is_sent_ahead_is_in_time_from_when_the_device_is_free():
    def last(waited_s: float, behind: bool) -> str:
        one = waiting(0.0)
        first = one.take(0.0)
        one.come(0.039 - waited_s, 1)
        if not behind:
            one.ended(first, 0.04)
        return one.take(0.039, first if behind else None).name

    assert last(0.055, behind=True) == "fast", "which may be free some milliseconds later"
    assert last(0.055, behind=False) == "best"
    assert last(0.045, behind=True) == "best"


def test_when_to_send_ahead_follows_the_end_of_the_batch_before():
    one = waiting(0.0)
    first = one.take(0.0)
    one.come(0.01, 1)
    second = one.take(0.039, first)
    one.ended(first, 0.045)
    assert one.sends_s(second) == pytest.approx(0.084, abs=0.001), "it began 5 ms later"


def test_one_batch_that_stood_still_is_no_drift():
    one = Dispatcher(PLAN)
    one.come(0.0, 1)
    answered(one, 0.0, 40.0)
    assert one.slowdown < 1.06


def test_a_new_plan_that_knows_of_the_drift_does_not_count_it_twice():
    one = slowed(2.0, 100)
    one.set_plan(PLAN._replace(took_s=((0.08,) * 8, (0.01,) * 8)))
    assert one.slowdown == pytest.approx(1.0, rel=0.05)


# The fast one does 8 rows in half the objective.
OVERLOADED = Plan(
    ("best", "fast"),
    (0.9, 0.8),
    (
        tuple(0.03 + 0.005 * rows for rows in range(1, 17)),
        tuple(0.02 + 0.00375 * rows for rows in range(1, 17)),
    ),
    (1.1, 1.1),
    LIMIT_S,
)


def test_in_an_overload_a_batch_takes_about_half_the_objective():
    """Of 16 rows in 80 ms, who comes at the beginning would be late."""
    one = waiting(*([0.0] * 40), plan=OVERLOADED._replace(took_s=OVERLOADED.took_s[1:] * 2))
    assert one.take(0.03).rows == 8


def test_who_cannot_be_in_time_any_more_does_not_make_others_late():
    one = waiting(*([0.0] * 8), *([0.07] * 8), plan=OVERLOADED)
    first = one.take(0.09)
    assert [request.payload for request in first.requests] == list(range(8, 16))
    one.ended(first, 0.09 + 0.04)
    second = one.take(0.13)
    assert [request.payload for request in second.requests] == list(range(8)), "nobody else waits"
    assert one.waiting == 0


def test_where_many_rows_take_little_longer_than_few_an_overload_fills_its_batches():
    """20 rows in 55 ms make some late who come at the beginning; 8 rows in 50 many more."""
    flat = tuple(0.046 + 0.0005 * rows for rows in range(1, 19))
    one = waiting(*([0.0] * 40), plan=OVERLOADED._replace(took_s=(flat, flat)))
    assert one.take(0.03).rows > 12


def test_who_was_put_off_goes_along_where_there_is_room():
    flat = PLAN._replace(took_s=((0.04,) * 16, (0.03,) * 16))
    one = waiting(*([0.0] * 3), *([0.07] * 4), plan=flat)
    assert [request.payload for request in one.take(0.08).requests] == [3, 4, 5, 6, 0, 1, 2]
    assert one.waiting == 0


def test_after_twenty_objectives_every_tenth_batch_is_theirs():
    """However large the overload is: a full batch of others waits all the time."""
    one, now_s = waiting(*([0.0] * 4), plan=OVERLOADED), 0.09
    found = []
    for _ in range(100):
        for _ in range(16):
            one.come(now_s - 0.05, 1)
        batch = one.take(now_s)
        now_s += 0.05
        one.ended(batch, now_s)
        found.append(batch.requests[0].came_s == 0.0)
    assert not any(found[:35]), "until two seconds have gone"
    assert sum(found[36:50]) == 1


def test_who_was_put_off_goes_as_soon_as_nobody_is_late_for_him():
    one = waiting(*([0.0] * 8), *([0.07] * 8), plan=OVERLOADED)
    one.take(0.09)
    one.come(0.125, 1, None, "new")
    assert [request.payload for request in one.take(0.13).requests] == list(range(8))
    late = waiting(*([0.0] * 8), *([0.07] * 8), plan=OVERLOADED)
    late.take(0.09)
    late.come(0.08, 1, None, "waits for long")
    assert [request.payload for request in late.take(0.13).requests] == ["waits for long"]
    assert late.waiting == 8


def test_those_who_were_put_off_count_as_waiting_and_are_refused_in_their_turn():
    limits = OVERLOADED._replace(timeout_s=0.3, most_waiting=9)
    one = waiting(*([0.0] * 8), 0.07, plan=limits)
    one.take(0.09)
    assert one.waiting == 8
    assert one.come(0.1, 1)
    assert not one.come(0.1, 1), "nine wait"
    assert [request.payload for request in one.overdue(0.31)] == list(range(8))
    assert one.waiting == 1


def test_with_everybody_late_the_oldest_goes_first():
    one = waiting(*(0.001 * at for at in range(10)), plan=OVERLOADED)
    assert [request.payload for request in one.take(1.0).requests] == list(range(8))


def test_a_load_that_jumps_is_seen_within_a_few_batches():
    """Of a thousand a second, 50 ms long, after a hundred."""
    arrivals = Arrivals()
    for step in range(200):
        arrivals.rows += 1
        rate = arrivals.rate(step * 0.01)
    assert rate == pytest.approx(100.0, rel=0.05)
    for step in range(1, 6):
        arrivals.rows += 10
        rate = arrivals.rate(2.0 + step * 0.01)
    assert 700.0 < rate < 1000.0
    for step in range(1, 101):
        arrivals.rows += 1
        rate = arrivals.rate(2.05 + step * 0.01)
    assert rate < 120.0


def test_a_load_that_only_scatters_is_not_taken_for_more():
    arrivals, random, rates = Arrivals(), np.random.default_rng(1), []
    for step in range(2000):
        arrivals.rows += int(random.poisson(5.0))
        rates.append(arrivals.rate(step * 0.01))
    assert np.mean(rates[100:]) == pytest.approx(500.0, rel=0.1)


def test_what_was_seen_before_the_first_plan_is_forgotten():
    one = Dispatcher(PLAN._replace(took_s=((0.001,) * 8, (0.001,) * 8)))
    for at in range(50):
        one.come(float(at), 1)
        answered(one, float(at), 0.04)
    one.set_plan(PLAN)
    assert one.slowdown == 1.0
    one.come(100.0, 1)
    assert one.take(100.057).name == "fast", "it knows nothing of a device 25 times as fast"


def test_a_variant_that_was_measured_anew_says_nothing_of_the_device():
    one = slowed(1.2, 100)
    rows = (PLAN.took_s[0], (0.01, *PLAN.took_s[1][1:]))
    one.set_plan(PLAN._replace(took_s=rows))
    assert one.slowdown == pytest.approx(1.2, rel=0.05)


def test_who_waits_on_of_another_kind_is_counted_from_when_he_came():
    one = Dispatcher(PLAN._replace(took_s=((0.055,) * 8, (0.01,) * 8)))
    for kind in "ab":
        one.come(0.0, 1, kind)
    assert one.take(0.037).name == "fast", "55 and 10 ms more would be too late for the other"


def test_with_nothing_ever_in_time_batches_are_full():
    slow = PLAN._replace(took_s=((0.2,) * 8, (0.15,) * 8))
    one = waiting(*([0.0] * 20), plan=slow)
    assert [one.take(0.1).rows for _ in range(3)] == [8, 8, 4]


def test_it_is_known_when_somebody_has_waited_for_too_long():
    one = waiting(0.0, 0.02)
    assert one.patient_s(0.03) is None
    one.set_plan(PLAN._replace(timeout_s=0.05))
    assert one.patient_s(0.03) == pytest.approx(0.02)
    assert one.patient_s(1.0) == 0.0
    one.overdue(1.0)
    assert one.patient_s(1.0) is None


def test_what_became_of_requests_is_counted():
    one = waiting(0.0, 0.0, 0.01)
    answered(one, 0.01, 0.04)
    one.come(1.0, 1)
    one.ended(one.take(1.0), 1.5, failed=True)
    assert (one.arrived, one.completed, one.failed, one.in_time) == (4, 3, 1, 3)
    assert one.served == {"best": 3}
    assert one.quantiles_s(0.5, 0.99) == pytest.approx([0.05, 0.05])
    assert Dispatcher(PLAN).quantiles_s(0.5) == [None]


def test_limits_of_the_queue():
    limited = PLAN._replace(timeout_s=0.05, most_waiting=3)
    one = Dispatcher(limited)
    assert [one.come(0.01 * at, 1, None, at) for at in range(4)] == [True, True, True, False]
    assert [request.payload for request in one.overdue(0.065)] == [0, 1]
    assert one.take(0.065).rows == 1
    assert one.refused == 3
    assert Dispatcher(PLAN).overdue(1e9) == []


@pytest.mark.parametrize(
    "change",
    [
        {"names": ()},
        {"quality": [0.9]},
        {"quality": [0.9, 1.5]},
        {"took_s": [[0.04], []]},
        {"took_s": [[0.04], [-1.0]]},
        {"tail": [1.1, math.inf]},
        {"limit_s": 0.0},
        {"limit_s": "soon"},
    ],
)
def test_a_plan_that_makes_no_sense_is_not_read(change):
    assert Plan.read(PLAN.values()) == PLAN
    with pytest.raises((ValueError, TypeError)):
        Plan.read({**PLAN.values(), **change})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_everybody_is_answered_once_and_no_batch_is_too_large(data):
    """Whatever comes and however long batches take."""
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    client = min(sizes)
    plan = Plan(
        tuple(f"v{i}" for i in range(len(sizes))),
        tuple(random.random(len(sizes)).tolist()),
        tuple(tuple(np.sort(random.uniform(0.001, 0.1, n)).tolist()) for n in sizes),
        (1.1,) * len(sizes),
        0.1,
    )
    one, now_s, came, seen, seen_last = Dispatcher(plan), 0.0, 0, [], None
    for _ in range(60):
        now_s += float(random.exponential(0.02))
        if random.random() < 0.6:
            one.come(now_s, int(random.integers(1, client + 1)), int(random.integers(2)), came)
            came += 1
        elif (batch := one.take(now_s, seen_last if random.random() < 0.3 else None)) is not None:
            seen_last = batch
            assert batch.rows == sum(request.rows for request in batch.requests)
            assert 1 <= batch.rows <= len(plan.took_s[plan.names.index(batch.name)])
            assert len({request.kind for request in batch.requests}) == 1
            seen += [request.payload for request in batch.requests]
            one.ended(batch, now_s + float(random.exponential(0.05)))
    while (batch := one.take(now_s)) is not None:
        seen += [request.payload for request in batch.requests]
    assert sorted(seen) == list(range(came))
    assert one._rows == 0
