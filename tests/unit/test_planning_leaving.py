"""A dispatcher is left where a variant alone does better, and tried again ever less often."""

from dataclasses import replace

import pytest

from controller.planning.decision import Candidate, Decision, Reason
from controller.planning.late import LateBinding, bind_late
from controller.planning.leaving import Leaving
from controller.policy.model import (
    DISPATCHER,
    DispatcherPolicy,
    ModelPolicy,
    Objective,
    VariantPolicy,
)
from controller.telemetry.observation import Dispatched, ModelReading, Observation, VariantReading

OBJECTIVE = Objective(0.06, 99.0)
TICK_S = 0.05
DECISION = Decision(
    now_s=0.0,
    sequence=0,
    model="m",
    serving=None,
    desired="fast",
    target="fast",
    reason=Reason.BEST_FEASIBLE,
    candidates=(),
    rate_rps=1.0,
    rate_p95_rps=1.0,
    rows_per_request=1.0,
    backlog_requests=0,
    backlog_s=0.0,
    drift_ratio=1.0,
)


class Play:
    """A service in time: what comes, and how it comes out on the dispatcher and a variant."""

    def __init__(self) -> None:
        self.leaving = Leaving()
        self.now_s = 100.0
        self.serving = "late"

    def run(
        self,
        seconds: float,
        *,
        rate_rps: float = 400.0,
        late: float = 0.0,
        quality: float = 0.95,
        load: float = 0.6,
        predicted: float = 0.001,
        takes_s: float = 0.02,
        waiting: int = 0,
        busy: float = 0.8,
        failed: float = 0.0,
        refused: float = 0.0,
        stalled: bool = False,
        follows: bool = True,
        advised: bool = False,
    ) -> float:
        """Return the share of the time in which the dispatcher was left.

        Args:
            seconds: how long.
            rate_rps: requests that come.
            late: share of the dispatcher's requests that are.
            quality: of its answers; a variant's is 0.9.
            load: the fastest variant's utilisation.
            predicted: share of a variant's requests that should miss.
            takes_s: a variant's requests take, in truth.
            waiting: requests at the dispatcher.
            busy: share of the time in which the dispatcher's batches run.
            failed: share of the dispatcher's requests that fail.
            refused: share of a variant's that do.
            stalled: whether the host stood still in the first tick.
            follows: whether the alias is led to where it should be.
            advised: whether nobody is to lead it.
        """
        away, ticks, count = 0, round(seconds / TICK_S), round(rate_rps * TICK_S)
        for tick in range(ticks):
            self.now_s += TICK_S
            dispatched = Dispatched("late", healthy=True, quality=quality, waiting_requests=waiting)
            readings = {}
            if self.serving == "late":
                readings["m_fast"] = VariantReading(
                    "m_fast",
                    ready=True,
                    pending_requests=0,
                    completed_requests=1,
                    completed_rows=8,
                    executions=1,
                    compute_s=busy * TICK_S,
                )
                # Exact over time, with so few at a time.
                before, now = (int(late * count * ended) for ended in (tick, tick + 1))
                dispatched = replace(
                    dispatched,
                    ended_requests=count - round(failed * count),
                    late_requests=now - before,
                    failed_requests=round(failed * count),
                )
            else:
                readings["m_fast"] = VariantReading(
                    "m_fast",
                    ready=True,
                    pending_requests=0,
                    completed_requests=count - round(refused * count),
                    failed_requests=round(refused * count),
                    completed_rows=count,
                    executions=1,
                    compute_s=(count - round(refused * count)) * takes_s,
                )
            fast = Candidate(
                variant="fast",
                model="m_fast",
                quality=0.9,
                excluded=None,
                known=True,
                service_s=0.01,
                utilization_ratio=load,
                p50_s=0.02,
                p99_s=0.04,
                told_p99_s=0.04,
                miss_ratio=predicted,
                value=0.9,
                feasible=True,
            )
            left = self.leaving.look(
                dispatched,
                ModelReading("m", self.serving, 0.0, ready=True, advised=advised),
                readings,
                replace(
                    DECISION,
                    now_s=self.now_s,
                    candidates=(fast,),
                    rate_rps=rate_rps,
                    backlog_requests=waiting,
                ),
                OBJECTIVE,
                stalled=stalled and tick == 0,
            )
            if follows:
                self.serving = "m_fast" if left else "late"
            away += left
        return away / ticks


