"""Where instances go: what is sent, what each GPU has to have room for, and when."""

import asyncio
from dataclasses import replace

import pytest

from controller.actuation.memory import MemoryWatch, Used
from controller.actuation.places import gpus_of, moved, needs_by_gpu, place_of, placed_groups
from controller.actuation.placing import is_lost, next_place, place_view
from controller.actuation.queueing import is_pending, look_at_folder, may_reload, set_up, take_back
from controller.actuation.room import Before, short_of, standings, weigh
from controller.actuation.state import Memory, Server, Variant
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
from controller.telemetry.observation import GpuReading

GIB = 1 << 30
DISK = {
    "name": "best",
    "max_batch_size": 8,
    "instance_group": [{"name": "best_0", "kind": "KIND_GPU", "count": 2, "gpus": [0, 1]}],
    "dynamic_batching": {"max_queue_delay_microseconds": "100"},
}


# -- the groups ------------------------------------------------------------------------------


def test_instances_keep_their_number_and_everything_but_their_gpus():
    groups = placed_groups(DISK, (3,))
    assert groups == [{"name": "best_0", "kind": "KIND_GPU", "count": 2, "gpus": [3]}]
    assert DISK["instance_group"][0]["gpus"] == [0, 1]


def test_groups_that_differ_in_their_gpus_alone_become_one_and_the_hosts_stay():
    groups = [
        {"name": "a", "kind": "KIND_GPU", "count": 1, "gpus": [0]},
        {"name": "b", "kind": "KIND_GPU", "count": 1, "gpus": [1]},
        {"name": "c", "kind": "KIND_GPU", "count": 2, "gpus": [1], "passive": True},
        {"name": "d", "kind": "KIND_CPU", "count": 1},
    ]
    found = placed_groups({"instance_group": groups}, (2,))
    assert [(group["name"], group.get("gpus")) for group in found] == [
        ("a", [2]),
        ("c", [2]),
        ("d", None),
    ]


@pytest.mark.parametrize("kind", ["KIND_CPU", "KIND_MODEL"])
def test_what_has_no_instances_on_gpus_is_left_alone(kind):
    assert placed_groups({"instance_group": [{"kind": kind, "count": 1}]}, (0,)) is None
    assert placed_groups({}, (0,)) is None


# -- what each GPU needs ------------------------------------------------------------------------


def test_a_variant_needs_room_where_it_is():
    need = {"declared": 3, "measured": {}}
    assert needs_by_gpu((0, 1), placed=(1,), **need) == {0: 0, 1: 3}
    assert needs_by_gpu((0, 1), placed=(), **need) == {0: 3, 1: 3}
    assert needs_by_gpu((0, 1), placed=(-1,), **need) == {0: 3, 1: 3}  # Python's may be anywhere
    assert needs_by_gpu((0, 1), placed=(1,), aim=(0,), **need) == {0: 3, 1: 0}


def test_what_was_measured_counts_and_elsewhere_it_is_taken_for_as_large():
    need = {"declared": 3, "measured": {"0": 5, "1": 0}}
    assert needs_by_gpu((0, 1), placed=(0,), **need) == {0: 5, 1: 0}
    assert needs_by_gpu((0, 1, 2), placed=(0,), aim=(2,), **need) == {0: 0, 1: 0, 2: 5}
    assert moved(need["measured"], (2,)) == {"0": 0, "1": 0, "2": 5}


def card(gpu: int, *, free: int = 80 * GIB, triton: int | None = 0, **more) -> GpuReading:
    total = 80 * GIB
    return GpuReading(
        gpu,
        f"GPU-{gpu}",
        None,
        memory_used_bytes=total - free,
        memory_total_bytes=total,
        triton_memory_bytes=triton,
        **more,
    )


def a_watch(cards, *, budgets=(), budget=None, reserve=0, placed=None, aims=None, **declared):
    variants = tuple(VariantPolicy(k, k, 0.9, None, v) for k, v in declared.items())
    policy = Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=(ModelPolicy("chat", Objective(0.06, 99.0), variants),),
        memory=MemoryPolicy(reserve, gpu_budget_bytes=budget, gpu_budgets_bytes=budgets),
    )
    now = list(cards)
    watch = MemoryWatch(policy, lambda: None, lambda: now)
    watch.placed = lambda name: (placed or {}).get(name, ())
    watch.aims = lambda name: (aims or {}).get(name, ())
    return watch, now


