"""Why another batch size: the sentences, on decisions that the governor really made."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from controller.planning.choice import ModelMind
from controller.planning.explain import explain_decision
from controller.twin import contest
from controller.twin.ladder import Ladder, TwinVariant
from controller.twin.plan import Plan
from controller.twin.profiles import with_profiles
from controller.twin.trace import Trace

LIMIT_S = 0.060
# Batches of 32 take 18.5 ms, of 8 8.5: two of the large one fit, slowed down 2.9 times they do not.
VARIANT = TwinVariant("large", 0.90, 0.0050 + 0.00042 * np.arange(1, 33))
ENGINES = with_profiles(Ladder("one", (VARIANT,)), (8,), fixed_shape=True)
LIMITS = with_profiles(Ladder("one", (VARIANT,)), (8,), fixed_shape=False)


@pytest.fixture
def decisions(monkeypatch):
    """Every decision that is made, with the policy it was made for."""
    made = []
    decide = ModelMind.decide

    def kept(mind, *args, **kwargs):
        decision = decide(mind, *args, **kwargs)
        made.append((decision, mind._policy))
        return decision

    monkeypatch.setattr(ModelMind, "decide", kept)
    return made


def serve(rates_rps, ladder=ENGINES, *, slowdown=1.0, slowdown_from=0.0):
    trace = Trace("two", np.array(rates_rps), 1.0)
    plan = Plan(
        trace, ladder, LIMIT_S, as_recorded=True, slowdown=slowdown, slowdown_from=slowdown_from
    )
    contest.run(plan, trace, "governor", trace.arrivals_s(1), 1)


def switches(decisions, serving, target):
    found = [
        explain_decision(decision, policy)
        for decision, policy in decisions
        if decision.changes and (decision.serving, decision.target) == (serving, target)
    ]
    assert found, {(d.serving, d.target) for d, _ in decisions if d.changes}
    return found


def number(pattern, text):
    match = re.search(pattern, text)
    assert match, (pattern, text)
    return float(match[1])


def test_a_device_that_is_slow_now_is_the_reason_for_a_smaller_engine(decisions):
    serve([900.0] * 12 + [120.0] * 18, slowdown=2.9, slowdown_from=0.4)
    found = switches(decisions, "large", "large.b8")
    text = found[0]
    assert "large -> large.b8: a batch of 32 takes" in text
    takes_ms = number(r"a batch of 32 takes (\d+) ms now", text)
    # It moves as soon as it notices, which is before it knows how slow all has become.
    assert 1.1 < number(r"\(([\d.]+) times as long as usual\)", text) < 3.5
    assert 18.5 < takes_ms < 18.5 * 2.9 * 1.1
    assert number(r"would need up to (\d+) ms of the 60 ms", text) == pytest.approx(
        2 * takes_ms, abs=1.0
    )
    assert ("as such times vary" in text) == (2 * takes_ms <= 60.0)
    assert 20 < number(r"large\.b8 bears the (\d+) rows/s", text) < 1000
    assert number(r"two of its batches take (\d+) ms", text) < 2 * takes_ms
    assert "It serves large in batches of up to 8" in text


def test_a_load_that_the_small_engine_cannot_bear_is_the_reason_for_a_larger_one(decisions):
    serve([1200.0] * 6)
    decision, policy = next(pair for pair in reversed(decisions) if pair[0].target == "large")
    # The same moment, had the small one served until then.
    text = explain_decision(replace(decision, serving="large.b8"), policy)
    share = number(
        r"large\.b8 -> large: the \d+ rows/s that are expected are ([\d.]+) % of what batches of 8"
        r" bear, which take 8\.\d ms each",
        text,
    )
    of_large = number(r"of batches of 32, which take 1\d ms, they are ([\d.]+) %", text)
    assert share > of_large
    assert share == pytest.approx(of_large * (32 / 18.5) / (8 / 8.5), rel=0.1)
    assert "and two of them still fit into the 60 ms." in text


def test_a_batch_limit_is_not_told_of_as_if_it_were_an_engine(decisions):
    serve([100.0] * 4, LIMITS)
    decision, policy = next(pair for pair in reversed(decisions) if pair[0].serving is not None)
    other = {"large": "large.b8", "large.b8": "large"}[decision.serving]
    forced = replace(decision, desired=other, target=other)
    text = explain_decision(forced, policy)
    assert f"{decision.serving} -> {other}: " in text
    assert "just after" not in text
    assert "still fit" not in text


def test_nothing_is_told_of_a_move_from_another_variant_or_of_none(decisions):
    serve([100.0] * 4)
    decision, policy = next(pair for pair in reversed(decisions) if pair[0].serving is not None)
    assert not decision.changes
    assert "->" not in explain_decision(decision, policy)
    stranger = replace(decision, serving="somebody", target="large")
    assert "->" not in explain_decision(stranger, policy)
