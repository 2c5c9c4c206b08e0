"""When the governor looks: ticks at their interval, glances between."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taught_core import POLICY

from controller.planning.pacing import Pacing, interval_s
from controller.policy.model import Objective

AUTO = replace(POLICY, interval_s=None)  # 60 ms: a tick every 20, a glance every 5
TICK_S, GLANCE_S = 0.020, 0.005


def _ticks_s(pressing, until_s=2.0, policy=AUTO):
    """Return when there were ticks and glances; `pressing` tells of each glance in turn."""
    pacing = Pacing(policy, 0.0)
    ticks, glances = [], []
    while pacing.at_s < until_s:
        now_s = pacing.at_s
        if pacing.is_glance and not pressing(len(glances)):
            glances.append(now_s)
            pacing.glanced(now_s)
            continue
        if pacing.is_glance:
            glances.append(now_s)
        ticks.append(now_s)
        pacing.ticked(now_s)
    return ticks, glances


def test_a_calm_tick_is_cut_into_glances():
    assert (AUTO.tick_s, AUTO.glance_s) == (TICK_S, GLANCE_S)
    ticks, glances = _ticks_s(lambda _: False, until_s=0.0599)
    assert [round(1e3 * s) for s in ticks] == [0, 20, 40]
    assert [round(1e3 * s) for s in glances] == [5, 10, 15, 25, 30, 35, 45, 50, 55]


def test_what_is_pressing_has_its_tick_at_once_and_the_next_one_a_whole_tick_later():
    ticks, _ = _ticks_s(lambda glance: glance == 1, until_s=0.0499)
    assert [round(1e3 * s) for s in ticks] == [0, 10, 30]


def test_an_operators_interval_is_kept_without_glances():
    fixed = replace(POLICY, interval_s=0.1)
    assert fixed.glance_s is None
    ticks, glances = _ticks_s(lambda _: True, until_s=1.05, policy=fixed)
    assert len(ticks) == 11
    assert glances == []


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_whatever_presses_ticks_are_at_most_twice_as_many(pattern):
    ticks, glances = _ticks_s(lambda glance: pattern[glance % len(pattern)])
    assert 2.0 / TICK_S - 1 <= len(ticks) <= 2.0 * 2.0 / TICK_S + 4
    assert len(glances) <= 2.0 / GLANCE_S
    assert all(b - a <= TICK_S + 1e-9 for a, b in itertools.pairwise(ticks))


def test_a_loop_that_is_late_does_not_catch_up_by_ticking_faster():
    pacing = Pacing(AUTO, 0.0)
    pacing.ticked(0.5)
    assert pacing.at_s >= 0.5
    pacing.ticked(pacing.at_s)
    assert pacing.at_s > 0.5


def test_where_dispatchers_choose_ticks_are_100_ms_apart_and_nothing_is_glanced_at():
    pacing = Pacing(AUTO, 0.0)
    pacing.ticked(0.0, at_ease=True)
    assert (pacing.at_s, pacing.is_glance) == (0.1, False)
    pacing.ticked(0.1, at_ease=False)
    assert (pacing.at_s, pacing.is_glance) == (pytest.approx(0.105), True)


def test_an_operators_interval_is_kept_where_dispatchers_choose_too():
    assert interval_s(replace(AUTO, interval_s=0.03), at_ease=True) == 0.03
    long = replace(AUTO, models=(replace(AUTO.models[0], objective=Objective(2.0, 99.0)),))
    assert interval_s(long, at_ease=True) == long.tick_s == 0.1