def test_each_gpu_has_a_budget_of_its_own_and_those_of_no_name_the_common_one():
    placed = {"a": (0,), "b": (1,), "c": (2,)}
    watch, _ = a_watch(
        map(card, range(3)),
        budget=20 * GIB,
        budgets=((1, 10 * GIB),),
        placed=placed,
        a=15 * GIB,
        b=15 * GIB,
        c=15 * GIB,
    )
    assert watch.budget().limit.on == (20.0 * GIB, 10.0 * GIB, 20.0 * GIB)
    assert watch.why_not("a", ["c"]) is None
    assert watch.why_not("b", ["a", "c"]) == (
        "the memory budget is full: it needs 15.0 GiB, and of 10.0 GiB of GPU 1 "
        "(memory.gpu_budgets, less what Triton holds besides) 0 MiB are held"
    )


def test_a_budget_of_one_gpu_alone_leaves_the_others_without():
    watch, _ = a_watch(
        map(card, range(2)), budgets=((0, 4 * GIB),), placed={"a": (1,)}, a=60 * GIB, b=1 * GIB
    )
    assert watch.why_not("a", []) is None
    assert watch.is_limited


def test_one_of_which_nothing_is_known_is_not_infinite_where_nothing_is_limited():
    watch, _ = a_watch(map(card, range(2)), budgets=((1, 4 * GIB),), a=None, b=None)
    budget = watch.budget()
    assert budget.need("a").on == (0.0, 4.0 * GIB)
    assert watch.why_not("a", []) is None
    assert watch.why_not("b", ["a"]) is not None


def test_on_a_single_gpu_it_is_told_which_key_limits_it():
    watch, _ = a_watch([card(0)], budgets=((0, 4 * GIB),), a=5 * GIB)
    assert "(memory.gpu_budgets, less" in watch.why_not("a", [])
    watch, _ = a_watch([card(0)], budget=4 * GIB, a=5 * GIB)
    assert "(memory.gpu_budget, less" in watch.why_not("a", [])


def test_one_that_nobody_knows_the_place_of_needs_room_everywhere():
    watch, _ = a_watch(
        map(card, range(2)), budget=10 * GIB, placed={"a": (1,)}, a=8 * GIB, b=4 * GIB
    )
    assert watch.why_not("b", ["a"]) is not None
    assert watch.why_not("b", []) is None


def test_a_move_is_refused_where_it_goes_and_not_where_it_is():
    watch, _ = a_watch(
        map(card, range(2)),
        budget=10 * GIB,
        placed={"a": (0,), "b": (0,), "c": (1,)},
        aims={"a": (1,)},
        a=6 * GIB,
        b=4 * GIB,
        c=5 * GIB,
    )
    why = watch.why_not("a", ["a", "b", "c"])
    assert why is not None
    assert "GPU 1" in why
    assert watch.why_not("a", ["a", "b"]) is None


def test_a_gpu_that_somebody_else_fills_is_refused_with_its_name_and_another_is_not():
    cards = [card(0, free=2 * GIB), card(1, free=70 * GIB)]
    here, _ = a_watch(cards, placed={"a": (0,)}, a=6 * GIB)
    assert "of GPU 0" in str(here.why_not("a"))
    there, _ = a_watch(cards, placed={"a": (0,)}, aims={"a": (1,)}, a=6 * GIB)
    assert there.why_not("a") is None


def test_nothing_is_loaded_on_a_gpu_that_is_lost():
    cards = [card(0, lost=True, error="NVML: GPU is lost"), card(1)]
    watch, _ = a_watch(cards, placed={"a": (0,), "b": (1,)}, a=GIB, b=GIB)
    assert watch.why_not("a") == "GPU 0 is lost: NVML: GPU is lost"
    assert watch.why_not("b") is None
    assert watch.lost == {0}


def test_nor_on_one_that_was_lost_until_a_moment_ago():
    watch, _ = a_watch([card(0), card(1)], placed={"a": (0,), "b": (1,)}, a=GIB, b=GIB)
    watch.avoided = frozenset({0})
    assert watch.why_not("a") == "GPU 0 was lost, and is left alone for a while"
    assert watch.why_not("b") is None
    assert watch.lost == {0}


def test_what_triton_holds_besides_is_counted_of_each_gpu_by_itself():
    watch, now = a_watch(
        map(card, range(2)), budget=16 * GIB, placed={"a": (0,), "b": (1,)}, a=4 * GIB, b=4 * GIB
    )
    now[:] = [card(0, triton=6 * GIB), card(1, triton=4 * GIB)]
    watch.look(["a", "b"])
    assert watch.budget().limit.on == (14.0 * GIB, 16.0 * GIB)
    now[:] = [card(0, triton=None), card(1, triton=8 * GIB)]
    watch.look(["a", "b"])  # one that tells nothing holds nobody up
    assert watch.budget().limit.on == (14.0 * GIB, 12.0 * GIB)


def test_what_another_takes_on_another_gpu_meanwhile_is_not_taken_for_a_variants():
    watch, now = a_watch(map(card, range(2)), budget=16 * GIB, placed={"a": (0,)}, a=None)
    before = watch.used_bytes()
    now[:] = [card(0, triton=3 * GIB), card(1, free=40 * GIB, triton=None)]
    before[1] = Used(0, None)
    assert watch.took_bytes("a", before) == {"0": 3 * GIB, "1": 0}


