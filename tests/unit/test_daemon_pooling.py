"""The warm pool in the daemon: from what the actuator tells to what it is asked to do."""

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from controller.daemon.pooling import WarmPool, budget_of
from controller.planning.pool import PoolPlan, Wish
from controller.policy.model import (
    MemoryPolicy,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.prediction.disturbance import Disturbances
from controller.telemetry.observation import (
    GpuReading,
    MemoryReading,
    ModelReading,
    Observation,
    VariantMemory,
)

GIB = float(1 << 30)


class Costs:
    disturbances = Disturbances()

    def load_s(self, models):
        return dict.fromkeys(models, 2.0)


@dataclass
class Core:
    """What of the core the pool asks, of models with the variants fast, good and best each."""

    policy: Policy
    costs: Costs = field(default_factory=Costs)
    lost: frozenset[int] = frozenset()

    def wishes(self, now_s):
        return [
            Wish(tuple(v.model for v in m.variants), np.array([10.0]), np.array([[0.7, 0.8, 0.9]]))
            for m in self.policy.models
        ]

    def speed_order(self, name):
        return ("fast", "good", "best")


@dataclass
class Server:
    """What is loaded, of variants that all hold the same, which is known once they are loaded."""

    policy: Policy
    limit: float
    size: float
    held: set = field(default_factory=set)
    known: set = field(default_factory=set)
    failing: set = field(default_factory=set)
    serving: dict = field(default_factory=dict)
    readings: dict = field(default_factory=dict)
    plan: PoolPlan | None = None

    def set_pool(self, plan):
        self.plan = plan

    def observe(self, now_s: float, *, gpus: bool = True) -> Observation:
        guess = self.size if self.known else self.limit
        return Observation(
            now_s=now_s,
            sequence=0,
            models={
                m.name: self.readings.get(m.name) or ModelReading(m.name, self.serving.get(m.name))
                for m in self.policy.models
            },
            variants={},
            window_s=0.02,
            gpus=(GpuReading(0, None, None),) if gpus else (),
            memory=MemoryReading(
                self.limit,
                float("inf"),
                {
                    v.model: VariantMemory(
                        self.size if v.model in self.known else guess,
                        0.0,
                        held=v.model in self.held,
                        guessed=v.model not in self.known,
                        humble=v.model in self.failing,
                    )
                    for m in self.policy.models
                    for v in m.variants
                },
            ),
        )

    def act(self) -> str | None:
        """Do the next step of the plan, each model then on the best that it has."""
        plan, self.plan = self.plan, None
        if plan is None:
            return None
        if plan.unload is not None:
            self.held.remove(plan.unload)
            return f"unload {plan.unload}"
        for name in plan.load[:1]:
            if name not in self.failing:
                self.held.add(name)
                self.known.add(name)
            for model in self.policy.models:
                have = [v.model for v in model.variants if v.model in self.held]
                if have:
                    self.serving[model.name] = have[-1]
            return f"load {name}"
        return None


class Journal:
    def event(self, *_):
        pass


def policy_of(count: int, *, pinned: str | None = None) -> Policy:
    return Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=tuple(
            ModelPolicy(
                f"m{at}",
                Objective(0.06, 99.0),
                tuple(
                    VariantPolicy(name, f"m{at}-{name}", quality)
                    for name, quality in (("fast", 0.7), ("good", 0.8), ("best", 0.9))
                ),
            )
            for at in range(count)
        ),
        memory=MemoryPolicy(0, gpu_budget_bytes=1),
    )


async def live(server: Server, steps: int) -> list[str]:
    """Let so many plans be made and carried out; return what was done."""
    pool, done = WarmPool(Core(server.policy), server, Journal()), []
    for step in range(steps):
        pool.after_tick(server.observe(10.0 * step), server.policy)
        for _ in range(200):
            await asyncio.sleep(0.001)
            if pool._planning is None or pool._planning.done():
                break
        found = server.act()
        if found is not None:
            done.append(found)
    return done


async def test_of_many_models_everything_is_measured_and_loaded_where_there_is_room():
    server = Server(policy_of(10), limit=80 * GIB, size=2 * GIB)
    await live(server, 60)
    assert len(server.held) == 30


async def test_where_not_everything_fits_the_room_is_filled_and_then_nothing_moves():
    server = Server(policy_of(4), limit=17 * GIB, size=2 * GIB)
    done = await live(server, 80)
    assert 2 * GIB * len(server.held) <= server.limit
    assert {f"m{at}-fast" for at in range(4)} <= server.held
    assert len(server.held) >= 7
    assert await live(server, 10) == []
    assert len(done) < 30


