"""Reloads, resizes, loads and unloads at random under traffic and switches, with faults and kills.

No client's request fails, and in the end every variant is as it was last wanted.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Wire
from governed import ALIAS, Governed, governed, make_policy, precompile, until
from repository import write_model
from traffic import OtherProcess

from controller.ports import ActionRecord, Outcome

VARIANTS = ("slow", "mid", "fast")
BATCHES, INSTANCES = (8, 12, 16, 24), (1, 2, 3)
SWITCH_S = 0.05
# What an operation may come to: the rest of them would be a failure of ours.
FINE = {Outcome.DONE, Outcome.NOTHING_TO_DO, Outcome.REFUSED, Outcome.UNKNOWN, Outcome.FAILED}


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is done."""

    reloads: int
    resizes: int
    cycles: int
    switches: int
    faults: int
    kills: int

    def rounds(self) -> int:
        return self.kills + 1


SHORT = Amount(4, 4, 2, 30, 2, 1)
SHARE = float(os.environ.get("TRITON_GOVERNOR_OPERATIONS", "1"))
FULL = Amount(*(round(SHARE * count) for count in (200, 200, 100, 2000, 60, 20)))


@pytest.fixture(scope="module")
def server(start_triton, tmp_path_factory):
    root = tmp_path_factory.mktemp("operations") / "repository"
    for tag, name in enumerate(reversed(VARIANTS), start=1):
        write_model(root, name, tag=tag, delay_s=0.001 * tag, init_s=0.1)
    precompile(root)
    return start_triton(root)


class Operator:
    """Asks for operations on idle variants, and remembers what each is to be."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.wanted: dict[str, dict] = {name: {} for name in VARIANTS}
        self.done: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()

    async def operate(self, test: Governed, kind: str) -> None:
        """Do one operation on a variant that serves nobody; ask again until it is done."""
        while True:
            await settled(test)
            idle = [name for name in VARIANTS if name != test.reading.serving]
            model = self.chance.choice(idle)
            record = await getattr(self, kind)(test, model)
            self.outcomes[f"{kind} {record.outcome.value}"] += 1
            assert record.outcome in FINE, record
            if record.outcome is not Outcome.REFUSED:
                self.done[kind] += 1
                return
            await asyncio.sleep(0.02)

    async def reload(self, test: Governed, model: str) -> ActionRecord:
        rows = self.chance.choice(BATCHES)
        return await self._override(test, model, {"max_batch_size": rows})

    async def resize(self, test: Governed, model: str) -> ActionRecord:
        group = [{"kind": "KIND_CPU", "count": self.chance.choice(INSTANCES)}]
        return await self._override(test, model, {"instance_group": group})

    async def _override(self, test: Governed, model: str, change: dict) -> ActionRecord:
        changes = {**self.wanted[model], **change}
        record = await test.actuator.load(model, override=changes)
        if record.outcome is not Outcome.REFUSED:
            self.wanted[model] = changes
        return record

    async def cycle(self, test: Governed, model: str) -> ActionRecord:
        record = await test.actuator.unload(model)
        if record.outcome is not Outcome.REFUSED:
            await asyncio.sleep(self.chance.random() * 0.1)
            await test.actuator.load(model)
        return record


async def settled(test: Governed) -> None:
    """Wait until everything that was begun has ended, and what failed was mended."""

    def calm() -> bool:
        variants = test.server.variants.values()
        return all(
            v.operation is None and v.outlasted is None and not v.reapply and v.ready and v.proven
            for v in variants
        )

    await until(calm, timeout_s=60.0, what=test.actuator.describe)


async def switching(test: Governed, chance: random.Random, count: int) -> int:
    """Switch as the daemon would, to whatever can be switched to; return how often it was done."""
    done = 0
    while done < count:
        reading = test.reading
        options = [v for v in VARIANTS if v not in reading.unusable and v != reading.serving]
        if options and not reading.switching:
            record = await test.switch(chance.choice(options))
            done += record.outcome is Outcome.DONE
        await asyncio.sleep(SWITCH_S * (0.5 + chance.random()))
    return done


async def faulting(wire: Wire, chance: random.Random, count: int, over_s: float) -> None:
    for _ in range(count):
        await asyncio.sleep(chance.random() * 2.0 * over_s / max(count, 1))
        if chance.random() < 0.5:
            await wire.cut(0.3)
        else:
            await wire.stall_answers(1.2)  # longer than what only asks may take


_MORTAL = textwrap.dedent("""
    import asyncio, os, signal, sys
    sys.path.insert(0, {here!r})
    from pathlib import Path
    from governed import governed, make_policy

    async def main():
        policy = make_policy(sys.argv[1], *{variants!r})
        async with governed(policy, state_file=Path(sys.argv[2])) as test:
            await test.ready()
            idle = next(name for name in {variants!r} if name != test.reading.serving)
            loop = asyncio.get_running_loop()
            loop.call_later(float(sys.argv[3]), os.kill, os.getpid(), signal.SIGKILL)
            while True:
                for rows in (8, 16):
                    await test.actuator.load(idle, override={{"max_batch_size": rows}})

    asyncio.run(main())
