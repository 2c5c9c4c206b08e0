"""Instances: one more where it is soon worth it, one less late, never beyond what is allowed."""

import numpy as np
import pytest

from controller.planning.sizing import LATE_S, Sizer, agreed
from controller.policy.model import ModelPolicy, Objective, VariantPolicy
from controller.telemetry.observation import Instances

MODELS = ("best", "fast")


def sizer(most: int | None = 3) -> Sizer:
    variants = (
        VariantPolicy("best", "best", 0.9, max_instances=most),
        VariantPolicy("fast", "fast", 0.8),
    )
    return Sizer(ModelPolicy("chat", Objective(0.1, 99.0), variants))


def fed(one: Sizer, seconds: float, *, now_s: float = 0.0, worth, more, fewer, rate=50.0) -> float:
    """Tell it the same for so long."""
    for _ in range(round(seconds)):
        now_s += 1.0
        one.observe(now_s, rate, worth, more, fewer)
    return now_s


SHORT = {"worth": [0.0, 0.8], "more": [0.9, 0.8], "fewer": [0.0, 0.8]}  # the best cannot bear it
ENOUGH = {"worth": [0.9, 0.8], "more": [0.9, 0.8], "fewer": [0.0, 0.8]}
PLENTY = {"worth": [0.9, 0.8], "more": [0.9, 0.8], "fewer": [0.9, 0.8]}
WORSE = {"worth": [0.0, 0.8], "more": [0.0, 0.8], "fewer": [0.9, 0.8]}
IDLE = {"best": Instances(1, 1, may_change=True)}
TWO = {"best": Instances(2, 1, may_change=True)}
COSTS = {"best": 0.1, "fast": 0.1}


def test_one_more_where_the_better_variant_would_bear_the_load_with_it():
    one = sizer()
    now_s = fed(one, 14, **SHORT)
    assert one.decide(now_s, IDLE, COSTS) is None, "too little was seen"
    now_s = fed(one, 3, now_s=now_s, **SHORT)
    resize = one.decide(now_s, IDLE, COSTS)
    assert resize is not None
    assert (resize.model, resize.number, resize.before) == ("best", 2, 1)
    assert 0.0 < resize.gain <= 0.1 + 1e-9
    assert "more" in resize.why
    # As long as it is not done, and then not again.
    assert one.decide(now_s + 5.0, IDLE, COSTS) == resize
    assert one.decide(now_s + 6.0, TWO, COSTS) is None


def test_one_that_does_not_earn_its_load_is_not_wanted():
    one = sizer()
    now_s = fed(one, 60, **SHORT)
    assert one.decide(now_s, IDLE, {"best": 300.0 * 0.2}) is None
    assert one.decide(now_s, IDLE, {"best": 1.0}) is not None


@pytest.mark.parametrize("most", [None, 1])
def test_a_variant_of_which_the_policy_says_nothing_is_left_alone(most):
    one = sizer(most)
    assert not one.is_used
    assert not one.is_due(0.0)
    now_s = fed(one, 60, **SHORT)
    assert one.decide(now_s, IDLE, COSTS) is None
    assert one.view() == {}


def test_one_less_after_ten_minutes_in_which_it_was_not_needed():
    one = sizer()
    now_s = fed(one, 60, **ENOUGH)
    assert one.decide(now_s, TWO, COSTS) is None
    now_s = fed(one, LATE_S - 5.0, now_s=now_s, **PLENTY)
    assert one.decide(now_s, TWO, COSTS) is None
    now_s = fed(one, 10, now_s=now_s, **PLENTY)
    resize = one.decide(now_s, TWO, COSTS)
    assert resize is not None
    assert (resize.number, resize.gain) == (1, 0.0)
    assert "10 minutes" in resize.why


def test_where_fewer_are_better_one_goes_soon():
    one = sizer()
    now_s = fed(one, 20, **WORSE)
    resize = one.decide(now_s, TWO, COSTS)
    assert resize is not None
    assert resize.number == 1


def test_what_does_not_come_about_is_given_up_and_tried_again_later():
    one = sizer()
    now_s = fed(one, 20, **SHORT)
    assert one.decide(now_s, IDLE, COSTS) is not None
    busy = {"best": Instances(1, 1, may_change=False)}
    for _ in range(300):  # while it serves nobody knows
        now_s += 1.0
        assert one.decide(now_s, busy, COSTS) is not None
    now_s = fed(one, 130, now_s=now_s, **SHORT)
    for _ in range(130):
        now_s += 1.0
        given_up = one.decide(now_s, IDLE, COSTS)
        if given_up is not None and given_up.number == 1:
            break
    assert given_up is not None
    assert given_up.number == given_up.before == 1
    assert "did not come about" in given_up.why
    now_s = fed(one, 60, now_s=now_s, **SHORT)
    assert one.decide(now_s, IDLE, COSTS) is None
    now_s = fed(one, LATE_S, now_s=now_s, **SHORT)
    assert one.decide(now_s, IDLE, COSTS) is not None


