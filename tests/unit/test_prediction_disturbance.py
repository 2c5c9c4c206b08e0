"""What operations disturb: learned from noisy counts, and never more than they can show."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.planning.core import GovernorCore
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.prediction.disturbance import MOST, PRIOR, Disturbances, Ended, Traffic
from controller.telemetry.observation import ModelReading, Observation, VariantReading

TICK_S = 0.05


class Live:
    """Time that passes with Poisson arrivals, of which some are late by chance."""

    def __init__(self, seed=0, *, rate=40.0, usual=0.02, lag_s=0.02):
        self.rng, self.rate, self.usual, self.lag_s = (
            np.random.default_rng(seed),
            rate,
            usual,
            lag_s,
        )
        self.watch, self.now_s = Disturbances(), 0.0

    def live(self, seconds, *, kind=None, more=0.0, rate=None, variants=("v",), **look):
        """Let time pass; `more` is the share that is late beside the usual."""
        operations = {} if kind is None else dict.fromkeys(variants, kind)
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            count = int(self.rng.poisson((rate or self.rate) * TICK_S))
            late = int(self.rng.binomial(count, min(self.usual + more, 1.0)))
            ended = (Ended("serving", count, late, self.now_s - self.lag_s),) if count else ()
            traffic = (Traffic("chat", float(count), ended),)
            self.watch.look(self.now_s, TICK_S, operations, traffic, **look)

    def loads(self, count, *, more, kind="load", takes_s=4.0, **how):
        for _ in range(count):
            self.live(25.0)
            self.live(takes_s, kind=kind, more=more, **how)
        self.live(6.0)


def test_before_anything_was_seen_it_is_the_prior():
    assert Disturbances().share("load") == PRIOR
    assert Disturbances().view() == {}


@pytest.mark.parametrize("planted", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("usual", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_planted_is_found(planted, usual, seed):
    live = Live(seed, usual=usual)
    live.loads(16, more=planted)
    assert live.watch.share("load") == pytest.approx(planted, abs=0.015 + 0.15 * planted)
    assert live.watch.view()["load"]["operations"] == 16
    assert live.watch.share("unload") == PRIOR


@pytest.mark.parametrize("seed", range(4))
def test_few_requests_say_little_and_lead_nowhere_else(seed):
    live = Live(seed, rate=3.0, usual=0.0)
    live.loads(16, more=0.3)
    assert 0.12 < live.watch.share("load") < 0.4


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    more=st.floats(0.0, 1.0),
    usual=st.floats(0.0, 1.0),
    rate=st.floats(0.1, 80.0),
    takes_s=st.floats(0.1, 6.0),
)
def test_it_is_bounded_whatever_happens(seed, more, usual, rate, takes_s):
    live = Live(seed, usual=usual, rate=rate)
    live.loads(4, more=more, takes_s=takes_s)
    assert 0.0 <= live.watch.share("load") <= MOST
    restored = Disturbances()
    restored.restore(json.loads(json.dumps(live.watch.state())))
    assert restored.share("load") == live.watch.share("load")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("times", [2.0, 4.0])
def test_a_burst_while_it_is_loaded_is_not_its_doing(seed, times):
    """At twice the usual arrivals it is always seen for one; at half as many again, mostly."""
    live = Live(seed)
    live.loads(8, more=0.5, rate=times * live.rate)
    assert live.watch.share("load") == PRIOR


@pytest.mark.parametrize("seed", range(4))
def test_a_burst_of_one_second_is_seen_too(seed):
    live = Live(seed)
    for _ in range(4):
        live.live(25.0)
        live.live(2.0, kind="load")
        live.live(1.0, kind="load", rate=2.5 * live.rate, more=0.9)
        live.live(2.0, kind="load", more=0.5)
    live.live(6.0)
    assert live.watch.share("load") == PRIOR


@pytest.mark.parametrize("seed", range(4))
def test_one_that_coincides_with_an_outage_moves_it_little(seed):
    live = Live(seed)
    live.loads(1, more=1.0)
    assert live.watch.share("load") <= PRIOR + 0.08
    live.loads(10, more=0.0)
    assert live.watch.share("load") < 0.04


def test_what_an_operation_held_up_and_ended_after_it_is_its_doing():
    live = Live(usual=0.0)
    for _ in range(12):
        live.live(25.0)
        before_s = live.now_s
        # Nothing is answered while it lasts, and all of it late just after.
        for _ in range(40):
            live.now_s += TICK_S
            live.watch.look(live.now_s, TICK_S, {"v": "load"}, (Traffic("chat", 2.0, ()),))
        live.now_s += TICK_S
        held_up = Ended("serving", 80.0, 80.0, before_s + 1.0)
        live.watch.look(live.now_s, TICK_S, {}, (Traffic("chat", 2.0, (held_up,)),))
    live.live(6.0)
    assert live.watch.share("load") == MOST


@pytest.mark.parametrize("takes_s", [10.0, 45.0, 120.0])
def test_however_long_it_takes_what_was_before_it_is_what_is_usual(takes_s):
    live = Live()
    for _ in range(8):
        live.live(25.0)
        live.live(takes_s, kind="load", more=0.3)
        live.live(6.0, more=0.3)  # what piled up: this alone would say that all was usual
    assert 0.15 < live.watch.share("load") < 0.35


def test_operations_at_once_teach_nothing():
    live = Live()
    live.loads(4, more=0.5, variants=("v", "w"))
    assert live.watch.share("load") == PRIOR


def test_one_after_the_other_are_told_apart():
    live = Live(usual=0.0)
    for _ in range(16):
        live.live(25.0)
        live.live(3.0, kind="load", more=0.3, variants=("a",))
        live.live(2.0, kind="unload", more=0.0, variants=("b",))
    live.live(6.0)
    assert live.watch.share("load") == pytest.approx(0.3, abs=0.06)
    assert live.watch.share("unload") < 0.02


def test_a_stall_of_the_host_and_what_it_caught_teach_nothing():
    live = Live(usual=0.0)
    for _ in range(4):
        live.live(25.0)
        live.live(2.0, kind="load", more=0.0)
        live.live(TICK_S, kind="load", more=1.0, stalled=True)
        live.lag_s = 1.0  # these came before it
        live.live(0.5, kind="load", more=1.0)
        live.lag_s = 0.02
    live.live(6.0)
    assert live.watch.share("load") < PRIOR


def test_idle_times_teach_nothing():
    live = Live(rate=1e-9)
    live.loads(4, more=0.0)
    assert live.watch.view() == {}
    # Nor does one whose model was not there before, so that nobody knows what is usual.
    fresh = Live()
    fresh.live(3.0, kind="load", more=1.0)
    fresh.live(0.2)
    fresh.live(3.0, kind="unload", more=1.0)
    fresh.live(0.2)
    assert "load" not in fresh.watch.view()


def test_another_variant_is_not_what_is_usual():
    live = Live(usual=0.0)
    for _ in range(4):
        live.live(25.0)
        for _ in range(60):  # it serves only meanwhile
            live.now_s += TICK_S
            ended = (Ended("other", 2.0, 1.0, live.now_s),)
            live.watch.look(live.now_s, TICK_S, {"v": "load"}, (Traffic("chat", 2.0, ended),))
    live.live(6.0)
    assert live.watch.share("load") == PRIOR


@pytest.mark.parametrize(
    "stored", [{"load": [[2.0, 1.0]]}, {"load": [[0.1, 0.0]]}, {"load": [[float("nan"), 1.0]]}, [1]]
)
def test_nonsense_is_not_taken_back(stored):
    watch = Disturbances()
    with pytest.raises((ValueError, TypeError, AttributeError)):
        watch.restore(stored)
    assert watch.share("load") == PRIOR


# -- as the core sees it ---------------------------------------------------------------------

VARIANTS = (VariantPolicy("big", "big", 0.9), VariantPolicy("small", "small", 0.8))
POLICY = Policy(
    TritonPolicy("127.0.0.1:1", None, None),
    (ModelPolicy("chat", Objective(0.1, 99.0), VARIANTS),),
)


def served(core, seconds, *, latency_s, operations=None, failed=0, from_s):
    """Let `small` serve two requests a tick; `big` only answers requests of ours, far too late."""
    for tick in range(round(seconds / TICK_S)):
        now_s = from_s + tick * TICK_S
        done = VariantReading(
            "small", True, 0, 2, 2, 2, failed, queue_s=latency_s, compute_s=latency_s
        )
        ours = VariantReading("big", True, 0, 1, 1, 1, compute_s=9.0)
        core.step(
            Observation(
                now_s,
                0,
                {"chat": ModelReading("chat", "small", ready=True)},
                {"small": done, "big": ours},
                TICK_S,
                readings_age_s=0.0,
                operations=operations or {},
            )
        )
    return from_s + seconds


@pytest.mark.parametrize(
    ("latency_s", "failed", "shown"),
    # In time, all late, some of them (the mean is the objective), and refused ones.
    [(0.01, 0, 0.0), (0.5, 0, 0.95), (0.1, 0, 0.45), (0.01, 1, 0.3)],
)
def test_the_core_learns_from_the_counters_of_what_serves(latency_s, failed, shown):
    core, at_s = GovernorCore(POLICY), 100.0
    for _ in range(2):
        at_s = served(core, 22.0, latency_s=0.01, from_s=at_s)
        at_s = served(
            core, 3.0, latency_s=latency_s, failed=failed, operations={"big": "load"}, from_s=at_s
        )
    served(core, 6.0, latency_s=0.01, from_s=at_s)
    shares = [share for share, _ in core.costs.disturbances.state()["load"]]
    assert shares == pytest.approx([shown] * 2, abs=0.06)
    after = GovernorCore(POLICY)
    learned = json.loads(json.dumps(core.state()))
    assert after.restore(learned) == ()
    assert after.costs.disturbances.view() == core.costs.disturbances.view()
    del learned["disturbances"]  # as states were before this
    assert GovernorCore(POLICY).restore(learned) == ()
    learned["disturbances"] = {"load": 7}
    assert "disturb" in GovernorCore(POLICY).restore(learned)[0]