""")


async def killed_in_the_middle(server, state: Path, chance: random.Random) -> None:
    program = _MORTAL.format(here=str(Path(__file__).parent), variants=VARIANTS)
    after_s = str(chance.random())
    mortal = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, server.grpc, str(state), after_s
    )
    assert await mortal.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "amount",
    [
        pytest.param(SHORT, id="short", marks=pytest.mark.timeout(300)),
        pytest.param(FULL, id="full", marks=[pytest.mark.soak, pytest.mark.timeout(7200)]),
    ],
)
async def test_operations_at_random_fail_no_request_and_end_as_wanted(server, tmp_path, amount):
    chance = random.Random(1)
    operator, switches = Operator(chance), 0
    state = tmp_path / "alias.json"
    kinds = ["reload"] * amount.reloads + ["resize"] * amount.resizes + ["cycle"] * amount.cycles
    chance.shuffle(kinds)
    rounds = amount.rounds()
    share = -(-len(kinds) // rounds)
    async with contextlib.AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.grpc))
        policy = make_policy(wire.address, *VARIANTS)
        # There must be an alias before there can be traffic.
        async with governed(policy, server=server.grpc, state_file=state) as test:
            await test.ready()
        traffic = await stack.enter_async_context(OtherProcess(server.grpc, ALIAS, rate=60.0))
        for number in range(rounds):
            mine = kinds[number * share : (number + 1) * share]
            async with governed(policy, server=server.grpc, state_file=state) as test:
                await test.ready(timeout_s=60.0)
                for name, wanted in operator.wanted.items():
                    over = test.variant(name).override
                    found = {} if over is None else _changes(over)
                    # Whoever was killed wanted another batch of one of them, and said so first.
                    of_killed = number > 0 and found.get("max_batch_size", 8) in (8, 16)
                    assert found == wanted or of_killed, (name, wanted, found)
                    operator.wanted[name] = found
                switcher = asyncio.create_task(switching(test, chance, amount.switches // rounds))
                faults = amount.faults // rounds
                faulter = asyncio.create_task(faulting(wire, chance, faults, 0.8 * len(mine)))
                for kind in mine:
                    await operator.operate(test, kind)
                switches += await switcher
                await faulter
                await _as_wanted(test, operator)
            if number < amount.kills:
                await killed_in_the_middle(server, state, chance)
    assert traffic.failures == []
    assert traffic.answers > 60
    assert operator.done == {
        "reload": amount.reloads,
        "resize": amount.resizes,
        "cycle": amount.cycles,
    }
    told = dict(sorted(operator.outcomes.items()))
    print(f"{switches} switches, {traffic.answers} answers, {told}")  # noqa: T201 - for the docs


def _changes(override) -> dict:
    """Return what an override changes of what is on disk."""
    return {
        key: value
        for key, value in override.sent.items()
        if key in {"max_batch_size", "instance_group"} and value != override.disk.get(key)
    }


async def _as_wanted(test: Governed, operator: Operator) -> None:
    """Compare the server with what was last asked for."""
    await settled(test)
    alias = test.server.aliases[ALIAS]
    await until(lambda: not alias.switching and alias.proof is None and alias.unsettled is None)
    assert await test.target() == test.reading.serving
    for name, wanted in operator.wanted.items():
        config = await test.config(name)
        assert int(config["max_batch_size"]) == wanted.get("max_batch_size", 8), (name, wanted)
        count = wanted.get("instance_group", [{"count": 1}])[0]["count"]
        assert int(config["instance_group"][0]["count"]) == count, (name, wanted)
