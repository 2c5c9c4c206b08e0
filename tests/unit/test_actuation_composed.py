"""Queue, GPUs and number of instances of one variant: in one config, each on its own."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from controller.actuation.alias import instances_of
from controller.actuation.instances import instance_readings
from controller.actuation.memory import MemoryWatch
from controller.actuation.overrides import confirm
from controller.actuation.places import gpus_of, place_of
from controller.actuation.placing import place_view
from controller.actuation.queueing import (
    is_pending,
    look_at_folder,
    may_reload,
    queue_view,
    set_up,
    take_back,
)
from controller.actuation.remembered import Memory, Override
from controller.actuation.room import Before, used_bytes, weigh
from controller.actuation.state import Server, Variant
from controller.actuation.timing import Timing
from controller.policy.model import (
    MemoryPolicy,
    ModelPolicy,
    Objective,
    Policy,
    QueuePolicy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import GpuReading, Instances

GIB = 1 << 30
GROUP = {"name": "best_0", "kind": "KIND_GPU", "count": 1, "gpus": [0, 1]}
DISK = {
    "name": "best",
    "max_batch_size": 8,
    "instance_group": [GROUP],
    "dynamic_batching": {},
}
QUEUE = QueuePolicy(max_size=9)


def policy(*, most=4, gpus=(), queue=None, names=("best", "fast")) -> Policy:
    variants = tuple(
        VariantPolicy(name, name, 0.9 - at / 10, max_instances=most, gpus=gpus)
        for at, name in enumerate(names)
    )
    model = ModelPolicy("chat", Objective(0.1, 99.0), variants, queue=queue)
    return Policy(TritonPolicy("127.0.0.1:1", None, None), (model,), memory=MemoryPolicy(0))


class Cards:
    """Two GPUs, and what Triton's processes hold of each."""

    def __init__(self):
        self.held = [0, 0]

    def __call__(self):
        return [
            GpuReading(
                gpu,
                None,
                f"GPU {gpu}",
                memory_used_bytes=held,
                memory_total_bytes=80 * GIB,
                triton_memory_bytes=held,
            )
            for gpu, held in enumerate(self.held)
        ]


def a_server(of: Policy, memory: Memory | None = None, *, target="fast", disk=DISK) -> Server:
    cards = Cards()
    watch = MemoryWatch(of, lambda: None, cards)
    server = Server(
        of,
        SimpleNamespace(cards=cards),
        "us",
        lambda: 100.0,
        replace(Timing(), reading_s=0.0),
        memory or Memory(None),
        lambda _: None,
        free_memory=watch,
    )
    watch.measured = server.memory.needs
    watch.placed = lambda name: place_of(server.variants.get(name))
    for name, variant in server.variants.items():
        variant.ready = variant.proven = variant.warm = True
        own = variant.override
        variant.config = {**disk, "name": name} if own is None else dict(own.sent)
    for alias in server.aliases.values():
        alias.target, alias.ready, alias.known, alias.since_s = target, True, True, 0.0
    return server


def load(server: Server, variant: Variant) -> None:
    """What a load of its override leaves."""
    assert set_up(server, variant)
    variant.config = dict(variant.override.sent)
    confirm(server, variant, variant.config)
    assert not is_pending(server, variant)


def has(variant: Variant) -> tuple[tuple[int, ...], int | None]:
    return gpus_of(variant.config), instances_of(variant.config)


@pytest.mark.parametrize("queue", [None, QUEUE])
def test_placed_and_counted_in_either_order_and_each_is_taken_back_alone(queue):
    server = a_server(policy(queue=queue))
    best = server.variants["best"]
    if queue is not None:
        load(server, best)
    place, count = (lambda: server.aims.update(best=(1,))), (lambda: setattr(best, "instances", 3))
    for first, second in ((place, count), (count, place)):
        first()
        load(server, best)
        second()
        load(server, best)
        assert has(best) == ((1,), 3)
        assert ("dynamic_batching" in best.override.of_policy) is (queue is not None)
        assert instance_readings(server)["best"] == Instances(3, 1, may_change=True)
        best.instances = None
        load(server, best)
        assert has(best) == ((1,), 1), "without the number it stays where it is"
        best.instances = 3
        load(server, best)
        server.aims = {}
        load(server, best)
        assert has(best) == ((0, 1), 3), "without the choice of a GPU it keeps its number"
        best.instances = None
        load(server, best)
        assert {**best.config, "dynamic_batching": {}} == DISK


