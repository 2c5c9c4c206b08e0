"""Places in the daemon: from what is known to what the actuator is told."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from controller.daemon.placing import Placer, room_of
from controller.planning.expected import Work
from controller.planning.placing import Standing
from controller.policy.model import (
    MemoryPolicy,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.prediction.disturbance import Disturbances
from controller.telemetry.observation import GpuReading, MemoryReading, ModelReading, Observation

GIB = float(1 << 30)


class Costs:
    disturbances = Disturbances()

    def load_s(self, models):
        return dict.fromkeys(models, 2.0)


@dataclass
class Core:
    """Two models of two variants, each expected to be as busy as the other."""

    costs: Costs = field(default_factory=Costs)
    lost: frozenset[int] = frozenset()
    device_ratios: dict[int, float] = field(default_factory=dict)

    def work(self, now_s, there):
        return [
            Work(f"m{model}-{name}", model, 50.0, 0.3)
            for model in range(2)
            for name in ("fast", "best")
        ]


class Server:
    """What is loaded where; a move takes no time."""

    def __init__(self, gpu: int = 0) -> None:
        self.standing = {
            f"m{model}-{name}": Standing(GIB, True, (gpu,), name == "fast")
            for model in range(2)
            for name in ("fast", "best")
        }
        self.told: list[dict] = []

    def standings(self):
        return self.standing

    def place(self, aims):
        self.told.append(aims)
        for name, gpus in aims.items():
            if self.standing[name].may_move:
                self.standing[name] = self.standing[name]._replace(at=gpus)


class Journal:
    def __init__(self) -> None:
        self.events = []

    def event(self, kind, model, text, details):
        self.events.append((kind, details))


def a_policy(gpus=()) -> Policy:
    return Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=tuple(
            ModelPolicy(
                f"m{at}",
                Objective(0.06, 99.0),
                tuple(
                    VariantPolicy(n, f"m{at}-{n}", q, gpus=gpus)
                    for n, q in (("fast", 0.7), ("best", 0.9))
                ),
            )
            for at in range(2)
        ),
        memory=MemoryPolicy(0),
    )


def see(now_s: float, *gpus: GpuReading, **models) -> Observation:
    gpus = gpus or tuple(GpuReading(gpu, None, None) for gpu in range(2))
    return Observation(now_s, 0, models, {}, 0.02, gpus=gpus)


async def after(placer: Placer, observation: Observation, policy: Policy) -> None:
    placer.after_tick(observation, policy)
    if placer._planning is not None:
        await placer._planning


async def test_what_is_idle_is_moved_until_both_gpus_have_their_part():
    server, journal = Server(), Journal()
    placer = Placer(Core(), server, journal)
    for step in range(5):
        await after(placer, see(10.0 * step), a_policy())
    assert {server.standing[f"m{at}-best"].at for at in range(2)} == {(0,)}  # both serve
    assert (1,) in {server.standing[f"m{at}-fast"].at for at in range(2)}
    assert journal.events[0][0] == "place"
    assert len(journal.events) < 4
    assert server.told[-1] == server.told[-2]


async def test_where_the_policy_does_not_ask_nobody_is_told_anything():
    server = Server()
    placer = Placer(Core(), server, Journal())
    await after(placer, see(0.0), a_policy(gpus=None))
    assert server.told == []
    await after(placer, see(0.0, GpuReading(0, None, None)), a_policy(gpus=None))
    assert server.told == []


async def test_a_lost_gpu_is_left_at_the_next_tick_and_what_cannot_move_is_told_to():
    core, server = Core(), Server(gpu=1)
    placer = Placer(core, server, Journal())
    await after(placer, see(0.0), a_policy())
    core.lost = frozenset({1})
    await after(placer, see(0.1), a_policy())
    assert set(server.told[-1].values()) == {(0,)}
    core.lost = frozenset()
    count = len(server.told)
    await after(placer, see(0.2), a_policy())
    assert len(server.told) == count + 1


async def test_while_no_gpu_can_be_relied_on_what_was_chosen_stays():
    core, server = Core(), Server()
    placer = Placer(core, server, Journal())
    await after(placer, see(0.0), a_policy())
    core.lost = frozenset({0, 1})  # as for the half a minute after both came back
    await after(placer, see(10.0), a_policy())
    assert len(server.told) == 1
    core.lost = frozenset()
    await after(placer, see(10.1), a_policy())
    assert len(server.told) == 2


async def test_only_gpus_that_are_allowed_are_chosen():
    server = Server()
    placer = Placer(Core(), server, Journal())
    policy = a_policy(gpus=(1,))
    await after(placer, see(0.0), policy)
    assert set(server.told[-1].values()) == {(1,)}


async def test_nothing_moves_while_everything_is_paused_or_no_gpu_is_told():
    server = Server()
    placer = Placer(Core(), server, Journal())
    paused = {f"m{at}": ModelReading(f"m{at}", None, paused=True) for at in range(2)}
    await after(placer, see(0.0, **paused), a_policy())
    await after(placer, replace(see(10.0), gpus=()), a_policy())
    assert server.told == []


@pytest.mark.parametrize("why", [{"paused": True}, {"held": "foreign change"}])
async def test_what_is_loaded_of_a_model_that_is_left_alone_stays_where_it_is(why):
    server = Server()
    placer = Placer(Core(), server, Journal())
    left = {"m0": ModelReading("m0", None, **why), "m1": ModelReading("m1", None)}
    for step in range(5):
        await after(placer, see(10.0 * step, **left), a_policy())
    assert server.standing["m0-fast"].at == (0,)
    assert server.standing["m1-fast"].at == (1,)


async def test_a_policy_that_is_edited_is_planned_for_anew():
    server = Server()
    placer = Placer(Core(), server, Journal())
    placer.after_tick(see(0.0), a_policy())
    placer.renew()
    assert placer._planning is not None
    await placer._planning
    assert server.told == []
    await after(placer, see(0.1), a_policy())
    assert len(server.told) == 1


@pytest.mark.parametrize(
    ("used", "memory", "room"),
    [
        (0, None, 80),
        (60, None, 20),  # somebody else's
        (60, 10, 10),
        (60, 50, 20),
    ],
)
def test_a_gpu_has_room_within_its_budget_and_beside_what_others_took(used, memory, room):
    gpu = GpuReading(
        1,
        None,
        None,
        memory_used_bytes=int(used * GIB),
        memory_total_bytes=int(80 * GIB),
    )
    seen = see(0.0, gpu)
    if memory is not None:
        reading = MemoryReading(5 * GIB, 0.0, {}, (0, 1), (5 * GIB, memory * GIB))
        seen = replace(seen, memory=reading)
    assert room_of(gpu, a_policy(), {}, seen) == room * GIB


def test_what_our_own_hold_is_room_for_them():
    gpu = GpuReading(
        0, None, None, memory_used_bytes=int(60 * GIB), memory_total_bytes=int(80 * GIB)
    )
    standing = {"a": Standing(30 * GIB, True, (0,), True), "b": Standing(9 * GIB, True, (1,), True)}
    assert room_of(gpu, a_policy(), standing, see(0.0, gpu)) == 50 * GIB


async def test_a_search_that_fails_leaves_everything_where_it_is(monkeypatch):
    server = Server()
    placer = Placer(Core(), server, Journal())
    placer.after_tick(see(0.0), a_policy())

    def broken(*_):
        raise ValueError("no")

    monkeypatch.setattr("controller.planning.placing.Places.plan", broken)
    await asyncio.sleep(0)
    await after(placer, see(20.0), a_policy())
    assert len(server.told) <= 1
