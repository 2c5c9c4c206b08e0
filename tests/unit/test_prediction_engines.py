"""Engines of fixed shapes on a host: few measurements, a machine that slows down, moments beside.

An engine takes as long for one row as for a full batch, is measured in three sizes, and meets the
others while one that was left works its queue off.
"""

import math

import numpy as np
import pytest

from controller.planning.core import GovernorCore
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
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

ENGINE_S = {"large": 0.045, "small": 0.008}
POLL_S = 0.5


def probed(service: ServiceTimes, sizes=(1, 3, 8)) -> float:
    """Measure each engine three times in each size; return the time."""
    now_s = 0.0
    for _ in range(3):
        for rows in sizes:
            for model, took_s in ENGINE_S.items():
                service.observe([BatchSample(model, rows, 1, took_s, 0.1)], now_s)
            now_s += POLL_S
    return now_s


def test_sizes_nobody_measured_tell_of_the_machine_where_those_around_take_the_same():
    service = ServiceTimes(tuple(ENGINE_S), 8)
    now_s = probed(service)
    for poll in range(6):
        rows = (2, 5, 6)[poll % 3]
        sample = BatchSample("large", rows, 5, 2.8 * ENGINE_S["large"], 0.1)
        service.observe([sample], now_s + POLL_S * poll)
    assert service.drift_ratio == pytest.approx(2.8, rel=0.18)
    # So the others are known to be slower, too, and the engine itself is not taken for it.
    assert service.table_s()[1, 7] == pytest.approx(2.8 * ENGINE_S["small"], rel=0.15)
    usual = service.usual_s("large", 5)
    assert usual == pytest.approx(ENGINE_S["large"], rel=0.25)


def test_a_night_leaves_what_was_learned_of_a_variant_as_it_was():
    service, random = ServiceTimes(tuple(ENGINE_S), 8), np.random.default_rng(1)
    now_s = probed(service)
    for slow, polls in ((1.0, 10), (2.8, 20), (1.0, 4)):
        for _ in range(polls):
            now_s += POLL_S
            samples = [
                BatchSample("small", r, 12, slow * 0.008 * random.lognormal(0.0, 0.03), 0.25)
                for r in (1, 2, 3)
            ]
            service.observe(samples, now_s)
    assert service.drift_ratio == pytest.approx(1.0, abs=0.1)
    assert service.usual_s("small", 2) == pytest.approx(0.008, rel=0.05)


def test_on_a_host_what_ran_beside_a_relative_teaches_nothing_that_is_known():
    """A probe beside the variant that serves takes twice as long where both have one core."""
    variants = tuple(VariantPolicy(model, model, 0.8) for model in ENGINE_S)
    model = ModelPolicy("m", Objective(0.2, 99.0), variants, client_max_batch=8)
    core = GovernorCore(Policy(TritonPolicy("127.0.0.1:1", None, None), (model,)))
    probed(core._service)
    before = core._service.table_s().copy()
    for tick in range(60):
        both = tick % 3 == 0
        names = tuple(ENGINE_S) if both else ("large",)
        core.step(
            Observation(
                10.0 + 0.1 * tick,
                tick,
                {"m": ModelReading("m", "large", ready=True)},
                {
                    name: VariantReading(name, True, 0, 4, 4, 1, compute_s=4 * 0.09)
                    for name in names
                },
                0.1,
                batch_samples=tuple(
                    # The probe lies within one of the batches beside it, of which few are so.
                    BatchSample(name, 3, 1, ENGINE_S[name] * (1 + (name == "small")), 0.05)
                    for name in names
                ),
            )
        )
    assert core._service.drift_ratio == pytest.approx(1.0, abs=0.1)
    assert core._service.table_s() == pytest.approx(before, rel=0.1)


def test_a_host_that_serves_with_two_engines_in_turn_is_not_slower_by_that():
    """Each batch of both takes twice as long while they share a core; alone it takes as ever."""
    variants = tuple(VariantPolicy(model, model, 0.8) for model in ENGINE_S)
    model = ModelPolicy("m", Objective(0.2, 99.0), variants, client_max_batch=8)
    core = GovernorCore(Policy(TritonPolicy("127.0.0.1:1", None, None), (model,)))
    probed(core._service)
    slowest = 1.0
    for tick in range(200):
        serving = "large" if tick // 5 % 2 else "small"
        both = 20 <= tick < 120
        names = tuple(ENGINE_S) if both else (serving,)
        core.step(
            Observation(
                10.0 + 0.1 * tick,
                tick,
                {"m": ModelReading("m", serving, ready=True)},
                {name: VariantReading(name, True, 0, 4, 4, 1, compute_s=4 * 0.1) for name in names},
                0.1,
                batch_samples=tuple(
                    BatchSample(name, 3, 1, ENGINE_S[name] * (1 + both), 0.05) for name in names
                ),
            )
        )
        if tick >= 60:  # what they are in each other's way is learned by then
            slowest = max(slowest, core._service.drift_ratio)
    assert slowest < 1.3
    assert core._service.drift_ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("rises_to", "stays"), [(1.6, True), (1.6, False), (1.1, True)])
def test_lateness_on_a_machine_that_became_slower_is_retracted_once_that_stays(rises_to, stays):
    outcomes = Outcomes("m", Objective(0.1, 99.0), ["one"])

    def learn(now_s: float, latency_s: float = 0.0) -> None:
        requests = 10 if latency_s else 0
        reading = VariantReading("one", True, 0, requests, requests, 2, 0, 0.0, 10 * latency_s)
        outcomes.learn(Observation(now_s, 1, {}, {}, 0.1), [reading], OwnProbes(), stalled=False)

    def state(now_s: float) -> None:
        outcomes.state_for(now_s, {"one": Statement(0.05, 0.05, 0.05)})

    outcomes.excuse([0.0])
    for tick in range(50):
        state(0.1 * tick)
        learn(0.1 * tick + 0.06, 0.05)
    calm = outcomes.calibrations["one"].factor
    for tick in range(4):
        state(5.0 + 0.1 * tick)
        learn(5.06 + 0.1 * tick, 0.09)
    assert outcomes.calibrations["one"].factor > 1.3 * calm
    outcomes.excuse([math.log(rises_to) * 0.8])  # what is known of it at once; less than 0.4
    if not stays:
        outcomes.excuse([0.0])
    for tick in range(14):
        learn(5.5 + 0.1 * tick)
    explained = rises_to > 1.2 and stays
    assert (outcomes.calibrations["one"].factor < 1.2 * calm) is explained