def test_a_governor_that_restarts_goes_on_with_both():
    memory = Memory(None)
    server = a_server(policy(), memory)
    best = server.variants["best"]
    server.aims, best.instances = {"best": (1,)}, 3
    load(server, best)
    again = a_server(policy(), memory)
    best = again.variants["best"]
    assert (again.aims, best.instances) == ({"best": (1,)}, 3)
    assert has(best) == ((1,), 3)
    assert not is_pending(again, best)
    again.set_policy(policy(gpus=None))
    load(again, best)
    assert has(best) == ((0, 1), 3)
    again.set_policy(policy(most=None))
    assert best.instances is None


def test_after_a_restart_neither_is_taken_for_the_other():
    memory = Memory(None)
    server = a_server(policy(), memory, disk={**DISK, "instance_group": [{**GROUP, "count": 3}]})
    server.aims = {"best": (1,)}
    load(server, server.variants["best"])
    server.variants["fast"].instances = 4
    load(server, server.variants["fast"])
    again = a_server(policy(most=2), memory)
    # Placed alone: it has the folder's number, though that is more than the policy would give.
    assert again.variants["best"].instances is None
    assert not is_pending(again, again.variants["best"])
    # Counted alone: nobody chose GPUs for it.
    assert again.aims == {"best": (1,)}
    assert again.variants["fast"].instances == 3  # no fewer than in its folder, which says so


def test_groups_that_became_one_on_its_gpu_are_counted_there_from_one():
    groups = [{**GROUP, "name": f"best_{gpu}", "gpus": [gpu]} for gpu in (0, 1)]
    server = a_server(policy(), disk={**DISK, "instance_group": groups})
    best = server.variants["best"]
    assert "best" not in instance_readings(server)
    server.aims = {"best": (1,)}
    load(server, best)
    best.instances = 2
    load(server, best)
    assert has(best) == ((1,), 2)
    assert instance_readings(server)["best"] == Instances(2, 1, may_change=True)


def test_what_serves_alone_gets_instances_where_it_is_and_is_not_moved():
    server = a_server(policy(names=("best",)), target="best")
    best = server.variants["best"]
    server.aims = {"best": (1,)}
    assert not may_reload(server, best), "a move would be a reload"
    best.instances = 2
    assert may_reload(server, best)
    assert set_up(server, best, stays=True)
    assert best.override.sent == {**DISK, "instance_group": [{**GROUP, "count": 2}]}
    best.config = dict(best.override.sent)
    confirm(server, best, best.config)
    assert not may_reload(server, best)
    best.instances = None
    assert may_reload(server, best)
    assert set_up(server, best, stays=True)
    assert best.override.sent == DISK


def test_what_serves_alone_and_lost_its_queue_is_not_reloaded_for_a_number():
    server = a_server(policy(names=("best",), queue=QUEUE), target="other")
    best = server.variants["best"]
    load(server, best)
    server.aliases["chat"].target = "best"
    best.instances = 2
    assert may_reload(server, best)
    best.config, best.reapply = {**DISK, "name": "best"}, True  # somebody loaded it from its folder
    assert not may_reload(server, best)


