"""Who stands on a variant, and whether one that was unloaded is gone.

Owns what must be asked of the server before a variant is taken away, and after. It must not load or
unload anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from controller.actuation import alias as shape
from controller.actuation.client import Fault, TritonError
from controller.actuation.state import Server, Variant

_POLL_S: Final = 0.1


async def nobody_uses(server: Server, variant: Variant) -> bool:
    """Return whether a variant may be taken away for a moment, as far as anybody can know.

    An alias with a folder may come up on any of its variants while it is not there.
    """
    if variant.model in server.serving():
        return False
    if any(not alias.virtual and not alias.ready for alias in server.users(variant.model)):
        return False
    return await user_of(server, variant.model) is None


async def user_of(server: Server, model: str) -> str | None:
    """Ask the server which ensemble has a model among its steps; None: none has."""
    answer_s = server.timing.answer_s
    for alias in server.aliases.values():
        # One that is being proven may be put back to where it was.
        if alias.switching or alias.unsettled is not None or alias.proof is not None:
            return f"an operation on {alias.name} that is under way"
    try:
        states = await server.control.index(deadline_s=answer_s)
    except TritonError as error:
        return f"perhaps something (not looked: {error})"
    loaded = {name for name, (state, _) in states.items() if state == "READY"}
    for name in sorted(loaded | set(server.aliases)):
        try:
            config = await server.control.model_config(name, deadline_s=answer_s)
        except TritonError as error:
            if error.fault is Fault.NOT_FOUND:
                continue
            return f"perhaps {name} (not looked: {error})"
        if model in shape.steps_of(config):
            return name
    return None


async def await_gone(server: Server, model: str, free: Mapping[str, int], started_s: float) -> bool:
    """Wait until the index has no such model and, where that can be read, its memory is back.

    Args:
        server: where.
        model: Triton's name.
        free: bytes that were free before, by place.
        started_s: when the operation began.
    """
    unloaded = False
    while server.clock() - started_s < server.timing.unload_s:
        if not unloaded:
            states = await server.control.index(deadline_s=server.timing.answer_s)
            unloaded = states.get(model, ("UNAVAILABLE", ""))[0] in ("UNAVAILABLE", "")
        watch = server.free_memory
        if unloaded and (watch is None or watch.is_back(model, free)):
            return True
        await asyncio.sleep(_POLL_S)
    return False
