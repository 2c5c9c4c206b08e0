"""What may be done only to a variant that serves nobody: another config, an unload.

Owns the refusal of these on a variant that an alias, ours or anybody's, points at. It must not
switch an alias away to make them possible: that is a decision.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from controller.actuation import alias as shape
from controller.actuation.client import TritonError
from controller.actuation.remembered import Override
from controller.actuation.state import Server, Variant
from controller.actuation.state_file import OVERRIDABLE
from controller.actuation.users import await_gone, user_of
from controller.actuation.warm import Warmer
from controller.ports import ActionRecord, Outcome

_POLL_S = 0.1


class IdleOperations:
    """Reconfigures and unloads variants that serve nobody."""

    def __init__(self, server: Server, warmer: Warmer) -> None:
        self._server = server
        self._warmer = warmer

    async def override(self, variant: Variant, changes: Mapping[str, Any]) -> ActionRecord:
        """Load an idle variant with another config; empty changes mean the one on disk.

        Args:
            variant: must be loaded, and must not serve.
            changes: fields of `OVERRIDABLE` only.
        """
        now_s = self._server.clock()
        refuse = None
        if variant.model in self._server.serving():
            refuse = f"{variant.model} serves: switch away first, then reload it"
        elif not changes.keys() <= OVERRIDABLE:
            refuse = f"only {', '.join(sorted(OVERRIDABLE))} may be overridden"
        elif variant.config is None:
            refuse = f"{variant.model} is not loaded"
        elif variant.operation is not None:
            refuse = f"{variant.model}: {variant.operation} is under way"
        else:
            refuse = self._broken_promise(variant.model, {**variant.config, **changes})
        if refuse is not None or variant.config is None:
            return self._warmer.record(
                variant, "load", Outcome.REFUSED, started_s=now_s, reason="override", error=refuse
            )
        before = variant.override
        disk = before.disk if before is not None else variant.config
        kept = () if before is None else tuple(n for n in before.of_policy if n not in changes)
        policys = {name: before.sent[name] for name in kept} if before is not None else {}
        sent = {**disk, **policys, **changes}
        variant.override, variant.reapply = Override(sent, {}, disk, kept), True
        # Before it is sent: whoever finds it on the server, after a death of ours or a lost answer,
        # must know it for ours, or for what was to be there.
        memory = self._server.memory
        memory.override(variant.model, variant.override)
        await asyncio.to_thread(memory.save)
        record = await self._warmer.work(variant, reason="override")
        if record is not None and record.outcome is Outcome.REFUSED:
            variant.override, variant.reapply, variant.error = before, False, None
            memory.override(variant.model, before)
        if record is not None:
            return record
        # The keeper may have been first: what is to be there was written down already.
        found = disk if variant.override is None else variant.override.sent
        done = not variant.reapply and found == sent
        outcome = Outcome.DONE if done else Outcome.NOTHING_TO_DO
        return self._warmer.record(variant, "load", outcome, started_s=now_s, reason="override")

    def _broken_promise(self, model: str, config: Mapping[str, Any]) -> str | None:
        """Return which alias could no longer be pointed at a model with such a config."""
        for alias in self._server.users(model):
            problems = () if alias.config is None else shape.fits(alias.config, config)
            if problems:
                return "; ".join(map(str, problems))
        return None

    async def unload(
        self, variant: Variant, *, reason: str, hold_until_s: float = math.inf
    ) -> ActionRecord:
        """Unload a variant on which, looked at now, no ensemble stands; wait until it is gone.

        Until `hold_until_s` it is not loaded again, unless somebody asks for it.
        """
        server = self._server
        started_s = server.clock()
        async with self._warmer.lock:
            why = "another operation runs"
            if variant.operation is None:
                # Claimed before it is looked at, or a switch to it could begin meanwhile.
                variant.operation = "unload"
                user = await self._who_uses_claimed(variant)
                why = "" if user is None else f"{user} points at {variant.model}"
            if why:
                return self._warmer.record(
                    variant,
                    "unload",
                    Outcome.REFUSED,
                    started_s=started_s,
                    reason=reason,
                    error=why,
                )
            variant.ready = variant.proven = variant.warm = False
            variant.leaving = True
            variant.hold_until_s = hold_until_s
            try:
                watch = server.free_memory
                free = {} if watch is None else watch.free_bytes(variant.model)
                await server.control.unload(variant.model, deadline_s=server.timing.answer_s)
                gone = await await_gone(server, variant.model, free, started_s)
            except TritonError as failure:
                return self._warmer.emit(
                    variant,
                    "unload",
                    Outcome.UNKNOWN,
                    started_s=started_s,
                    reason=reason,
                    error=str(failure),
                )
            finally:
                variant.operation, variant.config = None, None
            variant.leaving = not gone
        error = None if gone else "it is still unloading: its memory is not free"
        outcome = Outcome.DONE if gone else Outcome.UNKNOWN
        return self._warmer.emit(
            variant, "unload", outcome, started_s=started_s, reason=reason, error=error
        )

    async def _who_uses_claimed(self, variant: Variant) -> str | None:
        """Return who uses a variant that we claimed, and give it up then; None: nobody does."""
        user = "perhaps somebody"
        try:
            user = await user_of(self._server, variant.model) or ""
        finally:
            if user:
                variant.operation = None
        return user or None