@pytest.mark.parametrize(("queue", "told"), [(None, None), (QUEUE, "set")])
def test_one_more_that_triton_refuses_costs_neither_its_gpu_nor_its_queue(queue, told):
    server = a_server(policy(queue=queue))
    best = server.variants["best"]
    server.aims, best.instances = {"best": (1,)}, 2
    load(server, best)
    had = best.override
    best.instances = 4
    assert set_up(server, best)
    take_back(server, best, best.override, "out of memory")
    assert best.override == server.memory.overrides["best"] == had
    assert not is_pending(server, best)
    assert place_view(server, best) == "on GPU 1"
    assert queue_view(server, best) == told
    server.aims = {"best": (0,)}
    load(server, best)
    assert has(best) == ((0,), 2), "it may still be moved, with what it has"
    best.instances = 3
    assert is_pending(server, best)


def test_a_gpu_that_triton_refuses_costs_no_instance():
    server = a_server(policy(queue=QUEUE))
    best = server.variants["best"]
    server.aims, best.instances = {"best": (1,)}, 2
    load(server, best)
    had = best.override
    server.aims = {"best": (7,)}
    assert set_up(server, best)
    take_back(server, best, best.override, "invalid gpu id 7")
    assert best.override == had
    assert not is_pending(server, best)
    assert place_of(best) == (1,)
    assert "invalid gpu id 7" in place_view(server, best)
    assert queue_view(server, best) == "set"
    best.instances = 3
    load(server, best)
    assert has(best) == ((1,), 3)


def test_what_it_was_loaded_with_is_given_up_too_where_that_does_not_load_any_more():
    server = a_server(policy())
    best = server.variants["best"]
    server.aims, best.instances = {"best": (1,)}, 2
    load(server, best)
    best.forget()
    take_back(server, best, best.override, "out of memory")
    assert best.override is None
    assert "best" not in server.memory.overrides


def test_a_folder_is_looked_at_for_a_number_but_not_for_a_place():
    server = a_server(policy())
    best, fast = server.variants["best"], server.variants["fast"]
    server.aims, best.instances, fast.instances = {"best": (1,)}, 2, 2
    for variant in (best, fast):
        load(server, variant)
        look_at_folder(server, variant)
    assert best.override is not None
    assert fast.override is None


def test_what_an_operator_set_stays_where_it_is():
    server = a_server(policy())
    best = server.variants["best"]
    own = {**DISK, "instance_group": [{**GROUP, "count": 2, "gpus": [0]}]}
    best.override, best.config = Override(own, own, DISK), dict(own)
    server.aims = {"best": (1,)}
    assert not is_pending(server, best)


# -- and what it holds ----------------------------------------------------------------------------


