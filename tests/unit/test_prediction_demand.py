"""What variants would have been worth: remembered, forgotten, and expected again a day later."""

import json

import numpy as np
import pytest

from controller.prediction.costs import ActionCosts
from controller.prediction.demand import Demand
from controller.telemetry.observation import ActionCost

DAY_S = 86_400


def live(demand: Demand, from_s: float, to_s: float, worth, rate_rps=10.0, tick_s=0.5) -> None:
    """Let time pass in which everything is as it is."""
    for now_s in np.arange(from_s, to_s, tick_s):
        if demand.is_due(now_s):
            demand.observe(float(now_s), rate_rps, worth)


def mean(demand: Demand, now_s: float, lead_s: float = 60.0) -> list[float]:
    """Return what a request is expected to be worth on each variant."""
    rate_rps, worth = demand.expected(now_s, lead_s)
    return (rate_rps @ worth / rate_rps.sum()).tolist()


def test_nothing_is_expected_where_nothing_was_seen():
    rate_rps, worth = Demand(3).expected(5.0, 60.0)
    assert rate_rps.shape == (0,)
    assert worth.shape == (0, 3)


def test_a_minute_of_another_load_outweighs_the_hour_before():
    demand = Demand(2)
    live(demand, 0.0, 3600.0, (0.9, 0.1))
    assert mean(demand, 3600.0) == pytest.approx([0.9, 0.1])
    live(demand, 3600.0, 3720.0, (0.1, 0.9))
    assert mean(demand, 3720.0)[1] > 0.5


def test_a_second_of_another_load_does_not():
    demand = Demand(2)
    live(demand, 0.0, 3600.0, (0.9, 0.1))
    live(demand, 3600.0, 3602.0, (0.1, 0.9))
    assert mean(demand, 3602.0)[0] > 0.8


def test_what_takes_turns_within_seconds_is_seen_at_single_moments():
    demand = Demand(2)
    for tick in range(4000):
        now_s = tick * 0.05
        if demand.is_due(now_s):
            turn = int(now_s / 0.5) % 2
            demand.observe(now_s, 10.0, (1.0 - turn, float(turn)))
    _, worth = demand.expected(200.0, 60.0)
    assert set(map(tuple, worth.tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    assert mean(demand, 200.0) == pytest.approx([0.5, 0.5], abs=0.15)


def test_the_time_of_day_is_expected_again():
    demand = Demand(2)
    noon, calm, busy = 12 * 3600, (0.9, 0.5), (0.1, 0.5)
    live(demand, 0.0, noon, calm, tick_s=1.0)
    live(demand, noon, noon + 3600, busy, tick_s=1.0)
    live(demand, noon + 3600, DAY_S + noon - 60, calm, tick_s=1.0)
    now_s = DAY_S + noon - 60.0
    # A minute before the hour that was another yesterday, it is prepared for; in the evening not.
    assert mean(demand, now_s, lead_s=900.0)[0] < 0.6
    live(demand, now_s, DAY_S + noon + 6 * 3600, calm, tick_s=1.0)
    assert mean(demand, DAY_S + noon + 6 * 3600, lead_s=900.0)[0] > 0.8


def test_a_day_is_kept_over_a_restart_whatever_the_clock_says_then():
    demand = Demand(2)
    live(demand, 0.0, DAY_S, (0.9, 0.1), tick_s=1.0)
    stored = json.loads(json.dumps(demand.state(DAY_S)))
    other = Demand(2)
    other.restore(stored, 77.0)
    assert mean(other, 77.0) == pytest.approx([0.9, 0.1])
    with pytest.raises(ValueError, match="out of range"):
        Demand(3).restore(stored, 77.0)


def test_another_policy_keeps_what_is_known_of_its_variants():
    demand, other = Demand(2), Demand(3)
    live(demand, 0.0, 100.0, (0.9, 0.1))
    other.take_over(demand, [1, None, 0])
    assert mean(other, 100.0) == pytest.approx([0.1, 0.0, 0.9])


# -- costs -------------------------------------------------------------------------------------


def load(model: str, took_s: float, *, ok: bool = True) -> ActionCost:
    return ActionCost("load", "chat", model, took_s, 0.0, ok=ok)


def test_a_load_is_expected_to_take_what_the_last_ones_took():
    costs = ActionCosts()
    costs.observe(
        [load("a", 10.0), load("a", 2.0), load("a", 2.0), load("a", 2.0), load("a", 90.0, ok=False)]
    )
    assert 2.0 < costs.expected_s("load", "a") < 5.0
    assert costs.expected_s("unload", "a") is None


def test_a_variant_that_was_never_loaded_is_taken_for_as_slow_as_the_slowest():
    costs = ActionCosts()
    costs.observe([load("a", 3.0), load("b", 7.0)])
    assert costs.load_s(["a", "b", "c"]) == {"a": 3.0, "b": 7.0, "c": 7.0}


def test_costs_are_kept_over_a_restart():
    costs, other = ActionCosts(), ActionCosts()
    costs.observe([load("a", 3.0), ActionCost("switch", "chat", "a", 0.002, 0.0, ok=True)])
    other.restore(json.loads(json.dumps(costs.state())))
    assert other.view() == costs.view() == {"load": {"a": 3.0}, "switch": {"chat": 0.002}}
    with pytest.raises(ValueError, match="no cost"):
        other.restore([["load", "a", float("nan"), 1]])