def test_a_gpu_that_stops_telling_keeps_its_budget():
    watch, now = a_watch(map(card, range(2)), budget=10 * GIB, placed={"a": (0,)}, a=6 * GIB)
    assert watch.why_not("a", ["a"]) is not None
    now.clear()
    assert watch.why_not("a", ["a"]) is not None


# -- what is sent, and when ---------------------------------------------------------------------


class Control:
    """Nothing of Triton is asked here."""


def a_server(*, cards=None, order=("fast", "best"), queue=None, gpus=()) -> Server:
    variants = tuple(
        VariantPolicy(name, name, 0.9 - at / 10, None, GIB, gpus=gpus)
        for at, name in enumerate(reversed(order))
    )
    policy = Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=(ModelPolicy("chat", Objective(0.06, 99.0), variants, queue=queue),),
        memory=MemoryPolicy(0),
    )
    now = [card(0), card(1)] if cards is None else cards
    watch = MemoryWatch(policy, lambda: None, lambda: now)
    server = Server(
        policy, Control(), "me", lambda: 100.0, Timing(), Memory(None), lambda _: None, None, watch
    )
    watch.placed = lambda name: place_of(server.variants.get(name))
    watch.aims = lambda name: next_place(server, name)
    for name, variant in server.variants.items():
        variant.ready = variant.proven = True
        variant.config = {**DISK, "name": name}
    chat = server.aliases["chat"]
    chat.target, chat.ready, chat.known, chat.since_s = "best", True, True, 0.0
    return server


def loaded(variant: Variant) -> None:
    """What a load of its override leaves."""
    assert variant.override is not None
    variant.config = dict(variant.override.sent)
    variant.override = replace(variant.override, expected=variant.config)
    variant.reapply = False


def test_an_idle_variant_is_reloaded_on_the_gpu_that_was_chosen_and_then_no_more():
    server = a_server()
    fast = server.variants["fast"]
    assert not may_reload(server, fast)
    server.aims = {"fast": (1,), "best": (1,)}
    assert may_reload(server, fast)
    assert not may_reload(server, server.variants["best"])  # it serves
    assert set_up(server, fast)
    assert gpus_of(fast.override.sent) == (1,)
    assert fast.override.of_policy == ("instance_group",)
    assert fast.override.disk["instance_group"][0]["gpus"] == [0, 1]
    loaded(fast)
    assert not is_pending(server, fast)
    assert place_view(server, fast) == "on GPU 1"
    assert "pending: GPU 1" in place_view(server, server.variants["best"])


def test_it_is_remembered_over_a_restart_of_ours(tmp_path):
    server = a_server()
    server.memory.path = tmp_path / "state.json"
    server.aims = {"fast": (1,)}
    set_up(server, server.variants["fast"])
    server.memory.save()
    again = Server(
        server.policy,
        Control(),
        "me",
        lambda: 0.0,
        Timing(),
        Memory(tmp_path / "state.json"),
        lambda _: None,
    )
    assert again.aims == {"fast": (1,)}
    assert gpus_of(again.variants["fast"].override.sent) == (1,)
    again.set_policy(a_server(gpus=None).policy)  # which does not ask any more
    assert again.aims == {}
    assert is_pending(again, again.variants["fast"])


def test_where_the_policy_does_not_ask_nothing_is_placed():
    server = a_server(gpus=None)
    server.set_policy(server.policy)
    assert server.aims == {}
    assert not is_pending(server, server.variants["fast"])
    assert place_view(server, server.variants["fast"]) is None


def test_a_policy_that_asks_no_more_has_the_folders_groups_put_back():
    server = a_server()
    fast = server.variants["fast"]
    server.aims = {"fast": (1,)}
    set_up(server, fast)
    loaded(fast)
    server.aims = {}
    assert set_up(server, fast)
    assert fast.override.sent == fast.override.disk


