"""Profiles of one variant's weights: chosen between with reluctance, learned of together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from taught_core import POLICY, SERVERS, observation

from controller.planning.core import GovernorCore
from controller.planning.profiles import Profiles
from controller.policy.model import Objective, VariantPolicy
from controller.prediction.outcomes import Outcomes
from controller.prediction.own_probes import OwnProbes
from controller.prediction.queues import Queues, unfinished_s
from controller.prediction.statements import Statement
from controller.telemetry.observation import BatchSample, RequestSample, VariantReading

MODEL = replace(
    POLICY.models[0],
    client_max_batch=1,
    variants=(
        VariantPolicy("big", "m_big", 0.93),
        VariantPolicy("big.b4", "m_mid", 0.93, max_batch=4, profile_of="big"),
        VariantPolicy("tiny", "m_tiny", 0.85),
    ),
)


@pytest.mark.parametrize(
    ("value", "serving", "kept"),
    [
        ([0.9, 0.9, 0.8], None, [0, 2]),  # as good: the faster one
        ([0.9, 0.9, 0.8], 1, [1, 2]),  # as good: the one that serves
        ([0.896, 0.9, 0.8], 0, [0, 2]),  # hardly better is not worth a switch
        ([0.89, 0.9, 0.8], 0, [1, 2]),
        ([0.89, 0.9, 0.8], 2, [1, 2]),
    ],
)
def test_one_profile_of_each_variant_is_considered(value, serving, kept) -> None:
    speed = [300.0, 200.0, 900.0]
    assert Profiles(MODEL).choose(value, [0, 1, 2], speed, serving, same=0.005) == kept


def test_a_profile_forms_no_larger_batch_than_it_says() -> None:
    core = GovernorCore(replace(POLICY, models=(MODEL,)))
    samples = tuple(
        BatchSample(k, rows, 1, server.service_s(rows), 0.1)
        for k, server in SERVERS.items()
        for rows in (1, 4, 8)  # more than the profile takes: somebody else's, or a mistake
    )
    core.step(observation(0.0, batch_samples=samples))
    predictor = core._minds["m"].predictor
    assert dict(zip(predictor.models, predictor.limits.tolist(), strict=True)) == {
        "m_big": 8,
        "m_mid": 4,
        "m_tiny": 8,
    }
    state = predictor.state()
    state["limits"]["m_mid"] = 8
    predictor.restore(state)
    assert predictor.limits.tolist() == [8, 4, 8]


def test_what_a_switch_leaves_behind_counts_in_whole_batches() -> None:
    table_s = np.array([[1.0, 1.5, 2.0, 2.5], [10.0] * 4, [100.0] * 4])
    queues = Queues(
        parts=[slice(0, 3)],
        lookup=np.arange(3),
        limits=np.array([4, 4, 4]),
        gain=1.0,
        waiting_rows=np.array([0.0, 5.0, 0.0]),  # a full batch and one of a single row
        running_rows=np.array([2.0, 4.0, 3.0]),
        batches_s=np.array([0.4, 0.1, 0.0]),  # 0.4 a second of 1.5 s each: it runs 60 % of the time
        work_s=np.zeros(3),
        requests=[5],
    )
    left_s = unfinished_s(queues, table_s)
    assert left_s == pytest.approx([0.6 * 0.75, 20.0 + 5.0, 0.0])
    # Beside other models each batch takes longer, and so keeps its variant busy for longer.
    left_s = unfinished_s(queues, table_s, np.array([1.5, 2.0, 1.0]))
    assert left_s == pytest.approx([0.9 * 1.5 * 0.75, 2.0 * 25.0, 0.0])
    odd = queues._replace(running_rows=np.full(3, np.nan), waiting_rows=np.full(3, np.nan))
    with np.errstate(invalid="ignore"):
        assert len(unfinished_s(odd, table_s)) == 3  # whatever it says, it says something


def test_profiles_of_one_variant_share_what_late_requests_taught() -> None:
    outcomes = Outcomes(
        "m", Objective(0.06, 99.0), ["whole", "b4", "other"], weights=["whole", "whole", "other"]
    )
    said = Statement(0.01, 0.01, 0.01)
    for tick in range(200):
        now_s = 0.05 * tick
        outcomes.state_for(now_s, {"whole": said})
        late = RequestSample("m", "whole", now_s + 0.001, 0.05)
        seen = observation(now_s + 0.1, request_samples=(late,), readings_age_s=0.0)
        outcomes.learn(seen, [VariantReading("whole", True, 0)], OwnProbes(), stalled=False)
    calibrations = outcomes.calibrations
    assert calibrations["whole"].factor > 1.5
    assert calibrations["b4"].factor == calibrations["whole"].factor
    assert outcomes.observed == calibrations["whole"].observed  # not counted twice

    fresh = Outcomes(
        "m", Objective(0.06, 99.0), ["b4", "other"], weights=["whole", "other"]
    )  # the policy dropped the variant itself, or stored state knows other profiles
    fresh.restore(outcomes.state())
    assert fresh.calibrations["b4"].factor == pytest.approx(calibrations["whole"].factor)
    kept = Outcomes("m", Objective(0.06, 99.0), ["b4", "other"], weights=["whole", "other"])
    kept.take_over(outcomes)
    assert kept.calibrations["b4"] is calibrations["b4"]


def test_what_was_learned_of_variants_is_kept_when_they_become_profiles_and_back() -> None:
    def outcomes(*weights: str) -> Outcomes:
        return Outcomes("m", Objective(0.06, 99.0), ["w", "b4"], weights=weights)

    apart = outcomes("w", "b4")
    said = Statement(0.01, 0.01, 0.01)
    for tick in range(200):
        apart.state_for(0.05 * tick, {"w": said})
        late = RequestSample("m", "w", 0.05 * tick + 0.001, 0.05)
        seen = observation(0.05 * tick + 0.1, request_samples=(late,), readings_age_s=0.0)
        apart.learn(seen, [VariantReading("w", True, 0)], OwnProbes(), stalled=False)
    known = apart.calibrations["w"]
    assert known.support > 100

    together, restored = outcomes("w", "w"), outcomes("w", "w")
    together.take_over(apart)
    restored.restore(apart.state())
    assert together.calibrations["b4"].support == pytest.approx(known.support)
    assert restored.calibrations["b4"].support == pytest.approx(known.support)

    again = outcomes("w", "b4")
    again.take_over(together)
    assert again.calibrations["w"] is not again.calibrations["b4"]
    assert again.observed == together.observed  # not counted twice


def test_a_variant_with_profiles_forms_the_batches_that_the_policy_says() -> None:
    """Though a small profile serves, and nothing larger was ever seen: it bears the burst."""
    model = replace(
        MODEL, variants=(replace(MODEL.variants[0], max_batch=128), *MODEL.variants[1:])
    )
    predictor = GovernorCore(replace(POLICY, models=(model,)))._minds["m"].predictor
    assert predictor.limits.tolist() == [128, 4, 1]
