"""A better variant in a lull: only where it pays until the load is back."""

import pytest
from predictions import prediction
from taught_core import taught

from controller.planning.decision import Reason
from controller.planning.lull import Lull
from controller.prediction.lulls import Lulls
from controller.prediction.prediction import Prediction

QUALITY = [0.84, 0.88, 0.95]
KNOWN = [True, True, True]
TICK_S = 0.02


def predicted(rate_rps: float, miss: tuple[float, ...]) -> Prediction:
    return prediction(rate_rps, miss_ratio=list(miss))


def after_lulls(pause_s: float, *, busy_miss=(0.0, 0.01, 0.6)) -> tuple[Lull, Lulls]:
    """Return what is known in the middle of a lull, after twenty such."""
    lulls, lull = Lulls(), Lull()
    for turn in range(20):
        for _ in range(round(1.0 / TICK_S)):
            lulls.observe(300.0 * TICK_S, TICK_S)
            lull.pays(lulls, predicted(300.0, busy_miss), QUALITY, KNOWN)
        for tick in range(round(pause_s / TICK_S)):
            lulls.observe(float(tick % 5 == 0), TICK_S)
            lull.pays(lulls, predicted(10.0, (0.0, 0.0, 0.001)), QUALITY, KNOWN)
            if turn == 19 and tick > round(pause_s / TICK_S) // 2:
                break
    assert lulls.is_in_one
    return lull, lulls


def pays(lull: Lull, lulls: Lulls, rate_rps: float) -> list[bool] | None:
    return lull.pays(lulls, predicted(rate_rps, (0.0, 0.0, 0.001)), QUALITY, KNOWN)


def test_without_a_lull_there_is_nothing_to_say():
    assert Lull().pays(Lulls(), predicted(300.0, (0.0, 0.0, 0.6)), QUALITY, KNOWN) is None


def test_what_would_miss_when_the_load_is_back_does_not_pay_in_a_short_lull():
    assert pays(*after_lulls(1.0), rate_rps=10.0) == [True, True, False]


def test_what_keeps_the_objective_under_the_load_pays_always():
    lull, lulls = after_lulls(1.0, busy_miss=(0.0, 0.0, 0.0))
    assert pays(lull, lulls, 10.0) == [True, True, True]


def test_the_more_come_in_the_lull_the_more_it_is_worth():
    lull, lulls = after_lulls(1.0)
    # Up to nine a second would miss, of 0.84 each; 0.11 are gained by each that comes.
    assert [pays(lull, lulls, rate)[2] for rate in (10.0, 30.0, 90.0)] == [False, False, True]


def test_the_one_that_serves_is_not_left_for_little():
    lull, lulls = after_lulls(1.0)
    just_not = next(rate for rate in range(90, 0, -1) if not pays(lull, lulls, float(rate))[2])
    few = predicted(float(just_not), (0.0, 0.0, 0.001))
    assert lull.pays(lulls, few, QUALITY, KNOWN, 2)[2]
    fewer = predicted(just_not / 3.0, (0.0, 0.0, 0.001))
    assert not lull.pays(lulls, fewer, QUALITY, KNOWN, 2)[2]


def test_in_a_lull_that_seldom_ends_it_pays():
    lull, lulls = after_lulls(30.0)
    assert pays(lull, lulls, 10.0)[2]


def test_what_misses_no_more_than_the_fastest_pays():
    lull, lulls = after_lulls(1.0, busy_miss=(0.9, 0.9, 0.9))
    assert pays(lull, lulls, 1.0) == [True, True, True]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_odd_predictions_are_not_remembered(odd):
    lull, lulls = after_lulls(1.0)
    before = pays(lull, lulls, 10.0)
    for _ in range(50):
        lulls.observe(300.0 * TICK_S, TICK_S)
        lull.pays(lulls, predicted(300.0, (0.0, 0.0, odd)), QUALITY, KNOWN)
    for _ in range(40):
        lulls.observe(0.0, TICK_S)
    assert pays(lull, lulls, 10.0) == before


def test_the_fastest_is_that_of_those_that_may_serve():
    lull, lulls = after_lulls(1.0, busy_miss=(0.0, 0.05, 0.6))
    few = predicted(3.0, (0.0, 0.0, 0.001))
    assert lull.pays(lulls, few, QUALITY, [False, True, True])[1:] == [True, False]
    assert lull.pays(lulls, few, QUALITY, [False] * 3) is None


@pytest.mark.parametrize(
    ("serving", "feasible", "pays", "chosen", "reason"),
    [
        (0, [True, True, False], None, 1, Reason.BEST_FEASIBLE),
        (0, [True, True, False], [True, False, False], 0, Reason.LULL),
        (1, [True, True, True], [True, True, False], 1, Reason.LULL),
        (2, [True, True, False], [True, False, False], 0, Reason.ESCAPE),
        (2, [True, True, False], [True, True, False], 1, Reason.ESCAPE),
        (0, [True, True, False], [False, False, False], 1, Reason.BEST_FEASIBLE),
    ],
    ids=[
        "no lull",
        "not in a lull",
        "the best does not pay",
        "escape",
        "escape to a better",
        "none",
    ],
)
def test_a_lull_holds_back_what_does_not_pay_and_never_an_escape(
    serving, feasible, pays, chosen, reason
):
    mind = taught()._minds["m"]
    calm = predicted(10.0, (0.0, 0.0, 0.0))
    found = mind._desire(calm, QUALITY, feasible, KNOWN, KNOWN, serving, pays)
    assert found == (chosen, reason)
