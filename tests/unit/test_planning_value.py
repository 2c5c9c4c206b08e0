"""What a candidate is worth, by the work that it leaves behind."""

import numpy as np
import pytest

from controller.planning.value import value_per_request
from controller.prediction.latency import Rollout

QUALITY = np.array([0.84, 0.88, 0.95])
HORIZON_S = 0.02
LIMIT_S = 0.06


def _value(leftover_s, *, miss=(0.0, 0.0, 0.0), busy=0.7):
    rollout = Rollout(
        latency_s=np.zeros((3, 1)),
        weights=np.ones(1),
        utilization_ratio=busy * np.array([1.0, 1.7, 6.0]),
        leftover_s=np.array(leftover_s),
        throughput_rows_s=np.array([6.0, 3.6, 1.0]),
        single_s=np.array([0.001, 0.0017, 0.006]),
        rate_rps=1000.0,
    )
    return value_per_request(
        rollout=rollout,
        quality=QUALITY,
        miss_ratio=np.array(miss),
        known=np.array([True, True, False]),
        horizon_s=HORIZON_S,
        limit_s=np.full(3, LIMIT_S),
    )


def test_without_work_left_behind_it_is_the_quality_of_what_is_in_time():
    assert _value([0.0, 0.0, 0.0], miss=(0.0, 0.1, 0.5)) == pytest.approx([0.84, 0.792, 0.475])


def test_a_backlog_that_is_cleared_in_time_costs_what_is_forgone_meanwhile_and_no_more():
    # The fastest, 70 % busy, clears 9 ms in 30 ms: a cycle of 20 ms at 0.88 and 30 at 0.84 is
    # still better than 0.84 throughout.
    fastest, slower, _ = _value([0.0, 0.009, 0.5])
    assert fastest == pytest.approx(0.84)
    assert fastest < slower < 0.88


def test_a_backlog_that_makes_others_late_costs_more_than_it_brings():
    fastest, slower, slowest = _value([0.0, 0.08, 0.5])
    assert fastest > slower > slowest


def test_what_waits_already_counts_alike():
    before = _value([0.0, 0.004, 0.5])
    after = _value([0.01, 0.014, 0.51])
    assert (after <= before).all()
    assert before[1] > before[0]
    assert after[1] > after[0]
