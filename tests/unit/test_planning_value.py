"""What a candidate is worth, at the price that the device's time has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.planning.value import price_per_s, value_per_request

QUALITY = np.array([0.84, 0.88, 0.95])
REQUEST_S = np.array([0.001, 0.002, 0.006])
ALL = np.array([True, True, True])
NONE_LATE = np.zeros(3)
LIMIT_S = 0.06


def _price(waiting_s, *, quality=QUALITY, request_s=REQUEST_S, usable=ALL):
    return price_per_s(
        quality=quality, request_s=request_s, usable=usable, waiting_s=waiting_s, limit_s=LIMIT_S
    )


def _best(waiting_s):
    value = value_per_request(
        quality=QUALITY, miss_ratio=NONE_LATE, request_s=REQUEST_S, price_per_s=_price(waiting_s)
    )
    return int(value.argmax())


def test_while_nothing_waits_it_is_the_quality_of_what_is_in_time():
    value = value_per_request(
        quality=QUALITY,
        miss_ratio=np.array([0.0, 0.1, 0.5]),
        request_s=REQUEST_S,
        price_per_s=_price(0.0),
    )
    assert value == pytest.approx([0.84, 0.792, 0.475])


def test_the_more_waits_the_faster_is_the_best():
    # Half of the objective of work is full pressure: a second is worth 0.04 / 1 ms = 40. The step
    # from the second to the third is worth 0.07 / 4 ms = 17.5, the share 0.66 of that pressure.
    chosen = [_best(waiting_s) for waiting_s in (0.0, 0.019, 0.021, 0.029)]
    assert chosen == [2, 2, 1, 1]
    assert _price(0.03) == pytest.approx(40.0)
    assert _price(0.015) == pytest.approx(10.0)


@given(st.floats(0.03, 1e6))
def test_in_a_deep_overload_nothing_is_worth_more_than_the_fastest(waiting_s):
    price = _price(waiting_s)
    value = value_per_request(
        quality=QUALITY, miss_ratio=NONE_LATE, request_s=REQUEST_S, price_per_s=price
    )
    assert value[0] >= value.max() - 1e-12


def test_time_has_no_price_where_there_is_nothing_to_choose():
    assert _price(0.02, usable=np.array([False, False, False])) == 0.0
    assert _price(0.02, usable=np.array([False, True, False])) == 0.0
    worse_and_slower = np.array([0.9, 0.88, 0.85])
    assert _price(0.02, quality=worse_and_slower) == 0.0
    assert _price(float("nan")) == 0.0


def test_a_variant_that_may_not_be_chosen_does_not_set_the_price():
    # Without the cheap step to the second, time is worth what the third brings.
    assert _price(0.03, usable=np.array([True, False, True])) == pytest.approx(0.11 / 0.005)