def test_an_idle_service_wants_nothing():
    one = sizer()
    now_s = fed(one, 3 * LATE_S, rate=0.01, **SHORT)
    assert one.decide(now_s, IDLE, COSTS) is None


def test_it_never_asks_for_what_is_not_allowed():
    random = np.random.default_rng(3)
    for _ in range(300):
        most = int(random.integers(1, 5))
        least = int(random.integers(1, 4))
        number = least
        one, now_s, changed_s = sizer(most), 0.0, 0.0
        for _ in range(60):
            way = [SHORT, ENOUGH, PLENTY, WORSE][random.integers(4)]
            now_s = fed(one, float(random.integers(1, 40)), now_s=now_s, **way)
            own = {"best": Instances(number, least, bool(random.integers(2)))}
            resize = one.decide(now_s, own, COSTS)
            if resize is None:
                continue
            assert resize.model == "best"
            assert least <= resize.number <= max(least, most)
            assert abs(resize.number - number) <= 1
            if own["best"].may_change and random.integers(2):
                number, changed_s = resize.number, now_s
        assert changed_s <= now_s


def test_another_policy_keeps_what_is_under_way():
    old, new = sizer(), sizer()
    now_s = fed(old, 20, **SHORT)
    resize = old.decide(now_s, IDLE, COSTS)
    new.take_over(old)
    assert new.decide(now_s, IDLE, COSTS) == resize


@pytest.mark.parametrize("most", [None, 1, 2])
def test_another_policy_that_does_not_allow_it_ends_what_is_under_way(most):
    old, new = (
        sizer(3),
        Sizer(
            ModelPolicy(
                "chat",
                Objective(0.1, 99.0),
                (
                    VariantPolicy("best", "best", 0.9, max_instances=most),
                    VariantPolicy("fast", "fast", 0.8, max_instances=3),
                ),
            )
        ),
    )
    now_s = fed(old, 20, **SHORT)
    assert old.decide(now_s, TWO, COSTS).number == 3
    new.take_over(old)
    assert new.decide(now_s, TWO, COSTS) is None


def test_one_that_is_gone_for_long_keeps_no_other_from_being_sized():
    variants = tuple(VariantPolicy(name, name, 0.9, max_instances=3) for name in MODELS)
    one = Sizer(ModelPolicy("chat", Objective(0.1, 99.0), variants))
    now_s = fed(one, 20, **SHORT)
    assert one.decide(now_s, IDLE, COSTS).model == "best"
    fast = {"fast": Instances(1, 1, may_change=True)}  # the other was unloaded for its memory
    wants = {"worth": [0.0, 0.5], "more": [0.0, 0.8], "fewer": [0.0, 0.0]}
    for _ in range(round(LATE_S) + 100):
        now_s = fed(one, 1, now_s=now_s, **wants)
        found = one.decide(now_s, fast, COSTS)
    assert found is not None
    assert found.model == "fast"


def test_one_less_that_waits_is_not_taken_once_it_is_needed_again():
    one = sizer()
    serves = {"best": Instances(2, 1, may_change=False)}
    now_s = fed(one, 20, **PLENTY)
    assert one.decide(now_s, serves, COSTS) is None
    now_s = fed(one, LATE_S + 1, now_s=now_s, **PLENTY)
    assert one.decide(now_s, serves, COSTS).number == 1
    now_s = fed(one, 1, now_s=now_s, **ENOUGH)  # the load rises; next it takes the best out
    left = one.decide(now_s, serves, COSTS)
    assert left.number == left.before == 2
    assert one.decide(now_s, TWO, COSTS) is None


def test_it_has_no_fewer_than_its_folder_says_whatever_the_policy_allows():
    one = sizer(2)
    four = {"best": Instances(4, 4, may_change=True)}
    now_s = fed(one, 20, **PLENTY)
    assert one.decide(now_s, four, COSTS) is None
    now_s = fed(one, 2 * LATE_S, now_s=now_s, **PLENTY)
    assert one.decide(now_s, four, COSTS) is None


def test_of_a_variant_of_two_models_neither_takes_what_the_other_needs():
    one, other = sizer(), sizer()
    for _ in range(round(LATE_S) + 30):
        now_s = fed(one, 1, now_s=one._at_s or 0.0, **ENOUGH)
        fed(other, 1, now_s=now_s - 1.0, **PLENTY)
        both = [(each, each.decide(now_s, TWO, COSTS)) for each in (one, other)]
        assert agreed(both, (one, other), now_s) == ()
    assert both[1][1].number == 1, "alone it would"
    now_s = fed(one, LATE_S + 2, now_s=now_s, **PLENTY)
    found = agreed([(other, both[1][1])], (one, other), now_s)
    assert [resize.number for resize in found] == [1]
