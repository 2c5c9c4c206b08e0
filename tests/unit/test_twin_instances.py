"""Instances in the twin: the governor finds out what they bring, and where they bring nothing."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.planning.core import GovernorCore
from controller.planning.explain_instances import explain_instances
from controller.telemetry.observation import Instances
from controller.twin.drive import looks, policy_for, profile_of
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan
from controller.twin.port import TwinPort
from controller.twin.server import SimulatedTriton
from controller.twin.trace import load_trace

DATA = Path(__file__).parents[2] / "benchmarks" / "data"


def run(parallel: float, seconds: float = 40.0):
    trace = load_trace(DATA / "azure-code.csv").window(0.0, seconds)
    plan = Plan(trace, load_ladder(DATA / "gpunet-v100.yaml"), 0.2)
    plan = replace(plan, parallel=parallel, max_instances=3)
    load = plan.load()
    server = SimulatedTriton(
        plan.variants,
        load.arrivals_s(1),
        serving=0,
        limit_s=0.2,
        physics=plan.physics(load),
        seed=1,
    )
    policy = policy_for(server, 0.2, 99.0, max_instances=3)
    core = GovernorCore(policy)
    core.restore(profile_of(server, policy))
    port = TwinPort(server, *policy.models)
    for look in looks(server, core, port, policy, duration_s=seconds, seed=1):
        last = look.observation
    return core, policy, last


def test_where_a_batch_fills_the_device_no_instance_is_added():
    core, _, last = run(1.0)
    assert {own.number for own in last.instances.values()} == {1}
    assert max(core.sizes()[model]["overlap"] for model in last.instances) > 0.5


@pytest.mark.parametrize("parallel", [1.5, 2.0])
def test_where_batches_run_beside_each_other_the_better_variants_get_more(parallel):
    core, policy, last = run(parallel)
    more = {model for model, own in last.instances.items() if own.number > 1}
    assert more
    truth = 2.0 / parallel - 1.0
    assert core.sizes()[more.pop()]["overlap"] == pytest.approx(truth, abs=0.3)
    text = explain_instances(policy.models[0], core.sizes(), last.instances)
    assert "has 2 instances of at most 3 (beside another batch" in text
    assert explain_instances(policy.models[0], core.sizes(), {}) == ""
    name = policy.models[0].variants[0].model
    sizes = {name: {"most": 3, "wanted": 2, "gain_of_more": 0.0, "overlap": 0.5}}
    one = {name: Instances(1, 1)}
    assert "it is to have 2, when it does not serve" in explain_instances(
        policy.models[0], sizes, one
    )
    alone = replace(policy.models[0], variants=policy.models[0].variants[:1])
    assert "it is to have 2 soon." in explain_instances(alone, sizes, one)


@pytest.mark.parametrize("load", [1.2, 2.5])
def test_a_lone_variant_gets_more_behind_a_queue_that_is_hopeless_with_any_number(load):
    """Every request of the next seconds is late whatever is done: no reason to do nothing."""
    trace = load_trace(DATA / "azure-code.csv").window(0.0, 40.0)
    plan = Plan(trace, load_ladder(DATA / "gpunet-v100.yaml"), 0.2)
    plan = replace(plan, parallel=2.0, max_instances=3)
    lone = plan.variants[:1]
    bears_rps = max((at + 1) / took_s for at, took_s in enumerate(lone[0].table_s))
    arrivals_s = np.arange(0.0, 40.0, 1.0 / (load * bears_rps))
    server = SimulatedTriton(
        lone,
        np.concatenate([np.zeros(round(60.0 * bears_rps)), arrivals_s]),  # what waits at first
        serving=0,
        limit_s=0.2,
        physics=plan.physics(plan.load()),
        seed=1,
    )
    policy = policy_for(server, 0.2, 99.0, max_instances=3)
    core = GovernorCore(policy)
    core.restore(profile_of(server, policy))
    port = TwinPort(server, *policy.models)
    for look in looks(server, core, port, policy, duration_s=40.0, seed=1):
        (own,) = look.observation.instances.values()
    assert own.number > 1


def test_what_was_learned_of_it_survives():
    core, policy, _ = run(2.0, 20.0)
    again = GovernorCore(policy)
    assert again.restore(core.state()) == ()
    assert {m: s["overlap"] for m, s in again.sizes().items()} == {
        m: s["overlap"] for m, s in core.sizes().items()
    }
    broken = {**core.state(), "overlap": {"all": [1.0]}}
    (problem,) = GovernorCore(policy).restore(broken)
    assert "instances" in problem


def test_what_is_not_loaded_has_no_number_of_instances():
    """As from the real server; of none there would be no time that a batch takes."""
    trace = load_trace(DATA / "azure-code.csv").window(0.0, 5.0)
    plan = replace(Plan(trace, load_ladder(DATA / "gpunet-v100.yaml"), 0.2), max_instances=3)
    load = plan.load()
    server = SimulatedTriton(
        plan.variants, load.arrivals_s(1), serving=0, limit_s=0.2, physics=plan.physics(load)
    )
    policy = policy_for(server, 0.2, 99.0, max_instances=3)
    core, port = GovernorCore(policy), TwinPort(server, *policy.models)
    core.restore(profile_of(server, policy))
    assert server.pool.unload(1)
    for look in looks(server, core, port, policy, duration_s=1.0, seed=1):
        assert look.observation.instances.keys() == {
            variant.model for at, variant in enumerate(policy.models[0].variants) if at != 1
        }
        assert all(math.isfinite(c.p99_s) for d in look.decisions for c in d.candidates)
