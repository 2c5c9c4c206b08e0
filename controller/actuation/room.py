"""Memory about one load: is there room for it, and what did it take? And about all of them.

Owns the questions that a load and the planner ask the memory watch of one server. It must not load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from controller.actuation.memory import MemoryWatch, Used
from controller.actuation.places import is_known, moved, place_of
from controller.actuation.placing import gpus_now, why_fixed
from controller.actuation.remembered import HOST, of_gpus
from controller.actuation.state import Server, Variant
from controller.planning.budget import Budget
from controller.planning.placing import Standing
from controller.telemetry.observation import MemoryReading, VariantMemory

_AGAIN_S: Final = 30.0
_HOST_S: Final = 2.0  # that the host's processes are waited for; they take some milliseconds


class Before(NamedTuple):
    """What was used before a load. Empty and None: nothing can be told."""

    gpus: Mapping[int, Used] = {}
    host_bytes: int | None = None  # by Triton's processes


def short_of(server: Server, variant: Variant, *, emptied: bool = False) -> str | None:
    """Return why there is no memory to load a variant, or to reload one that is loaded.

    `emptied`: it will have been unloaded by then.
    """
    watch, held = server.free_memory, server.held()
    if (emptied or not variant.ready) and variant.model in held:
        held.remove(variant.model)  # it is there for its operation alone
    return None if watch is None else watch.why_not(variant.model, held)


async def used_bytes(server: Server, variant: Variant) -> Before:
    """Return what is used before a load.

    Waits for a first reading of GPUs where much depends on it.
    """
    watch = server.free_memory
    if watch is None:
        return Before()
    used, host_bytes = watch.used_bytes(), await _host_bytes(watch)
    if not used and watch.is_to_be_measured(variant.model):
        await asyncio.sleep(server.timing.reading_s)
        used = watch.used_bytes()
    return Before(used, host_bytes)


async def weigh(server: Server, variant: Variant, before: Before, *, fresh: bool) -> None:
    """Note what a variant took that was just loaded and has answered.

    Args:
        server: where.
        variant: that was loaded.
        before: what `used_bytes` returned.
        fresh: it was not there before; else what it took comes on top, as instances do.
    """
    watch, placed = server.free_memory, place_of(variant)
    was, variant.weighed_on = variant.weighed_on, placed
    known = server.memory.needs.get(variant.model, {})
    took, by_gpu = dict(known), of_gpus(known)
    after = None
    if watch is not None and before.host_bytes is not None:
        after = await _host_bytes(watch)
    if watch is not None and before.host_bytes is not None and after is not None:
        if fresh:
            took[HOST] = watch.took_host_bytes(variant.model, before.host_bytes, after)
        elif HOST in known:
            took[HOST] = max(known[HOST] + after - before.host_bytes, 0)
    if watch is not None and before.gpus:
        await asyncio.sleep(server.timing.reading_s)
        weighed = watch.took_bytes if fresh else watch.grown_bytes
        by_gpu = weighed(variant.model, before.gpus) or by_gpu
    has_moved = is_known(was) and is_known(placed) and placed != was
    if has_moved and by_gpu and not (fresh and before.gpus):
        # Loaded beside what it was: where that cannot be told apart it is as large as it was.
        by_gpu = moved(of_gpus(known), placed, by_gpu)
    if by_gpu or HOST in took:
        of_host = {HOST: took[HOST]} if HOST in took else {}
        server.memory.need(variant.model, {**by_gpu, **of_host})


async def look_at_host(server: Server) -> None:
    """Share out what Triton holds of the host among variants that nobody saw being loaded."""
    watch, held, now_s = server.free_memory, server.held(), server.clock()
    moves = any(v.operation is not None or v.leaving for v in server.variants.values())
    if watch is None or moves or now_s < watch.look_s or not watch.is_host_to_be_read(held):
        return
    watch.look_s = now_s + _AGAIN_S  # where nobody can tell
    host_bytes = await _host_bytes(watch)
    if host_bytes is not None and server.held() == held:
        watch.share_host(held, host_bytes)
        watch.look_s = now_s


async def _host_bytes(watch: MemoryWatch) -> int | None:
    """Return what Triton's processes hold of the host, without waiting long for it."""
    try:
        async with asyncio.timeout(_HOST_S):
            return await asyncio.to_thread(watch.read_host)
    except TimeoutError:
        return None


def standings(server: Server) -> dict[str, Standing]:
    """Return how every variant stands, by Triton's name; {}: nobody has looked yet."""
    if not server.reachable:
        return {}  # what is loaded would be taken for nowhere, and moved
    watch, held = server.free_memory, set(server.held())
    serving, ours = server.serving(), server.acted_on()
    return {
        name: Standing(
            0.0 if watch is None else watch.size(name),
            name in held,
            gpus_now(variant) if name in held else server.aims.get(name) or gpus_now(variant),
            may_move=name in ours and name not in serving,
            fixed=why_fixed(variant) is not None,
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
        if name in server.dispatchers:
            continue
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
            host_guessed=watch.is_host_guessed(name),
        )
    limit = budget.limit
    least = min(limit.on, default=limit.gpu_bytes)
    return MemoryReading(least, limit.host_bytes, found, gpus, limit.on)
