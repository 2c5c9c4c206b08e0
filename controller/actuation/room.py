"""Memory about one load: is there room for it, and what did it take? And about all of them.

Owns the questions that a load and the planner ask the memory watch of one server. It must not load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from controller.actuation.memory import MemoryWatch, Used
from controller.actuation.places import is_known, moved, place_of
from controller.actuation.state import Server, Variant
from controller.planning.budget import Budget
from controller.planning.placing import Standing
from controller.telemetry.observation import MemoryReading, VariantMemory


def short_of(server: Server, variant: Variant, *, emptied: bool = False) -> str | None:
    """Return why there is no memory to load a variant, or to reload one that is loaded.

    `emptied`: it will have been unloaded by then.
    """
    watch, held = server.free_memory, server.held()
    if (emptied or not variant.ready) and variant.model in held:
        held.remove(variant.model)  # it is there for its operation alone
    return None if watch is None else watch.why_not(variant.model, held)


async def used_bytes(server: Server, variant: Variant) -> Mapping[int, Used]:
    """Return what is used of each GPU before a load.

    Waits for a first reading where much depends on it.
    """
    watch = server.free_memory
    if watch is None:
        return {}
    used = watch.used_bytes()
    if not used and watch.is_to_be_measured(variant.model):
        await asyncio.sleep(server.timing.reading_s)
        used = watch.used_bytes()
    return used


async def weigh(server: Server, variant: Variant, before: Mapping[int, Used]) -> None:
    """Note what a variant took that was just loaded and has answered.

    Args:
        server: where.
        variant: that was loaded.
        before: what `used_bytes` returned; {}: nothing can be told.
    """
    watch, placed = server.free_memory, place_of(variant)
    known = server.memory.needs.get(variant.model)
    was, variant.weighed_on = variant.weighed_on, placed
    if known and not before and is_known(was) and is_known(placed) and placed != was:
        # Loaded beside what it was, which cannot be told apart: it is as large as it was.
        server.memory.need(variant.model, moved(known, placed))
    if watch is None or not before:
        return
    await asyncio.sleep(server.timing.reading_s)
    took = watch.took_bytes(variant.model, before)
    if took is not None:
        server.memory.need(variant.model, took)


def standings(server: Server) -> dict[str, Standing]:
    """Return how every variant stands, by Triton's name."""
    watch, held = server.free_memory, set(server.held())
    serving, ours = server.serving(), server.acted_on()
    return {
        name: Standing(
            0.0 if watch is None else watch.size(name),
            name in held,
            place_of(variant) if name in held else server.aims.get(name) or place_of(variant),
            may_move=name in ours and name not in serving,
        )
        for name, variant in server.variants.items()
    }


def memory_reading(
    server: Server, watch: MemoryWatch, budget: Budget, held: Collection[str], now_s: float
) -> MemoryReading:
    """Return the budget and what each variant is to it."""
    found, ours = {}, server.acted_on()
    gpus = watch.gpus if budget.limit.on else ()
    for name, variant in server.variants.items():
        # One that is not there yet counts where its load will put it.
        need = budget.need(name) if name in held else budget.takes(name)
        resting = variant.failures > 0 and variant.retry_s > now_s
        found[name] = VariantMemory(
            need.gpu_bytes + max(need.on, default=0.0),
            need.host_bytes,
            held=name in held,
            guessed=watch.is_to_be_measured(name),
            blocked=resting
            or not watch.lost.isdisjoint(watch.aims(name) or place_of(variant))
            or name not in ours
            or (variant.hold_until_s > now_s and not variant.ready),
            humble=variant.failures > 0 or variant.short,
            kept=variant.used_until_s > now_s,
            on_bytes=need.on,
        )
    limit = budget.limit
    least = min(limit.on, default=limit.gpu_bytes)
    return MemoryReading(least, limit.host_bytes, found, gpus, limit.on)