def test_it_is_laid_over_the_folder_beside_the_queue_and_each_is_taken_off_alone():
    server = a_server(queue=QueuePolicy(max_size=9))
    fast = server.variants["fast"]
    server.aims = {"fast": (0,)}
    set_up(server, fast)
    assert set(fast.override.of_policy) == {"dynamic_batching", "instance_group"}
    assert gpus_of(fast.override.sent) == (0,)
    assert fast.override.sent["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 9
    loaded(fast)
    fast.queue = None
    set_up(server, fast)
    assert fast.override.of_policy == ("instance_group",)
    assert fast.override.sent["dynamic_batching"] == DISK["dynamic_batching"]
    assert gpus_of(fast.override.sent) == (0,)


def test_what_an_operator_set_himself_is_not_moved():
    server = a_server()
    fast = server.variants["fast"]
    own = [{"kind": "KIND_GPU", "count": 4, "gpus": [0]}]
    server.aims = {"fast": (1,)}
    set_up(server, fast)
    fast.override = replace(
        fast.override, sent={**fast.override.disk, "instance_group": own}, of_policy=()
    )
    assert not is_pending(server, fast)
    # So its next load needs room where he put it, and no plan waits for it to move.
    assert next_place(server, "fast") == ()
    server.reachable = True
    assert standings(server)["fast"].fixed
    assert place_view(server, fast) == "its instances were set over the API: it is left where it is"


def test_where_there_is_no_room_it_is_not_moved():
    full = [card(0), card(1, free=GIB // 2)]
    server = a_server(cards=full)
    server.aims = {"fast": (1,)}
    assert "of GPU 1" in short_of(server, server.variants["fast"])
    assert not may_reload(server, server.variants["fast"])
    server.aims = {"fast": (0,)}
    assert may_reload(server, server.variants["fast"])


def test_one_on_a_lost_gpu_is_moved_though_it_cannot_be_proven_and_at_once():
    cards = [card(0, lost=True, error="lost"), card(1)]
    server = a_server(cards=cards)
    fast = server.variants["fast"]
    fast.config = {**DISK, "instance_group": [{"kind": "KIND_GPU", "count": 1, "gpus": [0]}]}
    fast.proven = False
    server.aliases["chat"].since_s = 99.9  # and no calm
    server.aims = {"fast": (1,)}
    assert is_lost(server, fast)
    assert may_reload(server, fast)
    cards[0] = card(0)
    assert not may_reload(server, fast)


def test_the_next_load_goes_where_it_was_chosen_only_once_the_folder_is_known():
    server = a_server()
    fast = server.variants["fast"]
    server.aims = {"fast": (1,)}
    assert next_place(server, "fast") == (1,)
    fast.forget()
    assert next_place(server, "fast") == ()
    assert next_place(server, "nobody") == ()


def test_a_folder_is_not_looked_at_where_it_might_have_no_room():
    server = a_server()
    fast = server.variants["fast"]
    server.aims = {"fast": (1,)}
    set_up(server, fast)
    look_at_folder(server, fast)
    assert gpus_of(fast.override.sent) == (1,)


def test_a_gpu_that_triton_refuses_is_given_up_for_a_while():
    server = a_server()
    fast = server.variants["fast"]
    server.aims = {"fast": (1,)}
    set_up(server, fast)
    take_back(server, fast, fast.override, "invalid or unsupported gpu id 1")
    assert fast.override is None
    assert not is_pending(server, fast)
    assert "invalid or unsupported gpu id 1" in place_view(server, fast)
    server.aims = {"fast": (0,)}
    assert is_pending(server, fast)


def test_after_a_move_what_it_holds_is_known_to_be_where_it_is():
    server = a_server()
    fast = server.variants["fast"]
    fast.config = {**DISK, "instance_group": [{"kind": "KIND_GPU", "gpus": [0]}]}
    server.memory.needs["fast"] = {"0": 7, "1": 0}
    asyncio.run(weigh(server, fast, Before(), fresh=False))
    assert server.memory.needs["fast"] == {"0": 7, "1": 0}
    fast.config = {**DISK, "instance_group": [{"kind": "KIND_GPU", "gpus": [1]}]}
    asyncio.run(weigh(server, fast, Before(), fresh=False))
    assert server.memory.needs["fast"] == {"0": 0, "1": 7}


def test_the_placer_is_told_how_each_stands():
    server = a_server()
    server.aims = {"fast": (1,)}
    assert standings(server) == {}  # nobody knows what is loaded, as after a restart of ours
    server.reachable = True
    found = standings(server)
    assert found["best"] == (float(GIB), True, (0, 1), False, False)  # it serves
    assert found["fast"].at == (0, 1)
    assert found["fast"].may_move
    server.variants["fast"].ready = False
    assert standings(server)["fast"].at == (1,)


def test_of_one_that_is_on_the_host_too_it_counts_where_its_gpus_are():
    server = a_server()
    server.reachable, fast = True, server.variants["fast"]
    on_host = {"kind": "KIND_CPU", "count": 1}
    fast.config = {**DISK, "instance_group": [*DISK["instance_group"], on_host]}
    server.aims = {"fast": (1,)}
    set_up(server, fast)
    loaded(fast)
    assert standings(server)["fast"].at == (1,)
    assert place_view(server, fast) == "on GPU 1"
    fast.override, fast.config = None, {**DISK, "instance_group": [on_host]}
    assert standings(server)["fast"].fixed
    assert "no instances on GPUs" in place_view(server, fast)