def test_one_that_keeps_the_objective_is_never_left():
    assert Play().run(120.0, late=0.01) == 0.0


def test_one_that_is_late_under_a_load_that_the_fastest_bears_is_left_within_two_seconds():
    play = Play()
    assert play.run(2.0, late=0.1) > 0.0
    assert 25.0 < play.leaving.away_s(play.now_s) <= 30.0


def test_one_that_is_a_little_late_for_long_is_left():
    play = Play()
    assert play.run(5.0, late=0.02, quality=0.86) == 0.0
    assert play.run(20.0, late=0.02, quality=0.86) > 0.5
    assert Play().run(60.0, late=0.02, quality=0.95) == 0.0, "it is better all the same"


def test_it_is_tried_again_ever_less_often():
    play = Play()
    assert play.run(3600.0, late=0.1) > 0.99


def test_one_that_is_well_again_serves_again():
    play = Play()
    play.run(60.0, late=0.1)
    play.run(120.0)
    assert play.run(600.0) == 0.0
    assert play.leaving.away_s(play.now_s) is None


def test_a_trial_is_a_fresh_start():
    """What it did before it was left says nothing of how it does now."""
    play = Play()
    play.run(60.0)
    play.run(5.0, late=0.5)
    assert play.serving == "m_fast"
    play.run(30.0)
    assert play.serving == "late"
    assert play.run(1200.0) == 0.0


def test_what_it_did_at_the_peak_is_forgotten_at_night():
    play = Play()
    play.run(600.0, rate_rps=1000.0, late=0.04, load=0.9)
    assert play.run(600.0, rate_rps=20.0) < 0.1


@pytest.mark.parametrize(
    ("rate_rps", "within_s"), [(400.0, 3.0), (40.0, 6.0), (20.0, 10.0)], ids=str
)
def test_a_long_good_past_does_not_delay_it(rate_rps, within_s):
    play = Play()
    for busier in (1.0, 1.5, 2.0, 3.0):
        play.run(60.0, rate_rps=rate_rps * busier)
    assert play.run(within_s, rate_rps=rate_rps, late=0.5) > 0.0


def test_an_overload_that_lasts_ends_the_trial():
    play = Play()
    play.run(600.0, late=0.1)
    assert play.run(4.0, load=1.5) > 0.4, "not one of a moment"
    assert play.run(60.0, load=1.5, late=0.4, waiting=100) == 0.0


def test_so_does_a_load_that_is_far_less():
    play = Play()
    play.run(600.0, late=0.1)
    assert play.run(90.0, rate_rps=20.0, load=0.1) > 0.5
    assert play.run(600.0, rate_rps=20.0, load=0.1) == 0.0


def test_a_switch_that_is_not_made_does_not_make_it_stay_away_for_longer():
    play = Play()
    play.run(120.0, late=0.1, follows=False)
    play.run(2.0, late=0.1)
    assert play.serving == "m_fast"
    assert play.leaving.away_s(play.now_s) <= 60.0


def test_where_nobody_follows_it_is_not_left():
    play = Play()
    assert play.run(60.0, late=0.1, follows=False, advised=True) == 0.0
    play.run(3.0, late=0.1)
    assert play.leaving.away_s(play.now_s) <= 30.0


def test_who_fails_is_late_wherever_he_came():
    assert Play().run(5.0, failed=0.3) > 0.0
    play = Play()
    assert play.run(20.0, late=0.3, refused=0.9) < 0.25


def test_one_that_was_well_for_long_is_left_for_half_a_minute_again():
    play = Play()
    play.run(600.0, late=0.1)
    play.run(1800.0)
    play.run(3.0, late=0.6)
    assert play.leaving.away_s(play.now_s) <= 30.0