async def test_what_loads_were_seen_to_disturb_decides_whether_they_are_worth_it():
    """Room for one beside the fastest: `good` is there, and `best` is worth 0.1 more of 10."""

    async def done(share: float) -> list[str]:
        core = Core(policy_of(1), Costs())
        core.costs.disturbances = Disturbances()
        core.costs.disturbances.restore({"load": [[share, 1.0]] * 16})
        core.costs.load_s = lambda models: dict.fromkeys(models, 120.0)
        server = Server(core.policy, limit=4 * GIB, size=2 * GIB)
        server.held = {"m0-fast", "m0-good"}
        server.known = {"m0-fast", "m0-good", "m0-best"}
        server.serving = {"m0": "m0-fast"}
        pool = WarmPool(core, server, Journal())
        pool.after_tick(server.observe(0.0), server.policy)
        await pool._planning
        return [pool.plan.unload] if pool.plan.unload else []

    assert await done(0.05) == ["m0-good"]
    assert await done(0.45) == []


def test_what_nobody_measured_of_the_host_is_taken_for_twice_as_large_as_is_guessed():
    one = VariantMemory(0.0, 3.0 * GIB, held=True)
    new = VariantMemory(0.0, 3.0 * GIB, held=False, host_guessed=True)
    for limit, counts in ((10.0, 6.0), (8.0, 5.0), (4.0, 3.0)):
        memory = MemoryReading(float("inf"), limit * GIB, {"one": one, "new": new})
        budget = budget_of(memory, ["one"])
        needs = {name: budget.need(name) for name in ("one", "new")}
        assert (needs["one"].host_bytes, needs["new"].host_bytes) == (3.0 * GIB, counts * GIB)
        assert needs["new"].gpu_bytes == 0.0


async def test_a_variant_that_never_loads_costs_no_other_its_place():
    server = Server(policy_of(1), limit=4 * GIB, size=2 * GIB, failing={"m0-best"})
    await live(server, 20)
    assert server.held == {"m0-fast", "m0-good"}
    done = await live(server, 20)
    assert not [one for one in done if one.startswith("unload")]


async def test_a_budget_over_what_is_loaded_already_unloads_no_more_than_it_must():
    server = Server(policy_of(2), limit=20 * GIB, size=4 * GIB)
    server.held = {"m0-fast", "m0-best", "m1-fast", "m1-best"}
    server.known = {"m0-fast"}  # of the others it is what Triton holds, shared out
    server.serving = {"m0": "m0-best", "m1": "m1-best"}
    done = await live(server, 5)
    assert not [one for one in done if one.startswith("unload")]


@pytest.mark.parametrize("word", ["paused", "held"])
async def test_what_is_left_alone_keeps_what_it_has(word):
    server = Server(policy_of(2), limit=8 * GIB, size=2 * GIB)
    server.held = {"m0-fast", "m0-good", "m1-fast", "m1-good"}
    server.known = {f"m{at}-{name}" for at in range(2) for name in ("fast", "good", "best")}
    server.serving = {"m0": "m0-fast", "m1": "m1-fast"}
    left = {"paused": {"paused": True}, "held": {"held": "foreign change"}}[word]
    server.readings["m0"] = ModelReading("m0", "m0-fast", **left)
    await live(server, 20)
    assert {"m0-fast", "m0-good"} <= server.held
    assert "m1-best" in server.held


async def test_nothing_moves_while_everything_is_paused():
    server = Server(policy_of(1), limit=8 * GIB, size=2 * GIB)
    server.readings["m0"] = ModelReading("m0", None, paused=True)
    assert await live(server, 5) == []


async def test_a_plan_for_a_policy_that_changed_at_the_same_tick_is_not_carried_out():
    server = Server(policy_of(1), limit=8 * GIB, size=2 * GIB)
    pool = WarmPool(Core(server.policy), server, Journal())
    pool.after_tick(server.observe(0.0), server.policy)
    pool.renew()  # a schedule turned
    await pool._planning
    assert pool.plan is None
    assert server.act() is None


async def test_gpus_are_waited_for_before_what_they_hold_is_guessed():
    server = Server(policy_of(1), limit=8 * GIB, size=2 * GIB)
    pool = WarmPool(Core(server.policy), server, Journal())
    pool.after_tick(server.observe(0.0, gpus=False), server.policy)
    assert pool._planning is None
    pool.after_tick(server.observe(4.0, gpus=False), server.policy)
    assert pool._planning is not None
    await pool._planning


async def test_no_more_loads_are_asked_for_in_an_hour_than_the_policy_says():
    policy = policy_of(2)
    policy = replace(policy, memory=replace(policy.memory, max_loads_per_hour=2))
    server = Server(policy, limit=80 * GIB, size=2 * GIB)
    # The fastest of each model do not count: nothing serves without them.
    await live(server, 40)
    assert {"m0-fast", "m1-fast"} <= server.held
    assert len(server.held) == 4
    pool, done = WarmPool(Core(policy), server, Journal()), list[str | None]()
    for step in range(4):
        pool.after_tick(server.observe(3700.0 * (step + 1)), policy)
        assert pool._planning is not None
        await pool._planning
        done.append(server.act())
    assert len(server.held) == 6
