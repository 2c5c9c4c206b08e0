"""Between two ticks."""

import asyncio
import logging
import time
from dataclasses import replace

from taught_core import POLICY

from controller.daemon.rest import Rest

AUTO = replace(POLICY, interval_s=None)  # 60 ms: a tick every 20, a glance every 5


async def _rested(is_pressing, *, ticks=1, stopped=False):
    """Return when ticks were due, in seconds from the start."""
    stop = asyncio.Event()
    if stopped:
        stop.set()
    stopping = asyncio.create_task(stop.wait())
    rest = Rest(AUTO, is_pressing, clock=time.monotonic)
    began_s, found = time.monotonic(), []
    try:
        for _ in range(ticks):
            await rest.after_tick(stopping)
            found.append(time.monotonic() - began_s)
    finally:
        stopping.cancel()
    return found


async def test_a_calm_rest_ends_with_the_interval():
    budgets = []

    async def calm(budget_s):
        budgets.append(budget_s)
        return False

    (ended_s,) = await _rested(calm)
    assert ended_s >= AUTO.tick_s - 0.001
    assert 1 <= len(budgets) <= 3
    assert max(budgets) <= 0.5 * AUTO.glance_s


async def test_what_is_pressing_ends_it_at_the_first_glance():
    glances = []

    async def pressing(budget_s):
        glances.append(budget_s)
        return True

    await _rested(pressing, ticks=3)
    assert len(glances) == 3


async def test_a_glance_that_fails_is_told_and_the_ticks_go_on(caplog):
    async def broken(_):
        raise RuntimeError("no such thing")

    with caplog.at_level(logging.ERROR, logger="governor"):
        ended_s = await _rested(broken, ticks=20)
    assert ended_s[-1] >= 20 * AUTO.tick_s - 0.005
    told = [record for record in caplog.records if "glance failed" in record.message]
    assert len(told) == 10


async def test_stopping_ends_it_before_any_glance():
    glances = []

    async def calm(budget_s):
        glances.append(budget_s)
        return False

    await _rested(calm, stopped=True)
    assert glances == []
