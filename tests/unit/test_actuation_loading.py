"""What is sent with a load: where it goes, and what becomes of what could not be sent."""

import copy
from dataclasses import replace
from types import SimpleNamespace

from controller.actuation.client import Fault, TritonError
from controller.actuation.memory import MemoryWatch
from controller.actuation.places import gpus_of, place_of
from controller.actuation.placing import next_place
from controller.actuation.remembered import Memory
from controller.actuation.state import Server, unusable
from controller.actuation.timing import Timing
from controller.actuation.warm import Warmer
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
GROUP = {"name": "fast_0", "kind": "KIND_GPU", "count": 1, "gpus": [0]}


class Triton:
    """Loads whatever it is told to, and keeps a list of where."""

    def __init__(self, groups=(GROUP,), also=()):
        self.disk = {"instance_group": [dict(group) for group in groups], **dict(also)}
        self.models: dict[str, dict] = {}
        self.loads: list[tuple[str, tuple[int, ...]]] = []
        self.before_load = None

    async def load(self, model, *, override=None, deadline_s):
        config = {"name": model, **copy.deepcopy(self.disk), **copy.deepcopy(override or {})}
        if self.models.get(model) != config:
            self.loads.append((model, gpus_of(config)))
        self.models[model] = config

    async def unload(self, model, *, deadline_s):
        self.models.pop(model, None)

    async def model_config(self, model, *, deadline_s):
        if model not in self.models:
            raise TritonError(Fault.NOT_FOUND, f"no {model}")
        return copy.deepcopy(self.models[model])

    async def index(self, *, deadline_s):
        return dict.fromkeys(self.models, ("READY", ""))

    async def prove(self, config, model, *, deadline_s):
        pass


def a_server(triton, *, queue=None, gpus=(), most=None, memory=None, names=("best", "fast")):
    variants = tuple(
        VariantPolicy(name, name, 0.9 - at / 10, None, GIB, gpus=gpus, max_instances=most)
        for at, name in enumerate(names)
    )
    policy = Policy(
        TritonPolicy("127.0.0.1:1", None, None),
        (ModelPolicy("chat", Objective(0.1, 99.0), variants, queue=queue),),
        memory=memory or MemoryPolicy(0),
    )
    cards = [
        GpuReading(at, f"u{at}", "x", memory_used_bytes=0, memory_total_bytes=10 * GIB)
        for at in range(2)
    ]
    watch = MemoryWatch(policy, lambda: None, lambda: cards)
    server = Server(
        policy,
        triton,
        "us",
        lambda: 100.0,
        replace(Timing(), reading_s=0.0, unload_s=0.0),
        Memory(None),
        lambda _: None,
        free_memory=watch,
    )
    watch.placed = lambda name: place_of(server.variants.get(name))
    watch.aims = lambda name: next_place(server, name)
    chat = server.aliases["chat"]
    chat.target, chat.ready, chat.known, chat.since_s = "best", True, True, 0.0
    return server, cards


async def all_loaded(server):
    warmer = Warmer(server)
    for variant in server.variants.values():
        await warmer.work(variant)
        assert variant.proven
    server.control.loads.clear()
    return warmer


async def test_one_that_was_placed_is_loaded_where_it_is_to_be_now_and_not_where_it_was():
    triton = Triton()
    server, cards = a_server(triton)
    warmer = await all_loaded(server)
    fast = server.variants["fast"]
    server.aims = {"fast": (1,)}
    await warmer.work(fast)
    assert triton.loads == [("fast", (1,))]
    triton.models.clear()  # Triton was restarted, and GPU 1 is filled by somebody else, or lost
    fast.forget()
    server.aims = {"fast": (0,)}
    cards[1] = replace(cards[1], memory_used_bytes=10 * GIB)
    triton.loads.clear()
    await warmer.work(fast)
    assert triton.loads == [("fast", (0,))]
    assert fast.proven


async def test_where_clients_wait_one_of_which_the_folder_is_known_is_loaded_where_it_is_to_be():
    triton = Triton(also={"dynamic_batching": {}})
    server, _ = a_server(triton, queue=QueuePolicy(max_size=9))
    warmer = await all_loaded(server)
    fast = server.variants["fast"]
    triton.models.clear()
    fast.forget()
    server.aliases["chat"].ready = False  # so the folder is not looked at first
    server.aims = {"fast": (1,)}
    await warmer.work(fast)
    assert triton.loads == [("fast", (1,))]


async def test_what_memory_forbids_at_the_last_moment_leaves_a_variant_usable():
    triton = Triton()
    server, cards = a_server(triton)
    warmer = await all_loaded(server)
    fast, chat = server.variants["fast"], server.aliases["chat"]
    server.aims = {"fast": (1,)}

    def save():  # while that is written somebody else takes the memory
        cards[1] = replace(cards[1], memory_used_bytes=10 * GIB)

    server.memory = SimpleNamespace(
        save=save, override=server.memory.override, overrides=server.memory.overrides, needs={}
    )
    before = fast.override
    record = await warmer.work(fast)
    assert record is None
    assert triton.loads == []
    assert unusable(server, chat) == frozenset()
    assert fast.override == before
    assert server.memory.overrides.get("fast") == before
