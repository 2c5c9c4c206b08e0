"""The bound on how long a request of the next tick takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.prediction.sojourn import sojourn_bound_s

ROWS = np.arange(1, 9)
TABLE_S = np.stack([0.001 + 0.0005 * ROWS, 0.002 + 0.002 * ROWS, 0.004 + 0.004 * ROWS])


def _bound(waiting=(0.0, 0.0, 0.0), rate=50.0, **settings):
    given_ = {
        "table_s": TABLE_S,
        "limits": np.full(3, 8),
        "waiting_rows": np.array(waiting),
        "elsewhere_s": 0.0,
        "rate_rows_s": rate,
        "window_s": 0.025,
        "contention": 1.0,
        "known": np.array([True, True, True]),
    }
    return sojourn_bound_s(**given_ | settings)


def test_an_idle_server_takes_about_two_of_the_batches_that_feed_themselves():
    assert (_bound(rate=1.0) >= 2.0 * TABLE_S[:, 0] - 1e-12).all()
    assert (_bound(rate=1.0) < 4.0 * TABLE_S[:, 1]).all()


@given(st.integers(0, 2), st.integers(0, 200), st.floats(0.0, 2000.0))
def test_more_that_waits_or_comes_never_lowers_it(variant, rows, rate):
    waiting = np.zeros(3)
    waiting[variant] = rows
    less = _bound(waiting=waiting, rate=rate)
    waiting[variant] = rows + 1
    assert (_bound(waiting=waiting, rate=rate) >= less - 1e-12).all()
    assert (_bound(waiting=waiting, rate=rate * 1.1 + 1.0) >= less - 1e-12).all()


def test_in_an_overload_the_batch_is_no_larger_than_what_can_gather():
    """No batch of the slowest feeds itself at 300 rows a second; 6 rows gather, not 8."""
    rate, window_s = 300.0, 0.015
    left_s = rate * window_s * TABLE_S[2, -1] / 8 - window_s
    slowed = 1.0 / (1.0 - rate * TABLE_S[0, -1] / 8)
    few = _bound(rate=rate, window_s=window_s)[2]
    assert few == pytest.approx((left_s + 2.0 * TABLE_S[2, 5]) * slowed)


def test_work_of_others_counts_as_far_as_it_shares_the_device():
    alone, beside = _bound(), _bound(elsewhere_s=0.05)
    assert (beside > alone).all()
    assert (_bound(elsewhere_s=0.05, contention=0.0) == alone).all()


def test_what_was_never_measured_is_not_counted_upon_to_relieve():
    fast_unknown = _bound(waiting=(0.0, 0.0, 10.0), rate=300.0, known=np.array([False, True, True]))
    assert (fast_unknown >= _bound(waiting=(0.0, 0.0, 10.0), rate=300.0)).all()