async def measured(server: Server, variant: Variant, *held: int, fresh=False) -> dict[str, int]:
    """Load what a variant is to have; then Triton's processes hold so many GiB of each GPU."""
    cards = server.control.cards
    before = await used_bytes(server, variant)
    load(server, variant)
    cards.held = [held_gib * GIB for held_gib in held]
    await weigh(server, variant, before, fresh=fresh)
    needs = server.memory.needs["best"]
    return {place: size // GIB for place, size in needs.items()}


async def test_what_it_holds_is_known_of_each_gpu_over_instances_and_moves():
    server = a_server(policy())
    best = server.variants["best"]
    server.control.cards.held = [5, 5]
    await weigh(server, best, await used_bytes(server, best), fresh=False)
    server.memory.need("best", {"0": 2 * GIB, "1": 2 * GIB, "host": 3 * GIB})
    server.control.cards.held = [5 * GIB, 5 * GIB]
    server.aims = {"best": (1,)}
    assert await measured(server, best, 3, 5) == {"0": 0, "1": 2, "host": 3}
    best.instances = 3
    assert await measured(server, best, 3, 9) == {"0": 0, "1": 6, "host": 3}
    # Moved with its instances; what it left is not free yet.
    server.aims = {"best": (0,)}
    assert await measured(server, best, 9, 9) == {"0": 6, "1": 0, "host": 3}
    best.instances = 1
    assert await measured(server, best, 5, 3) == {"0": 2, "1": 0, "host": 3}
    # Moved and given another number at once.
    server.aims, best.instances = {"best": (1,)}, 2
    assert await measured(server, best, 3, 7) == {"0": 0, "1": 4, "host": 3}


async def test_of_one_of_which_no_gpu_is_known_nothing_is_told_by_what_it_grew():
    server = a_server(policy())
    best = server.variants["best"]
    server.control.cards.held = [5 * GIB, 5 * GIB]
    server.memory.need("best", {"host": 3 * GIB})
    best.instances = 2
    assert await measured(server, best, 7, 7) == {"host": 3}


def test_what_it_holds_of_the_host_is_not_what_it_needs_of_a_gpu():
    memory = MemoryPolicy(0, gpu_budget_bytes=10 * GIB, host_budget_bytes=80 * GIB)
    server = a_server(replace(policy(), memory=memory))
    server.variants["best"].config = {**DISK, "instance_group": [{**GROUP, "gpus": [0]}]}
    server.memory.need("best", {"0": 2 * GIB, "host": 9 * GIB})
    watch = server.free_memory
    watch.aims = lambda _: (1,)
    assert watch.budget().takes("best").on == (0.0, 2.0 * GIB)
    assert watch.size("best") == 2.0 * GIB


async def test_where_no_gpu_tells_it_is_as_large_as_it_was_where_it_is_now():
    server = a_server(policy())
    best = server.variants["best"]
    server.aims = {"best": (0,)}
    load(server, best)
    await weigh(server, best, Before(), fresh=False)
    server.memory.need("best", {"0": 7, "host": 3})
    server.aims = {"best": (1,)}
    load(server, best)
    await weigh(server, best, Before(), fresh=False)
    assert server.memory.needs["best"] == {"0": 0, "1": 7, "host": 3}


def test_the_budget_of_each_gpu_and_of_the_host_both_hold():
    memory = MemoryPolicy(0, gpu_budget_bytes=10 * GIB, host_budget_bytes=8 * GIB)
    server = a_server(replace(policy(), memory=memory))
    watch, best = server.free_memory, server.variants["best"]
    best.config = {**DISK, "instance_group": [{**GROUP, "gpus": [1]}]}
    server.memory.need("best", {"0": 0, "1": 4 * GIB, "host": 3 * GIB})
    server.memory.need("fast", {"0": 4 * GIB, "1": 4 * GIB, "host": 2 * GIB})
    budget = watch.budget()
    assert budget.need("best").on == (0.0, 4.0 * GIB)
    assert budget.need("best").host_bytes == 3.0 * GIB
    assert watch.why_not("best", ["best", "fast"]) == (
        "the memory budget is full: it needs 4.0 GiB once more while it is reloaded, and of "
        "10.0 GiB of GPU 1 (memory.gpu_budget, less what Triton holds besides) 8.0 GiB are held"
    )
    server.memory.need("best", {"0": 0, "1": 2 * GIB, "host": 4 * GIB})
    assert watch.why_not("best", ["best", "fast"]) == (
        "the memory budget is full: it needs 4.0 GiB once more while it is reloaded, and of "
        "8.0 GiB (memory.host_budget) 6.0 GiB are held"
    )


def test_what_is_asked_at_every_tick_takes_no_longer_for_each_of_many_variants():
    """Twice as many took four times as long: 47 ms for 200 models of eight."""

    def took_s(models: int) -> float:
        of = policy()
        names = [f"m{at}" for at in range(models)]
        chats = tuple(
            ModelPolicy(
                name,
                Objective(0.1, 99.0),
                tuple(VariantPolicy(f"{at}", f"{name}-{at}", 0.9) for at in range(8)),
            )
            for name in names
        )
        server = a_server(replace(of, models=chats))
        times = []
        for _ in range(5):
            began_s = time.perf_counter()
            assert len(instance_readings(server)) == 8 * models
            times.append(time.perf_counter() - began_s)
        return min(times)

    assert took_s(200) < 20.0 * took_s(20)
