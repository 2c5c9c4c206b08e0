"""What a candidate is worth, by the work that it leaves behind."""

import numpy as np
import pytest
from predictions import prediction
from scipy.optimize import linprog

from controller.planning.value import shadow_price, value_per_request

QUALITY = np.array([0.84, 0.88, 0.95])
HORIZON_S = 0.02
LIMIT_S = 0.06


def _value(leftover_s, *, miss=(0.0, 0.0, 0.0), busy=0.7):
    made = prediction(
        utilization_ratio=[busy, busy * 1.7, busy * 6.0],
        leftover_s=list(leftover_s),
        miss_ratio=list(miss),
        known=[True, True, False],
    )
    known = made.known
    return np.array(
        value_per_request(made, quality=QUALITY.tolist(), known=known, horizon_s=HORIZON_S)
    )


def test_without_work_left_behind_it_is_the_quality_of_what_is_in_time():
    assert _value([0.0, 0.0, 0.0], miss=(0.0, 0.1, 0.5)) == pytest.approx([0.84, 0.792, 0.475])


def test_a_backlog_that_is_cleared_in_time_costs_the_time_that_it_takes_and_no_more():
    # At 70 and 119 % load a mix of the two is best: a second of the device is worth 0.04 / 0.49.
    fastest, slower, _ = _value([0.0, 0.009, 0.5])
    assert fastest == pytest.approx(0.84)
    assert slower == pytest.approx(0.88 - 0.04 / 0.49 * 0.009 / HORIZON_S)
    assert fastest < slower


def test_a_backlog_that_makes_others_late_costs_more_than_it_brings():
    fastest, slower, slowest = _value([0.0, 0.08, 0.5])
    assert fastest > slower > slowest


def test_what_waits_already_counts_alike():
    before = _value([0.0, 0.004, 0.5])
    after = _value([0.01, 0.014, 0.51])
    assert (after <= before).all()
    assert before[1] > before[0]
    assert after[1] > after[0]


def test_in_a_deep_overload_the_fastest_is_worth_most():
    fastest, slower, slowest = _value([5.0, 9.0, 80.0], busy=1.5)
    assert np.isfinite([fastest, slower, slowest]).all()
    assert fastest > slower > slowest


def test_the_price_of_time_is_the_dual_of_the_best_mix():
    random = np.random.default_rng(3)
    for _ in range(300):
        count = int(random.integers(1, 9))
        quality = np.sort(random.uniform(0.5, 1.0, count))
        load = random.uniform(0.05, 4.0, count)
        load[0] = random.uniform(0.01, 0.9)  # somebody bears it
        found = linprog(
            -quality, A_ub=[load], b_ub=[1.0], A_eq=[np.ones(count)], b_eq=[1.0], method="highs"
        )
        price = shadow_price(quality.tolist(), load.tolist())
        assert price == pytest.approx(-found.ineqlin.marginals[0], abs=1e-7)
        mixed = (quality - price * (load - 1.0)).max()
        assert mixed == pytest.approx(-found.fun, abs=1e-7)


def test_time_is_free_while_the_best_bears_the_load_and_has_a_price_in_an_overload():
    quality = np.array([0.8, 0.9])
    assert shadow_price(quality.tolist(), [0.2, 0.9]) == 0.0
    assert shadow_price(quality.tolist(), [2.0, 3.0]) > 0.0
    assert shadow_price([0.8], [3.0]) == 0.0  # no choice
    assert shadow_price([], []) == 0.0
