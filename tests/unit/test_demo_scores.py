"""What an arm is worth: misses cost their whole quality, whatever has no answer is a miss."""

import numpy as np
import pytest

from controller.demo.records import DEADLINE, LOST, OK, Records
from controller.demo.scenario import Burst, Schedule
from controller.demo.scores import Served, relief, score

VARIANTS = (Served("fast", 0.8, 1000.0), Served("good", 0.9, 100.0))


def records(rows):
    """Build records from (due_s, latency_ms or None, variant, rows, correct)."""
    due_s, latency_ms, variant, sizes, correct = zip(*rows, strict=True)
    answered = [latency is not None for latency in latency_ms]
    return Records(
        due_s=np.array(due_s, float),
        rows=np.array(sizes),
        late_ms=np.zeros(len(rows)),
        latency_ms=np.array([np.nan if value is None else value for value in latency_ms]),
        status=np.where(answered, OK, DEADLINE).astype(np.int8),
        variant=np.array(variant, np.int16),
        correct=np.array(correct, np.int16),
        zero_s=100.0,
        errors={},
    )


def test_effective_quality_counts_only_answers_in_time():
    found = score(
        records([(0, 10, 0, 1, 1), (1, 59, 1, 1, 1), (2, 61, 1, 1, 1), (3, None, -1, 1, 0)]),
        VARIANTS,
        objective_ms=60.0,
    )
    assert found.effective_quality == pytest.approx((0.8 + 0.9) / 4)
    assert found.slo_attainment == pytest.approx(0.5)
    assert found.failed == 1
    assert found.mean_quality == pytest.approx((0.8 + 0.9 + 0.9) / 3)


def test_the_warm_up_is_not_counted():
    found = score(records([(-1, None, -1, 1, 0), (0, 10, 1, 1, 1)]), VARIANTS, objective_ms=60.0)
    assert (found.requests, found.failed, found.slo_attainment) == (1, 0, 1.0)


def test_accuracy_is_by_rows_and_effective_accuracy_loses_what_was_late():
    found = score(records([(0, 10, 1, 8, 6), (1, 100, 1, 2, 2)]), VARIANTS, objective_ms=60.0)
    assert found.accuracy == pytest.approx(0.8)
    assert found.effective_accuracy == pytest.approx(0.6)


def test_an_arm_without_an_answer_has_no_quantiles_and_no_quality():
    found = score(records([(0, None, -1, 1, 0)]), VARIANTS, objective_ms=60.0)
    assert (found.p50_ms, found.p99_ms, found.mean_quality) == (None, None, None)
    assert found.effective_quality == 0.0


def test_an_empty_arm_scores_nothing():
    nothing = records([(-1, 10, 0, 1, 1)])
    assert score(nothing, VARIANTS, objective_ms=60.0).requests == 0


def a_step(calm_rps=50.0, high_rps=500.0, ramp_s=0.005):
    """Build a schedule whose only burst runs from 1.0 to 2.0 s."""
    at_s = np.arange(0.0, 3.0, 0.005)
    knots_s = [0.0, 1.0, 1.0 + ramp_s, 2.0, 2.005, 3.0]
    knots_rps = [calm_rps, calm_rps, high_rps, high_rps, calm_rps, calm_rps]
    nothing = np.zeros(0)
    return Schedule(
        due_s=nothing,
        rows=nothing.astype(int),
        page=nothing.astype(int),
        duration_s=3.0,
        warmup_s=0.0,
        bursts=(Burst(1.0, 1.0 + ramp_s, 2.0, 2.005, high_rps),),
        rate_at_s=at_s,
        rate_rps=np.interp(at_s, knots_s, knots_rps),
    )


def test_relief_runs_from_the_first_intended_send_to_the_first_faster_answer():
    found = relief(
        records(
            [
                (0.9, 10, 1, 1, 1),
                (1.010, 300, 1, 1, 1),
                (1.050, 200, 0, 1, 1),
                (1.100, 40, 0, 1, 1),
            ]
        ),
        VARIANTS,
        a_step(),
        [(0.5, 0), (1.110, 0), (1.5, 1)],
    )
    assert found.answers_ms == pytest.approx([130.0])  # 1.100 + 0.040 - 1.010
    assert found.switches_ms == pytest.approx([100.0])
    assert found.bursts == 1


def test_on_a_ramp_relief_runs_from_where_the_serving_variant_is_not_enough():
    found = relief(
        records([(0.9, 10, 1, 1, 1), (1.03, 10, 1, 1, 1), (1.3, 50, 0, 1, 1)]),
        VARIANTS,
        a_step(calm_rps=50.0, high_rps=550.0, ramp_s=0.5),  # passes 100 at 1.05
        [(1.2, 0)],
    )
    assert found.answers_ms == pytest.approx([50.0])  # counted from the send at 1.3
    assert found.switches_ms == (0.0,)


def test_an_answer_to_a_request_from_before_the_burst_relieves_nothing():
    found = relief(
        records([(0.5, 10, 1, 1, 1), (0.95, 200, 0, 1, 1), (1.1, 20, 1, 1, 1)]),
        VARIANTS,
        a_step(),
        [],
    )
    whole_ms = pytest.approx([(a_step().bursts[0].end_s - 1.1) * 1e3])
    assert (found.answers_ms, found.switches_ms, found.bursts) == (whole_ms, whole_ms, 1)


def test_a_burst_that_finds_the_fastest_variant_needs_no_relief():
    found = relief(
        records([(0.9, 10, 0, 1, 1), (1.1, 10, 0, 1, 1)]), VARIANTS, a_step(), [(1.2, 0)]
    )
    assert (found.answers_ms, found.switches_ms, found.bursts) == ((), (), 0)


def test_a_burst_that_the_serving_variant_can_bear_needs_no_relief():
    found = relief(
        records([(0.9, 10, 1, 1, 1), (1.1, 10, 1, 1, 1)]), VARIANTS, a_step(high_rps=90.0), []
    )
    assert found.bursts == 0


def test_lost_requests_are_failed_like_any_other():
    lost = records([(0, 10, 0, 1, 1), (1, None, -1, 1, 0)])
    lost.status[1] = LOST
    assert score(lost, VARIANTS, objective_ms=60.0).failed == 1
