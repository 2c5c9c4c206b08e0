"""What is remembered of what was stated, and for how long."""

import gc
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.prediction.spread import Spread
from controller.prediction.statements import Statement, Statements
from controller.telemetry.observation import VariantReading

DRIFTS = {"a": 0.1, "b": 0.2}


def said(told_s: float) -> Statement:
    return Statement(told_s / 2.0, told_s / 1.5, told_s)


def test_a_request_is_measured_by_what_was_stated_when_it_arrived():
    known = Statements(("a", "b"))
    known.add(1.0, {"a": said(0.010)}, DRIFTS)
    known.add(2.0, {"a": said(0.020), "b": said(0.030)}, DRIFTS)  # a switch is under way
    known.add(3.0, {"b": said(0.040)}, DRIFTS)
    assert known.of(0.999, "a") is None
    assert known.of(1.0, "a") == Statement(0.005, 0.010 / 1.5, 0.010, 0.1)
    assert known.of(1.5, "b") is None
    assert known.of(2.5, "a") == Statement(0.010, 0.020 / 1.5, 0.020, 0.1)
    assert known.of(2.5, "b") == Statement(0.015, 0.020, 0.030, 0.2)
    assert known.of(9.0, "a") is None  # it had been left
    assert known.of(9.0, "b") == Statement(0.020, 0.040 / 1.5, 0.040, 0.2)
    assert known.of(9.0, "somebody else") is None


def test_forty_seconds_are_remembered_and_no_more():
    known = Statements(("a",))
    for tick in range(10_000):
        known.add(tick * 0.02, {"a": said(0.001 * (tick + 1))}, DRIFTS)
    now_s = 10_000 * 0.02
    for age_s in (0.0, 1.0, 20.0, 40.0):
        at = known.of(now_s - age_s, "a")
        assert at is not None
        assert at.told_s == pytest.approx((now_s - age_s) / 0.02 * 0.001, rel=0.001)
    assert known.of(now_s - 60.0, "a") is None


def test_nothing_is_left_for_the_garbage_collector_to_look_through():
    known = Statements(("a", "b"))
    for tick in range(100):
        known.add(tick * 0.02, {"a": said(0.01), "b": said(0.02)}, DRIFTS)
    gc.collect()
    before = len(gc.get_objects())
    for tick in range(100, 2000):
        known.add(tick * 0.02, {"a": said(0.01), "b": said(0.02)}, DRIFTS)
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_more_than_two_variants_at_once_are_refused():
    known = Statements(("a", "b", "c"))
    with pytest.raises(ValueError, match="3 variants"):
        known.add(0.0, dict.fromkeys("abc", said(0.01)), dict.fromkeys("abc", 0.0))
    assert known.of(1.0, "a") is None


def test_what_is_refused_leaves_the_rest_as_it_was():
    known = Statements(("a", "b"))
    known.add(1.0, {"a": said(0.010)}, DRIFTS)
    with pytest.raises(KeyError):
        known.add(2.0, {"a": said(0.5), "c": said(0.5)}, DRIFTS)
    with pytest.raises(KeyError):
        known.add(2.0, {"a": said(0.5), "b": said(0.5)}, {"a": 0.1})
    known.add(3.0, {"b": said(0.030)}, DRIFTS)
    told = [known.told(model).at([1.5, 2.5, 3.5]) for model in ("a", "b")]
    assert told == [[0.010, 0.010, None], [None, None, 0.030]]


class AtLength:
    """What was told, without the short cut that `least` is."""

    def __init__(self, told):
        self._told = told

    def at(self, came_s):
        return self._told.at(came_s)

    def least(self, from_s, to_s):
        del from_s, to_s


@given(
    st.lists(st.floats(0.001, 0.2), min_size=1, max_size=80),
    st.integers(1, 12),
    st.integers(1, 5),
    st.floats(0.0, 0.05),
    st.floats(0.001, 0.08),
    st.sampled_from((0.004, 0.02, 0.1)),
)
def test_who_is_late_is_the_same_where_not_every_moment_is_looked_at(
    told_s, count, batches, queue_s, compute_s, window_s
):
    known = Statements(("a",))
    for tick, one_s in enumerate(told_s):
        known.add(1.0 + tick * 0.01, {"a": said(one_s)}, DRIFTS)
    reading = VariantReading(
        "a", True, 0, count, count, batches, queue_s=queue_s * count, compute_s=compute_s * count
    )
    middle_s = 1.0 + 0.01 * len(told_s)
    shares = []
    for told in (known.told("a"), AtLength(known.told("a"))):
        spread = Spread()
        spread.observe(count, window_s)
        shares.append(spread.late_share(reading, middle_s, told, window_s=window_s))
    assert shares[0] == shares[1] or math.isclose(shares[0], shares[1], abs_tol=1e-9)
