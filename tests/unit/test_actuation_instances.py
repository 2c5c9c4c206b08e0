"""How a variant gets the instances that it is to have: while it is idle, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from controller.actuation.alias import instances_of
from controller.actuation.instances import instance_readings
from controller.actuation.queueing import is_pending, may_reload, queue_view, set_up, take_back
from controller.actuation.remembered import Memory, Override
from controller.actuation.state import Server, Timing, Variant
from controller.policy.model import (
    ModelPolicy,
    Objective,
    Policy,
    QueuePolicy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import Instances

DISK = {
    "name": "best",
    "max_batch_size": 8,
    "instance_group": [{"name": "best_0", "kind": "KIND_GPU", "count": 1, "gpus": [0, 1]}],
    "dynamic_batching": {},
}


def policy(*, most: int | None = 4, queue: QueuePolicy | None = None) -> Policy:
    variants = (
        VariantPolicy("best", "best", 0.9, max_instances=most),
        VariantPolicy("fast", "fast", 0.8),
    )
    model = ModelPolicy("chat", Objective(0.1, 99.0), variants, queue=queue)
    return Policy(triton=TritonPolicy("127.0.0.1:1", None, None), models=(model,))


def a_server(of: Policy, memory: Memory | None = None, *, target: str = "fast") -> Server:
    server = Server(
        policy=of,
        control=SimpleNamespace(),
        owner="us",
        clock=lambda: 100.0,
        timing=Timing(),
        memory=memory or Memory(None),
        on_record=lambda _: None,
    )
    for name, variant in server.variants.items():
        variant.ready = variant.proven = variant.warm = True
        variant.config = {**DISK, "name": name}
    for alias in server.aliases.values():
        alias.target, alias.ready, alias.known, alias.since_s = target, True, True, 0.0
    return server


def loaded(server: Server, variant: Variant) -> None:
    """What a load of its override leaves."""
    variant.config = dict(variant.override.sent)
    variant.override = replace(variant.override, expected=variant.config)
    variant.reapply = False
    server.memory.override(variant.model, variant.override)


def test_only_the_number_is_another_and_it_is_taken_back():
    server = a_server(policy())
    best = server.variants["best"]
    assert not is_pending(server, best)
    best.instances = 3
    assert may_reload(server, best)
    assert set_up(server, best)
    assert best.override.of_policy == ("instance_group",)
    group = {**DISK["instance_group"][0], "count": 3}
    assert best.override.sent == {**DISK, "instance_group": [group]}
    loaded(server, best)
    assert not is_pending(server, best)
    assert instance_readings(server)["best"] == Instances(3, 1, may_change=True)
    best.instances = 1
    assert set_up(server, best)
    assert best.override.sent == DISK


def test_what_serves_is_left_alone_unless_it_is_the_only_one():
    server = a_server(policy(), target="best")
    best = server.variants["best"]
    best.instances = 2
    assert not may_reload(server, best)
    assert not instance_readings(server)["best"].may_change
    only = policy()
    model = replace(only.models[0], variants=only.models[0].variants[:1])
    server = a_server(replace(only, models=(model,)), target="best")
    best = server.variants["best"]
    best.instances = 2
    assert may_reload(server, best)
    assert instance_readings(server)["best"].may_change


def test_the_only_one_gets_instances_where_it_serves_and_its_queue_waits():
    only = policy(queue=QueuePolicy(max_size=9))
    model = replace(only.models[0], variants=only.models[0].variants[:1])
    server = a_server(replace(only, models=(model,)), target="best")
    best = server.variants["best"]
    assert is_pending(server, best)
    assert not may_reload(server, best), "another queue would be a reload"
    best.instances = 2
    assert may_reload(server, best)
    assert set_up(server, best, stays=True)
    assert best.override.sent == {
        **DISK,
        "instance_group": [{**DISK["instance_group"][0], "count": 2}],
    }
    loaded(server, best)
    assert not may_reload(server, best)
    assert queue_view(server, best) == "pending: it is reloaded when it does not serve"
    for alias in server.aliases.values():
        alias.target = "elsewhere"  # as when it is new in another model, or taken out of this
    assert set_up(server, best)
    assert instances_of(best.override.sent) == 2
    assert best.override.sent["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 9
    loaded(server, best)
    best.queue, best.instances = QueuePolicy(max_size=5), 3
    assert set_up(server, best, stays=True)
    assert instances_of(best.override.sent) == 3
    queue = best.override.sent["dynamic_batching"]["default_queue_policy"]
    assert queue["max_queue_size"] == 9, "the queue that it has"


def test_a_queue_of_the_policy_and_instances_are_set_together():
    server = a_server(policy(queue=QueuePolicy(max_size=9)))
    best = server.variants["best"]
    best.instances = 2
    assert set_up(server, best)
    assert set(best.override.of_policy) == {"instance_group", "dynamic_batching"}
    assert instances_of(best.override.sent) == 2
    assert best.override.sent["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 9
    loaded(server, best)
    best.queue = None
    assert set_up(server, best)
    assert instances_of(best.override.sent) == 2
    assert best.override.sent["dynamic_batching"] == {}


def test_a_number_that_triton_refuses_is_not_sent_again_and_again():
    server = a_server(policy())
    best = server.variants["best"]
    best.instances = 4
    assert set_up(server, best)
    take_back(server, best, best.override, "out of memory")
    assert best.override is None
    assert not is_pending(server, best)
    best.instances = 2
    assert is_pending(server, best)


@pytest.mark.parametrize(("most", "kept"), [(4, 3), (2, 2), (None, None)])
def test_another_governor_goes_on_with_the_number_that_there_is(most, kept):
    memory = Memory(None)
    server = a_server(policy(), memory)
    best = server.variants["best"]
    best.instances = 3
    set_up(server, best)
    loaded(server, best)
    again = a_server(policy(most=most), memory)
    best = again.variants["best"]
    assert best.instances == kept
    best.config = dict(best.override.sent)
    assert is_pending(again, best) is (kept != 3)


@pytest.mark.parametrize(
    "groups", [[], [{"count": 1, "kind": "KIND_GPU"}, {"count": 1, "kind": "KIND_CPU"}]]
)
def test_a_config_with_several_groups_is_not_sized(groups):
    server = a_server(policy())
    best = server.variants["best"]
    best.config = {**DISK, "instance_group": groups}
    best.instances = 3
    assert not is_pending(server, best)
    assert "best" not in instance_readings(server)


def test_what_an_operators_program_set_counts_as_what_there_is():
    server = a_server(policy())
    best = server.variants["best"]
    two = [{**DISK["instance_group"][0], "count": 2}]
    best.override = Override({**DISK, "instance_group": two}, {}, DISK)
    best.config = dict(best.override.sent)
    assert instance_readings(server)["best"] == Instances(2, 1, may_change=True)
    assert not is_pending(server, best)


def test_one_that_is_busy_or_unproven_may_not_change():
    server = a_server(policy())
    best = server.variants["best"]
    best.operation = "load"
    assert not instance_readings(server)["best"].may_change
    best.operation, best.proven = None, False
    assert not instance_readings(server)["best"].may_change
    best.ready = False
    assert "best" not in instance_readings(server)