@pytest.mark.parametrize(
    "how",
    [
        {"load": 1.2},
        {"predicted": 0.1},
        {"rate_rps": 20.0, "late": 0.02},
        {"busy": 1.0},
    ],
    ids=["overload", "a variant would do no better", "few are late", "busy"],
)
def test_it_is_not_left_where_that_would_not_help(how):
    assert Play().run(60.0, **{"late": 0.1, **how}) == 0.0


def test_who_is_late_after_an_overload_is_no_reason_to_leave():
    play = Play()
    play.run(3.0, load=1.5, late=0.4, waiting=200)
    assert play.run(5.0, late=0.4, waiting=60) == 0.0, "those who came in it are answered yet"
    assert play.run(5.0, late=0.002) == 0.0


def test_a_stall_of_the_host_is_no_reason():
    play = Play()
    play.run(5.0)
    assert play.run(1.0, late=0.5, stalled=True) == 0.0


def test_a_variant_that_does_worse_than_was_predicted_is_left_soon_and_not_tried_again():
    play = Play()
    assert 0.0 < play.run(20.0, late=0.1, takes_s=0.1) < 0.2
    assert play.run(600.0, late=0.1, takes_s=0.1) < 0.01


def test_a_variant_is_judged_by_a_load_as_it_was():
    """That it is in time at night tells nothing of the day."""
    play = Play()
    play.run(1.0, late=0.1)
    play.run(25.0, rate_rps=40.0, load=0.1)
    assert play.serving == "m_fast"
    assert play.leaving._instead.achieved(40.0) == pytest.approx(0.9)
    assert play.leaving._instead.achieved(400.0) is None


def test_somebody_who_leads_the_alias_back_is_obeyed():
    play = Play()
    play.run(2.0, late=0.1)
    play.run(5.0)
    assert play.serving == "m_fast"
    play.serving = "late"
    assert play.run(5.0) == 0.0


def test_it_is_said_in_the_decision():
    model = ModelPolicy(
        "m",
        OBJECTIVE,
        (VariantPolicy("fast", "m_fast", 0.9),),
        dispatcher=DispatcherPolicy("late", "/key"),
    )
    seen = Observation(
        now_s=1.0,
        sequence=1,
        models={"m": ModelReading("m", "late", 0.0, ready=True)},
        variants={},
        window_s=0.05,
        readings_age_s=0.0,
        dispatched={"m": Dispatched("late", healthy=True)},
    )
    left = bind_late(model, DECISION, seen, is_left=True)
    assert (left.serving, left.target) == (DISPATCHER, "fast")
    assert left.reason is Reason.DISPATCHER_LATE
    assert left.urgent
    gone = replace(seen, models={"m": ModelReading("m", "m_fast", 0.0, ready=True)})
    assert bind_late(model, DECISION, gone, is_left=True) == DECISION
    stays = replace(DECISION, reason=Reason.STEADY)
    assert bind_late(model, stays, gone, is_left=True).reason is Reason.DISPATCHER_LATE
    nobody = replace(DECISION, target=None, reason=Reason.NO_CHOICE)
    assert bind_late(model, nobody, seen, is_left=True).reason is Reason.NO_CHOICE
    assert bind_late(model, DECISION, gone).target == DISPATCHER


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({}, True),
        ({"weight": 2.0}, True),
        ({"objective": Objective(0.2, 99.0)}, False),
        ({"dispatcher": DispatcherPolicy("other", "/key")}, False),
        ({"variants": (VariantPolicy("fast", "m_fast", 0.8),)}, False),
    ],
    ids=["the same", "a weight", "another objective", "another dispatcher", "another quality"],
)
def test_a_new_policy_forgets_what_was_found_of_others(change, stays):
    model = ModelPolicy(
        "m",
        OBJECTIVE,
        (VariantPolicy("fast", "m_fast", 0.9),),
        dispatcher=DispatcherPolicy("late", "/key"),
    )
    late, play = LateBinding(), Play()
    play.run(3.0, late=0.3)
    late._leaving["m"] = play.leaving
    late.set_policy([model], [replace(model, **change)])
    assert (late.away_s("m", play.now_s) is not None) is stays
    late.set_policy([model], [])
    assert late.away_s("m", play.now_s) is None
