"""Late binding in decisions: the dispatcher serves where it is well, and a variant where not."""

from dataclasses import replace

import pytest
from taught_core import POLICY, observation, taught

from controller.planning.decision import Reason
from controller.planning.late import bind_late
from controller.policy.dispatchers import with_dispatchers
from controller.policy.model import (
    DISPATCHER,
    DispatcherPolicy,
    GpuPolicy,
    MemoryPolicy,
    Objective,
    ProbingPolicy,
    QueuePolicy,
)
from controller.telemetry.observation import Dispatched, ModelReading, VariantReading

BOUND = replace(
    POLICY, models=(replace(POLICY.models[0], dispatcher=DispatcherPolicy("late", "/key")),)
)
WELL = Dispatched("late", healthy=True)


def core():
    one = taught()
    one.set_policy(BOUND)
    return one


def seen(now_s: float, *, serving: str = "m_big", late: Dispatched | None = WELL, **reading):
    models = {"m": ModelReading("m", serving, 0.0, ready=True, **reading)}
    return observation(now_s, models=models, dispatched={} if late is None else {"m": late})


def test_the_alias_is_led_to_a_dispatcher_that_is_well():
    (decision,) = core().step(seen(10.0))
    assert decision.changes
    assert (decision.serving, decision.target) == ("big", DISPATCHER)
    assert decision.reason is Reason.LATE_BINDING
    (decision,) = core().step(seen(10.0, serving="late"))
    assert not decision.changes
    assert decision.serving == DISPATCHER


def test_it_is_at_ease_where_the_dispatcher_serves_and_nothing_is_left_to_measure():
    one = core()
    one.step(seen(10.0, serving="late"))
    assert not one.at_ease, "nobody looked yet whether something is to be measured"
    one.set_policy(replace(BOUND, probing=ProbingPolicy(enabled=False)))
    one.step(seen(10.1))
    assert not one.at_ease, "the alias leads elsewhere"
    one.step(seen(10.2, serving="late"))
    assert one.at_ease
    one.step(seen(10.3, serving="late", late=replace(WELL, healthy=False, ill=True)))
    assert not one.at_ease
    one.step(seen(10.4, serving="late", late=None))
    assert not one.at_ease


@pytest.mark.parametrize(
    "late",
    [None, Dispatched("late", healthy=False), Dispatched("late", healthy=False, ill=True)],
)
def test_one_that_is_not_ready_is_not_waited_for(late):
    (decision,) = core().step(seen(10.0, late=late))
    assert decision.reason is not Reason.LATE_BINDING
    assert decision.target != DISPATCHER


def test_one_that_was_well_may_be_silent_for_a_moment():
    (decision,) = core().step(seen(10.0, serving="late", late=replace(WELL, healthy=False)))
    assert decision.reason is Reason.LATE_BINDING
    assert not decision.changes


def test_one_that_is_ill_is_left_at_once():
    late = replace(WELL, healthy=False, ill=True)
    (decision,) = core().step(seen(10.0, serving="late", late=late))
    assert decision.reason is Reason.NO_DISPATCHER
    assert decision.urgent
    assert decision.target in {"tiny", "mid", "big"}


@pytest.mark.parametrize(
    ("reading", "reason", "target"),
    [
        ({"pinned": "mid"}, Reason.PINNED, "mid"),
        ({"paused": True}, Reason.PAUSED, None),
        ({"paused": True, "released": True}, Reason.RELEASED, None),
        ({"held": "somebody"}, Reason.HELD, None),
    ],
)
def test_what_operators_want_comes_first(reading, reason, target):
    (decision,) = core().step(seen(10.0, serving="late", **reading))
    assert (decision.reason, decision.target) == (reason, target)
    assert decision.serving == DISPATCHER


def test_one_that_cannot_stand_behind_the_alias_is_not_led_to():
    (decision,) = core().step(seen(10.0, unusable=frozenset({"late"})))
    assert decision.target != DISPATCHER


def test_the_plan_has_those_that_are_known_and_may_serve():
    one = core()
    one.step(seen(10.0))
    plan = one.late.plans["m"]
    assert plan.names == ("m_tiny", "m_mid", "m_big")
    assert plan.limit_s == 0.06
    assert all(len(row) >= 8 for row in plan.took_s)
    assert plan.took_s[2][7] == pytest.approx(0.0002 + 8 * 0.0028, rel=0.2)
    assert all(1.0 < tail < 1.5 for tail in plan.tail)
    away = {"m_big": VariantReading("m_big", ready=False, pending_requests=None)}
    look = seen(10.1)
    one.step(replace(look, variants={**look.variants, **away}))
    assert one.late.plans["m"].names == ("m_tiny", "m_mid")


def test_the_plan_says_how_many_may_be_late():
    model = replace(BOUND.models[0], objective=Objective(0.1, 95.0))
    one = taught()
    one.set_policy(replace(BOUND, models=(model,)))
    one.step(seen(10.0))
    assert one.late.plans["m"].allowed == pytest.approx(0.05)


def test_limits_of_the_queue_go_into_the_plan():
    limited = replace(BOUND.models[0], queue=QueuePolicy(timeout_s=0.05, max_size=20))
    one = taught()
    one.set_policy(replace(BOUND, models=(limited,)))
    one.step(seen(10.0))
    assert (one.late.plans["m"].timeout_s, one.late.plans["m"].most_waiting) == (0.05, 20)


def test_arrivals_are_what_was_handed_to_the_dispatcher():
    """A variant's own counts are of batches then: one request of many rows each."""
    one = core()
    for tick in range(500):
        late = replace(WELL, arrived_requests=6, arrived_rows=12, waiting_requests=3)
        (decision,) = one.step(seen(10.0 + 0.02 * tick, serving="late", late=late))
    assert decision.rate_rps == pytest.approx(300.0, rel=0.05)
    assert decision.rows_per_request == pytest.approx(2.0, rel=0.1)
    assert decision.backlog_requests == 3
    assert one.score("m").requests == 0
    assert one.tally("m").completed == 500 * 6


def test_without_a_dispatcher_in_the_policy_nothing_is_bound_late():
    one = taught()
    (decision,) = one.step(seen(10.0))
    assert bind_late(POLICY.models[0], decision, seen(10.0)) is decision


def test_the_server_sees_a_dispatcher_as_the_last_that_is_looked_at():
    (model,) = with_dispatchers(BOUND).models
    assert [variant.model for variant in reversed(model.variants)][-1] == "late"
    assert model.variant(DISPATCHER).quality == 0.0
    assert with_dispatchers(POLICY).models == POLICY.models
    changed = replace(BOUND, gpu=GpuPolicy(), memory=MemoryPolicy())
    assert with_dispatchers(changed).memory == changed.memory
