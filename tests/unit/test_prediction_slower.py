"""A machine that becomes slower is no unsteady one, and what it explains is not counted twice."""

import math
from dataclasses import replace

import numpy as np
import pytest

from controller.planning.core import GovernorCore
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.prediction.calibration import ConformalCalibration, Outcome
from controller.prediction.outcomes import Outcomes
from controller.prediction.own_probes import OwnProbes
from controller.prediction.service import ServiceTimes
from controller.prediction.statements import Statement
from controller.telemetry.observation import (
    BatchSample,
    ModelReading,
    Observation,
    VariantReading,
)

TIMES_S = {"large": 0.04, "small": 0.0005}


def measured(service: ServiceTimes, spreads: dict[str, float], *, slow=1.0, start_s=0.0, polls=120):
    random = np.random.default_rng(1)
    for poll in range(polls):
        now_s = start_s + 0.5 * poll
        service.observe(
            [
                BatchSample(model, 4, 4, TIMES_S[model] * slow * random.lognormal(0.0, s / 2), 0.1)
                for model, s in spreads.items()
            ],
            now_s,
        )
    return now_s


def test_each_variant_has_its_own_spread():
    service = ServiceTimes(tuple(TIMES_S), 8)
    measured(service, {"large": 0.05, "small": 0.4})
    large, small = service.noise
    assert large == pytest.approx(0.05, abs=0.04)
    assert small == pytest.approx(0.4, abs=0.12)


def test_a_machine_three_times_as_slow_is_no_unsteady_one():
    service = ServiceTimes(tuple(TIMES_S), 8)
    spreads = {"large": 0.05, "small": 0.05}
    now_s = measured(service, spreads)
    measured(service, spreads, slow=3.0, start_s=now_s + 0.5, polls=6)
    assert service.noise.max() < 0.15
    assert service.drift_ratio == pytest.approx(3.0, rel=0.15)


def test_a_variant_measured_seldom_does_not_look_unsteady_for_what_happened_between():
    service = ServiceTimes(tuple(TIMES_S), 8)
    now_s = measured(service, {"large": 0.05, "small": 0.05})
    for slow in (3.0, 1.0) * 4:
        now_s = measured(service, {"large": 0.05}, slow=slow, start_s=now_s + 0.5, polls=10)
        now_s = measured(service, {"small": 0.05}, slow=slow, start_s=now_s + 0.5, polls=1)
    assert service.noise[1] < 0.2


def test_a_machine_that_slows_down_is_seen_by_batches_that_always_run_beside_each_other():
    """Large batches come under load alone, when all instances run."""
    service, random = ServiceTimes(tuple(TIMES_S), 8), np.random.default_rng(1)

    def beside(slow: float, start_s: float) -> float:
        for poll in range(100):
            took_s = TIMES_S["large"] * slow * random.lognormal(0.0, 0.05)
            sample = BatchSample("large", 8, 3, took_s, 0.1, siblings_ratio=0.45)
            service.observe([sample], start_s + 0.1 * poll)
        return start_s + 10.0

    now_s = beside(1.0, 0.0)
    assert service.table_s()[0, 7] == pytest.approx(TIMES_S["large"], rel=0.1)
    now_s = beside(2.5, now_s)
    assert service.table_s()[0, 7] == pytest.approx(2.5 * TIMES_S["large"], rel=0.15)
    # One that had the device to itself takes the place of what was learned beside others.
    alone_s = 0.9 * TIMES_S["large"]
    for poll in range(30):
        service.observe([BatchSample("large", 8, 3, alone_s, 0.1)], now_s + 0.1 * poll)
    assert service.table_s()[0, 7] == pytest.approx(alone_s, rel=0.15)


def fed(calibration: ConformalCalibration, ratio: float, count: int, start_s: float = 0.0) -> None:
    for i in range(count):
        stated_s = calibration.stated_s(0.1)
        calibration.observe([Outcome(0.1 * ratio, 0.1, stated_s)], start_s + i * 0.1)


def test_lateness_that_is_explained_is_forgotten_and_what_is_beyond_it_is_not():
    calibration = ConformalCalibration(0.01)
    fed(calibration, 1.0, 400)
    fed(calibration, 3.0, 20, start_s=40.0)
    assert calibration.factor > 2.0
    calibration.excuse(math.log(3.0))
    assert calibration.factor < 1.2
    fed(calibration, 3.0, 20, start_s=42.0)
    calibration.excuse(math.log(2.0))
    assert 1.3 < calibration.factor < 1.8
    calibration.excuse(-1.0)
    assert calibration.factor > 1.3


