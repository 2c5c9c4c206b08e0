"""An override that was read back: put back only where it changes what an override may change."""

from types import SimpleNamespace
from typing import Any

import pytest

from controller.actuation.remembered import Memory, Override
from controller.actuation.state import Variant
from controller.actuation.warm import Warmer

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
