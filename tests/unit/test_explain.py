"""The paragraph that explains a decision."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest

from controller.planning.decision import Candidate, Decision, Excluded, Reason
from controller.planning.explain import explain_decision
from controller.policy.model import ModelPolicy, Objective, VariantPolicy
from controller.prediction.costs import ActionCosts
from controller.telemetry.observation import ActionCost

MODEL = ModelPolicy(
    name="digits",
    objective=Objective(latency_s=0.060, percentile=99.0),
    variants=(
        VariantPolicy("wide", "digits_wide", 0.927),
        VariantPolicy("medium", "digits_medium", 0.905),
        VariantPolicy("narrow", "digits_narrow", 0.884),
    ),
)


def candidate(variant: str, quality: float, **changes: object) -> Candidate:
    values: dict[str, object] = {
        "variant": variant,
        "model": f"digits_{variant}",
        "quality": quality,
        "excluded": None,
        "known": True,
        "service_s": 0.004,
        "utilization_ratio": 0.5,
        "p50_s": 0.01,
        "p99_s": 0.04,
        "told_p99_s": 0.045,
        "miss_ratio": 0.002,
        "value": 0.9,
        "feasible": True,
    }
    return Candidate(**{**values, **changes})


def decision(**changes: object) -> Decision:
    values: dict[str, object] = {
        "now_s": 1.0,
        "sequence": 1,
        "model": "digits",
        "serving": "wide",
        "desired": "medium",
        "target": "medium",
        "reason": Reason.ESCAPE,
        "candidates": (
            candidate("wide", 0.927, p99_s=0.184, miss_ratio=0.31, feasible=False),
            candidate("medium", 0.905),
            candidate("narrow", 0.884, p99_s=0.012),
        ),
        "rate_rps": 212.0,
        "rate_p95_rps": 260.0,
        "rows_per_request": 1.5,
        "backlog_requests": 14,
        "backlog_s": 0.062,
        "drift_ratio": 1.0,
    }
    return Decision(**{**values, **changes})


def test_an_escape_tells_what_was_seen_compared_chosen_and_why() -> None:
    assert explain_decision(decision(), MODEL) == (
        "digits: about 212 requests/s are expected (260 at the 95th percentile), and 14 requests "
        "wait (62 ms of work). Of 3 variants, 2 are predicted to answer 99 % of requests within "
        "60 ms. It switches from wide to medium at once: wide would miss the objective (31 % of "
        "requests late). Predicted for medium (quality 0.905): 40 ms, with 0.2 % of requests late; "
        "by what came of such predictions, 45 ms. "
        "wide (quality 0.927) would miss the objective: its 99th percentile would be 184 ms, with "
        "31 % of requests late."
    )


def test_a_variant_that_is_in_time_but_could_not_keep_up_is_not_said_to_miss() -> None:
    candidates = (
        candidate("wide", 0.927, p99_s=0.045, feasible=False),
        candidate("medium", 0.905),
        candidate("narrow", 0.884, p99_s=0.012),
    )
    text = explain_decision(decision(candidates=candidates), MODEL)
    assert "wide would soon miss the objective (0.2 % of requests late)" in text
    assert (
        "wide (quality 0.927) would meet the objective at first, but gather a backlog if the load "
        "reaches the 260 requests a second that it may."
    ) in text


def test_every_reason_has_a_sentence_of_its_own() -> None:
    texts = {reason: explain_decision(decision(reason=reason), MODEL) for reason in Reason}
    assert len(set(texts.values())) == len(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_can_be_told_when_next_to_nothing_is_known(reason: Reason) -> None:
    for candidates in (
        (),
        (candidate("wide", 0.9, known=False, p99_s=math.nan, miss_ratio=math.inf),),
        (candidate("wide", 0.9, excluded=Excluded.NOT_READY, p99_s=math.inf),),
    ):
        text = explain_decision(
            decision(
                reason=reason,
                serving=None,
                desired=None,
                target=None,
                candidates=candidates,
                rate_rps=math.nan,
                rate_p95_rps=math.inf,
                backlog_requests=0,
                backlog_s=math.nan,
                drift_ratio=math.nan,
            ),
            MODEL,
        )
        assert text.endswith(".")
        for word in ("None", "nan", "inf ", "  "):
            assert word not in text


@pytest.mark.parametrize(
    ("excluded", "words"),
    [
        (Excluded.MIN_QUALITY, "wide (quality 0.927) is below the policy's min_quality"),
        (Excluded.NOT_READY, "wide (quality 0.927) is not ready on Triton"),
        (Excluded.UNUSABLE, "wide (quality 0.927) cannot be switched to"),
    ],
)
def test_a_better_variant_that_is_excluded_is_named_with_its_reason(
    excluded: Excluded, words: str
) -> None:
    candidates = (candidate("wide", 0.927, excluded=excluded), candidate("medium", 0.905))
    assert words in explain_decision(decision(candidates=candidates), MODEL)


def test_every_exclusion_can_be_told() -> None:
    for excluded in Excluded:
        text = explain_decision(
            decision(
                reason=Reason.NO_CHOICE,
                target=None,
                candidates=(candidate("wide", 0.9, excluded=excluded),),
            ),
            MODEL,
        )
        assert "No variant may be chosen: wide" in text


def test_a_pin_says_what_would_be_chosen_without_it() -> None:
    text = explain_decision(decision(reason=Reason.PINNED, target="wide", desired="narrow"), MODEL)
    assert "An operator has pinned it to wide." in text
    assert "By itself the governor would choose narrow." in text


def test_a_machine_that_slows_down_is_mentioned() -> None:
    slow = explain_decision(dataclasses.replace(decision(), drift_ratio=1.5), MODEL)
    assert "The machine runs 1.5 times slower than learned." in slow
    fast = explain_decision(dataclasses.replace(decision(), drift_ratio=0.5), MODEL)
    assert "2.0 times faster" in fast
    assert "times" not in explain_decision(decision(), MODEL)


@pytest.mark.parametrize(
    ("percentile", "words"),
    [(99.0, "99th"), (99.9, "99.9th"), (91.0, "91st"), (11.0, "11th"), (93.0, "93rd")],
)
def test_percentiles_are_spelt_as_people_do(percentile: float, words: str) -> None:
    model = dataclasses.replace(MODEL, objective=Objective(0.060, percentile))
    assert f"its {words} percentile" in explain_decision(decision(), model)


def test_why_the_chosen_profile_and_not_another_is_told() -> None:
    model = replace(
        MODEL,
        variants=(
            VariantPolicy("wide", "w", 0.927),
            VariantPolicy("wide.b16", "w16", 0.927, max_batch=16, profile_of="wide"),
            VariantPolicy("wide.b4", "w4", 0.927, max_batch=4, profile_of="wide"),
            VariantPolicy("wide.b2", "w2", 0.927, max_batch=2, profile_of="wide"),
            VariantPolicy("wide.b1", "w1", 0.927, max_batch=1, profile_of="wide"),
            VariantPolicy("narrow", "n", 0.884),
        ),
    )
    candidates = (
        candidate("wide", 0.927, known=False, feasible=False),
        candidate("wide.b16", 0.927, miss_ratio=0.12, feasible=False, value=0.81),
        candidate("wide.b4", 0.927),
        candidate("wide.b2", 0.927, value=0.8999),
        candidate("wide.b1", 0.927, utilization_ratio=1.4, feasible=False),
        candidate("narrow", 0.884),
    )
    text = explain_decision(
        decision(candidates=candidates, serving="wide.b16", target="wide.b4"), model
    )
    assert (
        "It serves wide in batches of up to 4; in batches as large as it takes has not been "
        "measured yet; in batches of up to 16 would have 12 % of requests late; in batches of up "
        "to 2 would be worth less with what waits or may come; request by request would not keep "
        "up: what arrives is 140 % of what it can do."
    ) in text
    other = decision(candidates=candidates, serving="narrow", target="narrow")
    assert "It serves" not in explain_decision(other, model)


@pytest.mark.parametrize(
    ("changes", "other", "words"),
    [
        ({"reason": Reason.DWELL, "desired": "wide.b4"}, {}, "up to 4 is wanted next"),
        (
            {"reason": Reason.RECOVERY},
            {"miss_ratio": 0.30, "feasible": False},
            "would have 30 % of requests late, not so many fewer as a switch costs",
        ),
        (
            {"reason": Reason.STEADY},
            {"feasible": False, "value": 0.95},
            "would gather a backlog if the load rose as it may",
        ),
    ],
)
def test_what_is_told_of_another_profile_agrees_with_the_decision(changes, other, words) -> None:
    model = replace(
        MODEL,
        variants=(
            VariantPolicy("wide", "w", 0.927, max_batch=16),
            VariantPolicy("wide.b4", "w4", 0.927, max_batch=4, profile_of="wide"),
        ),
    )
    candidates = (
        candidate("wide", 0.927, miss_ratio=0.39, feasible=False),
        candidate("wide.b4", 0.927, **other),
    )
    settled = {"serving": "wide", "desired": "wide", "target": "wide", **changes}
    text = explain_decision(decision(candidates=candidates, **settled), model)
    assert words in text
    fallback = {**settled, "reason": Reason.FALLBACK}
    text = explain_decision(decision(candidates=candidates, **fallback), model)
    assert "It serves" not in text


def test_what_actions_take_is_told_where_it_was_seen():
    costs = ActionCosts()
    assert explain_decision(decision(), MODEL, costs) == explain_decision(decision(), MODEL)
    missing = dataclasses.replace(
        decision(),
        candidates=tuple(
            candidate._replace(excluded=Excluded.NOT_LOADED) if at == 0 else candidate
            for at, candidate in enumerate(decision().candidates)
        ),
    )
    unloaded = missing.candidates[0]
    costs.observe(
        [
            ActionCost("switch", MODEL.name, "x", 0.021, 1.0, ok=True),
            ActionCost("load", MODEL.name, unloaded.model, 7.9, 1.0, ok=True),
            ActionCost("load", MODEL.name, missing.candidates[1].model, 5.0, 1.0, ok=True),
        ]
    )
    text = explain_decision(missing, MODEL, costs)
    assert text.endswith(
        f"Of late took a switch, with its checks and its proof, 21 ms, a load of {unloaded.variant}"
        " 7.9 s."
    )
    costs.disturbances.restore({"load": [[0.05, 1.0]]})
    assert explain_decision(missing, MODEL, costs).endswith(
        " 7.9 s (5 % more requests late meanwhile)."
    )