def test_many_in_time_make_up_for_single_ones_that_were_late():
    slow, soon = ConformalCalibration(0.01), ConformalCalibration(0.01)
    for one in (slow, soon):
        fed(one, 1.0, 400)
        fed(one, 2.5, 10, start_s=40.0)
    fed(slow, 1.0, 200, start_s=41.0)
    for i in range(200):
        stated_s = soon.stated_s(0.1)
        soon.observe([Outcome(0.1, 0.1, stated_s, requests=10)], 41.0 + i * 0.1)
    assert soon.factor < slow.factor
    late = ConformalCalibration(0.01)
    fed(late, 2.5, 20)
    before = late.factor
    for i in range(200):
        late.observe([Outcome(0.4, 0.1, 0.12, requests=10)], 2.0 + i * 0.1)
    assert late.factor >= before


def test_what_was_stated_by_a_faster_machine_teaches_nothing():
    outcomes = Outcomes("m", Objective(0.1, 99.0), ["one"], weights=["one"])
    outcomes.state_for(0.0, {"one": Statement(0.05, 0.05, 0.05)})
    outcomes.excuse([math.log(3.0)])

    def ended(now_s: float) -> None:
        reading = VariantReading("one", True, 0, 10, 10, 2, 0, 0.0, 10 * 0.15)
        observation = Observation(now_s, 1, {}, {}, 0.1)
        outcomes.learn(observation, [reading], OwnProbes(), stalled=False)

    before = outcomes.calibrations["one"].support
    ended(0.2)
    assert outcomes.calibrations["one"].support == before
    outcomes.state_for(1.0, {"one": Statement(0.15, 0.15, 0.15)})
    ended(1.4)
    assert outcomes.calibrations["one"].support > before


def test_a_switch_to_a_variant_on_a_slower_gpu_explains_nothing():
    outcomes = Outcomes("m", Objective(0.1, 99.0), ["here", "there"])
    slow = math.log(2.5)
    outcomes.excuse([0.0, slow])  # the GPU of one of them became slower
    outcomes.state_for(0.0, {"here": Statement(0.1, 0.1, 0.1), "there": Statement(0.1, 0.1, 0.1)})
    for calibration in outcomes.calibrations.values():
        fed(calibration, 2.0, 400)
    before = [one.factor for one in outcomes.calibrations.values()]
    assert min(before) > 1.5
    outcomes.excuse([0.0, slow])  # whichever serves
    assert [one.factor for one in outcomes.calibrations.values()] == before
    # What is late here, where nothing became slower, is not what that explains.
    outcomes.excuse([0.0, slow + 0.5])
    here, there = (one.factor for one in outcomes.calibrations.values())
    assert here > 1.5
    assert outcomes.calibrations["there"].support > 0.0
    assert there < here + 1e-9


def test_profiles_of_one_variant_are_excused_once():
    profiles = Outcomes("m", Objective(0.1, 99.0), ["a", "b"], weights=["w", "w"])
    alone = Outcomes("m", Objective(0.1, 99.0), ["a"])
    for outcomes in (profiles, alone):
        fed(outcomes.calibrations["a"], 4.0, 400)
    profiles.excuse([math.log(2.0)] * 2)
    alone.excuse([math.log(2.0)])
    assert profiles.calibrations["a"].factor == alone.calibrations["a"].factor > 1.2


def test_what_the_present_is_like_outlives_another_policy():
    variants = tuple(VariantPolicy(model, model, 0.8) for model in TIMES_S)
    model = ModelPolicy("m", Objective(0.2, 99.0), variants)
    policy = Policy(TritonPolicy("127.0.0.1:1", None, None), (model,))
    core = GovernorCore(policy)

    def serve(slow: float, from_s: float, ticks: int) -> float:
        for tick in range(ticks):
            now_s = from_s + 0.1 * tick
            samples = tuple(BatchSample(m, 4, 4, s * slow, 0.1) for m, s in TIMES_S.items())
            core.step(
                Observation(
                    now_s,
                    tick,
                    {"m": ModelReading("m", "large", ready=True)},
                    {"large": VariantReading("large", True, 0)},
                    0.1,
                    batch_samples=samples,
                )
            )
        return now_s + 0.1

    now_s = serve(2.5, serve(1.0, 0.0, 200), 40)
    assert core.device_ratios[0] == pytest.approx(2.5, rel=0.1)
    noise = core._service.noise.tolist()
    core.set_policy(replace(policy, models=(replace(model, weight=2.0),)))
    assert core.device_ratios[0] == pytest.approx(2.5, rel=0.1)
    assert core._service.noise.tolist() == pytest.approx(noise)
    outcomes = core._minds["m"].predictor._outcomes
    fed(outcomes.calibrations["large"], 2.0, 400, start_s=now_s)
    before = outcomes.calibrations["large"].factor
    serve(2.5, now_s + 40.0, 1)
    assert outcomes.calibrations["large"].factor > 0.9 * before  # nothing is explained again
