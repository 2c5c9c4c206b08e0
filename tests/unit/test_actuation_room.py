"""What was loaded before the governor came: read once, while nothing moves."""

from types import SimpleNamespace

import pytest

from controller.actuation.memory import MemoryWatch
from controller.actuation.remembered import Memory
from controller.actuation.room import Before, look_at_host, used_bytes, weigh
from controller.actuation.state import Variant
from controller.policy.model import (
    MemoryPolicy,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)

GIB = 1 << 30


class Server:
    """What of a server is asked here, of variants that hold so much of the host."""

    def __init__(self, *, budget=10 * GIB, **holds):
        variants = tuple(VariantPolicy(name, name, 0.9) for name in holds)
        policy = Policy(
            TritonPolicy("127.0.0.1:1", None, None),
            (ModelPolicy("chat", Objective(0.06, 99.0), variants),),
            memory=MemoryPolicy(0, host_budget_bytes=budget),
        )
        self.holds, self.now_s, self.reads, self.seen = holds, 0.0, 0, True
        self.free_memory = MemoryWatch(policy, lambda: None, tuple, self.processes)
        self.memory = Memory(None)
        self.free_memory.measured = self.memory.needs
        self.variants = {name: Variant(name) for name in holds}
        self.timing = SimpleNamespace(reading_s=0.0)

    def clock(self):
        return self.now_s

    def held(self):
        return [name for name, one in self.variants.items() if one.ready or one.operation]

    def processes(self):
        self.reads += 1
        loaded = sum(self.holds[name] for name, one in self.variants.items() if one.ready)
        return loaded + GIB if self.seen else None

    def need(self, name):
        return self.free_memory.budget().need(name).host_bytes / GIB


async def load(server: Server, name: str) -> Before:
    before = await used_bytes(server, server.variants[name])
    server.variants[name].ready = True
    await weigh(server, server.variants[name], before, fresh=True)
    return before


async def test_a_load_is_measured_of_the_host_and_remembered():
    server = Server(a=2 * GIB, b=3 * GIB)
    assert (await load(server, "a")).host_bytes == GIB
    await load(server, "b")
    assert server.memory.needs == {"a": {"host": 2 * GIB}, "b": {"host": 3 * GIB}}
    assert (server.need("a"), server.need("b")) == (2.0, 3.0)
    # What a GPU told before stays, where only the host tells something now.
    server.memory.needs["a"] = {"0": 7, "host": 1}
    server.variants["a"].ready = False
    await load(server, "a")
    assert server.memory.needs["a"] == {"0": 7, "host": 2 * GIB}


async def test_instances_come_on_top_of_what_was_measured_and_go_again():
    server = Server(a=2 * GIB)
    variant = server.variants["a"]
    await load(server, "a")
    for number in (3, 2):
        before = await used_bytes(server, variant)
        server.holds["a"] = number * 2 * GIB
        await weigh(server, variant, before, fresh=False)
        assert server.need("a") == 2.0 * number
    # Of one that was never measured nothing can be told by what it grew.
    server.memory.needs.clear()
    before = await used_bytes(server, variant)
    server.holds["a"] = 9 * GIB
    await weigh(server, variant, before, fresh=False)
    assert server.memory.needs == {}


async def test_what_was_loaded_before_is_read_once_and_only_while_nothing_moves():
    server = Server(a=2 * GIB, b=4 * GIB)
    for variant in server.variants.values():
        variant.ready = True
    server.variants["b"].operation = "load"
    await look_at_host(server)
    assert server.reads == 0
    assert server.need("a") == 0.0
    server.variants["b"].operation = None
    for _ in range(3):
        await look_at_host(server)
    assert server.reads == 1
    assert server.need("a") == server.need("b") == 3.5


async def test_where_nobody_can_tell_it_is_asked_again_but_seldom():
    server = Server(a=2 * GIB)
    server.variants["a"].ready, server.seen = True, False
    for server.now_s in range(60):
        await look_at_host(server)
    assert server.reads == 2
    assert server.need("a") == 0.0
    server.seen, server.now_s = True, 61
    await look_at_host(server)
    assert server.need("a") == 3.0


@pytest.mark.parametrize("budget", [None, 10 * GIB])
async def test_where_a_process_hides_a_load_is_not_measured(budget):
    server = Server(budget=budget, a=2 * GIB)
    server.seen = False
    assert await load(server, "a") == Before()
    assert server.memory.needs == {}
