"""An override that was read back: put back only where it changes what an override may change."""

from types import SimpleNamespace
from typing import Any

import pytest

from controller.actuation.idle import IdleOperations
from controller.actuation.remembered import Memory, Override
from controller.actuation.state import Variant
from controller.actuation.warm import Warmer
from controller.ports import Outcome

DISK = {"name": "a", "backend": "python", "max_batch_size": 8}


async def judged(override: Override, seen: dict[str, Any]) -> Variant:
    async def model_config(_name: str, *, deadline_s: float) -> dict[str, Any]:
        return seen

    memory = Memory(None)
    memory.overrides["a"] = override
    server = SimpleNamespace(
        control=SimpleNamespace(model_config=model_config), clock=lambda: 0.0, memory=memory
    )
    variant = Variant("a", override=override)
    await Warmer(server).verify(variant, deadline_s=1.0)
    assert (variant.override is None) == ("a" not in memory.overrides)
    return variant


async def test_one_that_was_lost_is_put_back():
    variant = await judged(Override({**DISK, "max_batch_size": 4}, {}, DISK), DISK)
    assert variant.reapply
    assert variant.override is not None


@pytest.mark.parametrize("expected", [{}, {"name": "a"}])
async def test_one_whose_record_of_the_folder_is_forged_is_not(expected):
    forged = {**DISK, "parameters": {"EXECUTION_ENV_PATH": {"string_value": "/evil.tar.gz"}}}
    variant = await judged(Override(forged, expected, forged), DISK)
    assert not variant.reapply
    assert variant.override is None


@pytest.mark.parametrize(
    ("keeper", "outcome"),
    [
        ("loads it", Outcome.DONE),
        ("is at something else", Outcome.NOTHING_TO_DO),
        ("finds it refused", Outcome.NOTHING_TO_DO),
    ],
)
async def test_what_the_keeper_loads_between_writing_down_and_loading_is_done(keeper, outcome):
    variant = Variant("a", config=DISK, ready=True, proven=True)

    async def work(variant: Variant, *, reason: str) -> None:
        if keeper == "is at something else":
            return
        variant.reapply = False
        if keeper == "finds it refused":
            variant.override = None

    server = SimpleNamespace(
        clock=lambda: 0.0,
        memory=Memory(None),
        serving=frozenset,
        users=lambda _: (),
    )
    warmer = SimpleNamespace(work=work, record=lambda *_, **__: SimpleNamespace(outcome=_[2]))
    record = await IdleOperations(server, warmer).override(variant, {"max_batch_size": 4})
    assert record.outcome is outcome
