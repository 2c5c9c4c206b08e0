"""The variants: load, prove, keep warm; one operation at a time, never on one that serves.

Owns what is done to variants so that they can be switched to. It must not touch an alias.

A variant is *warm* only after a load, a request, and a second load that reloads nothing: the
first import of a Python model changes its own folder, and the next load that touches the folder,
a switch of an alias included, would reload the model for seconds instead of 2 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from controller.actuation import alias as shape
from controller.actuation import overrides
from controller.actuation.client import Fault, TritonError
from controller.actuation.placing import is_lost
from controller.actuation.queueing import (
    is_pending,
    may_reload,
    prepare,
    set_up,
    take_back,
    want_again,
)
from controller.actuation.room import Before, short_of, used_bytes, weigh
from controller.actuation.state import Server, Variant
from controller.actuation.users import await_gone, nobody_uses
from controller.ports import ActionRecord, Outcome

_LOG = logging.getLogger(__name__)
_SETTLING_LOADS = 3


class _ShortOfMemoryError(Exception):
    """A load was not begun; the message says what is missing where."""


class Warmer:
    """Keeps the variants of one server loaded, proven and warm."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.lock = asyncio.Lock()  # one operation at a time, or memory is held many times

    # -- looking ---------------------------------------------------------------------------

    async def verify(self, variant: Variant, *, deadline_s: float) -> None:
        """Compare a variant with what is known of it, and take over what somebody else changed.

        Raises TritonError if the server could not be asked; a variant that is not loaded is an
        answer.
        """
        server = self._server
        try:
            seen = await server.control.model_config(variant.model, deadline_s=deadline_s)
        except TritonError as error:
            if error.fault is not Fault.NOT_FOUND:
                raise
            variant.ready = variant.proven = variant.warm = False
            return
        variant.ready = True
        variant.checked_s = server.clock()
        if seen == variant.config:
            return
        override, known = variant.override, variant.config
        variant.config = seen
        ours = override is not None and not override.expected
        if override is not None and seen != override.expected:
            overrides.judge(self._server, variant, override, seen)
        problems = shape.unsuitable(seen)
        if problems:
            variant.error = "; ".join(map(str, problems))
        if known is not None:
            variant.proven = variant.warm = False
            if not ours and not variant.reapply and variant.operation is None:
                self._report(variant, "foreign change: it was loaded with another config")

    async def prove(self, variant: Variant) -> None:
        """Send a variant one request. Raises TritonError where it does not answer it."""
        server, config = self._server, variant.config
        if config is None:
            raise TritonError(Fault.NOT_FOUND, f"{variant.model} is not loaded")
        try:
            await server.control.prove(config, variant.model, deadline_s=server.timing.probe_s)
        except TritonError as error:
            if error.fault is Fault.OVERLOADED:
                # It lives. Asked at once again, it would be asked hundreds of times a second.
                variant.retry_s = server.clock() + server.timing.backoff_s
                return
            if error.fault is Fault.INVALID:
                self.distrust(variant, str(error))
            raise
        variant.proven = True

    def distrust(self, variant: Variant, error: str) -> None:
        """Keep the aliases off a variant until it has been proven anew, ever less often."""
        server, timing = self._server, self._server.timing
        variant.proven, variant.error = False, error
        delay_s = timing.backoff_s * 2.0 ** min(variant.failures, 30)
        variant.retry_s = server.clock() + min(delay_s, timing.backoff_max_s)
        variant.failures += 1

    async def observe(self, states: Mapping[str, tuple[str, str]]) -> None:
        """Take over the states of the repository index; notice what others loaded or unloaded."""
        for variant in self._server.variants.values():
            state, reason = states.get(variant.model, ("", ""))
            # Where its unload did not happen it is there again, for whoever looks.
            variant.leaving = variant.leaving and state in ("LOADING", "UNLOADING")
            if variant.outlasted is not None:
                self._settle_outlasted(variant, state, reason)
            if variant.operation is not None:
                continue
            if variant.ready and state != "READY":
                await self._confirm_gone(variant)
            elif not variant.ready and state == "READY":
                variant.hold_until_s = variant.retry_s = 0.0  # whoever loaded it wants it there

    async def _confirm_gone(self, variant: Variant) -> None:
        """Ask once more: the index may be older than a load of ours that just ended."""
        server = self._server
        await self.verify(variant, deadline_s=server.timing.answer_s)
        if variant.ready or variant.operation is not None:
            return
        variant.config = None
        variant.hold_until_s = server.clock() + server.policy.stability.foreign_hold_s
        self._report(variant, "foreign change: it was unloaded")

    def _settle_outlasted(self, variant: Variant, state: str, reason: str) -> None:
        record = variant.outlasted
        if record is None or state in ("LOADING", "UNLOADING"):
            return
        variant.outlasted = variant.operation = None
        variant.config = None
        ready = state == "READY"
        variant.ready = False  # until it has been verified and proven like any other
        if not ready:
            self.distrust(variant, reason or "its load outlasted its deadline and came to nothing")
        self.emit(
            variant,
            record.kind,
            Outcome.DONE if ready else Outcome.FAILED,
            started_s=record.started_s,
            reason=f"{record.reason}; outlasted its deadline, settled by looking",
            error=None if ready else variant.error,
        )

    # -- doing -----------------------------------------------------------------------------

    def next_chore(self) -> Variant | None:
        """Return the variant that most needs something done; the fastest ones first."""
        server = self._server
        serving, now_s = server.serving(), server.clock()
        ranks: dict[str, tuple[int, int]] = {}
        for alias in filter(server.acts_on, server.aliases.values()):
            calm = 1 if alias.ready else 0
            for rank, name in enumerate(alias.order):
                ranks[name] = min(ranks.get(name, (9, 0)), (calm, rank))
        stranded = self._stranded(sorted(ranks, key=lambda name: ranks[name]))
        if stranded is not None:
            return stranded
        for name in sorted(ranks, key=lambda name: ranks[name]):
            variant = server.variants[name]
            # Where clients get no answer, a hold is no reason to let them wait.
            hold_s = 0.0 if ranks[name][0] == 0 else variant.hold_until_s
            if variant.operation is not None or now_s < max(variant.retry_s, hold_s):
                continue
            kept_out = server.loadable is not None and name not in server.loadable
            if kept_out and not variant.ready and name not in serving:
                continue
            if self._needs_work(variant, now_s, serving=name in serving):
                return variant
        # What the policy wants of queues can wait, and the ways out of an overload last.
        for name in sorted(ranks, key=lambda name: ranks[name], reverse=True):
            variant = server.variants[name]
            rests = now_s < max(variant.retry_s, variant.hold_until_s)
            if variant.operation is None and not rests and may_reload(server, variant):
                return variant
        return None

    def _stranded(self, names: list[str]) -> Variant | None:
        """Return the first on a GPU that is lost that can go elsewhere; it need not be asked."""
        server = self._server
        variants = (server.variants[name] for name in names)
        lost = (v for v in variants if v.operation is None and is_lost(server, v))
        return next((variant for variant in lost if may_reload(server, variant)), None)

    def _needs_work(self, variant: Variant, now_s: float, *, serving: bool) -> bool:
        if not variant.ready or not variant.proven:
            return True
        if serving:
            return False
        stale = now_s - variant.refreshed_s > self._server.timing.refresh_s
        return variant.reapply or not variant.warm or stale

    async def work(self, variant: Variant, *, reason: str = "kept warm") -> ActionRecord | None:
        """Bring a variant to ready, proven and (unless it serves) warm.

        Returns:
            What was done to it, also emitted; None: it was as it should be.
        """
        async with self.lock:
            if variant.operation is not None:
                return None
            cold = not variant.ready or variant.reapply or may_reload(self._server, variant)
            variant.operation = "load" if cold or not variant.warm else "refresh"
            started_s = self._server.clock()
            try:
                changed = await self._work(variant)
            except _ShortOfMemoryError as error:
                return self._put_off(variant, str(error), started_s, reason)
            except TritonError as error:
                return self._failed(variant, error, started_s, reason)
            finally:
                if variant.outlasted is None:
                    variant.operation = None
            variant.error, variant.failures, variant.short = None, 0, False
            if not changed:
                return None
            return self.emit(variant, "load", Outcome.DONE, started_s=started_s, reason=reason)

    async def _work(self, variant: Variant) -> bool:
        """Return whether anything was loaded."""
        server = self._server
        if not variant.ready:
            # Somebody may have loaded it already: then it is looked at and left as it is.
            await self.verify(variant, deadline_s=server.timing.answer_s)
        serving, fresh = variant.model in server.serving(), not variant.ready
        renewed = not fresh and may_reload(server, variant)
        before = variant.override, variant.reapply
        if (fresh or renewed) and prepare(server, variant, fresh=fresh):
            await asyncio.to_thread(server.memory.save)
        changed = fresh or (variant.reapply and (renewed or not serving))
        used = Before()
        why = short_of(server, variant) if changed else None
        if why is not None and renewed:
            changed = want_again(server, variant, *before)  # it is of use as it is
        elif why is not None:
            raise _ShortOfMemoryError(f"{variant.model} is not loaded: {why}")
        if changed:
            if fresh or renewed:
                used = await used_bytes(server, variant)
            await self._load(variant)
            # What it is in its folder is known now, and nobody waits for it yet.
            pending = fresh and is_pending(server, variant)
            pending = pending and short_of(server, variant, emptied=True) is None
            if pending and await nobody_uses(server, variant):
                set_up(server, variant)
                await asyncio.to_thread(server.memory.save)
                await self._empty(variant)
                await self._load(variant)
        if variant.config is None or server.clock() - variant.checked_s > server.timing.fresh_s:
            await self.verify(variant, deadline_s=server.timing.answer_s)
        self._check_suitable(variant)
        if not variant.proven:
            await self.prove(variant)
        await weigh(server, variant, used, fresh=fresh)
        return await self._settle(variant, fresh=fresh) or changed

    async def _settle(self, variant: Variant, *, fresh: bool) -> bool:
        """Load again until that reloads nothing; return whether anything was reloaded.

        `fresh`: nobody can use it yet but us.
        """
        server, changed = self._server, False
        for _ in range(_SETTLING_LOADS):
            if variant.model in server.serving():
                return changed  # never reload what serves
            if not variant.warm and short_of(server, variant) is not None:
                # The next load may reload it, and there is no room for two of it.
                if not fresh or not await nobody_uses(server, variant):
                    break
                fresh = False
                await self._empty(variant)
                await self._load(variant)
                await self.prove(variant)
            took_s = await self._load(variant)
            if took_s < server.timing.warm_load_s:
                variant.warm = True
                variant.refreshed_s = server.clock()
                return changed
            changed = True
            await self.prove(variant)
        # It can serve. Where its folder changes at every load, it is not reloaded for ever.
        variant.retry_s = server.clock() + server.timing.refresh_s
        return changed

    async def _empty(self, variant: Variant) -> None:
        """Unload a variant that is to be loaded again at once, and that nobody uses."""
        server = self._server
        variant.ready = variant.proven = False
        watch, started_s = server.free_memory, server.clock()
        free = {} if watch is None else watch.free_bytes(variant.model)
        await server.control.unload(variant.model, deadline_s=server.timing.answer_s)
        await await_gone(server, variant.model, free, started_s)

    @staticmethod
    def _check_suitable(variant: Variant) -> None:
        problems = shape.unsuitable(variant.config or {})
        if problems:
            raise TritonError(Fault.INVALID, "; ".join(map(str, problems)))

    async def _load(self, variant: Variant) -> float:
        """Load once; what the server then says of the variant is what is expected of it."""
        server = self._server
        override = variant.override
        started_s = server.clock()
        await server.control.load(
            variant.model,
            override=None if override is None else override.sent,
            deadline_s=server.timing.variant_load_s,
        )
        took_s = server.clock() - started_s
        reloaded = took_s >= server.timing.warm_load_s
        if reloaded or not variant.ready or variant.reapply:
            variant.proven = variant.warm = False
            seen = await server.control.model_config(
                variant.model, deadline_s=server.timing.answer_s
            )
            variant.config, variant.ready, variant.reapply = seen, True, False
            variant.leaving = False
            variant.checked_s = server.clock()
            overrides.confirm(self._server, variant, seen)
        return took_s

    def _put_off(self, variant: Variant, error: str, started_s: float, reason: str) -> ActionRecord:
        """Look again soon, as nothing was tried; say it once, as that may go on for long."""
        told, variant.short = variant.short, True
        variant.error = error
        variant.retry_s = self._server.clock() + self._server.timing.backoff_s
        record = self.emit if not told else self.record
        return record(
            variant, "load", Outcome.REFUSED, started_s=started_s, reason=reason, error=error
        )

    def _failed(
        self, variant: Variant, error: TritonError, started_s: float, reason: str
    ) -> ActionRecord:
        operation = variant.operation or "load"
        if error.fault is Fault.UNKNOWN and operation == "load":
            record = self.record(
                variant,
                "load",
                Outcome.UNKNOWN,
                started_s=started_s,
                reason=reason,
                error=str(error),
            )
            variant.outlasted = record  # the next look at the index settles it
            return record
        if error.fault is Fault.REFUSED:
            self._server.refused = str(error)
        override = variant.override
        awaited = variant.reapply or not variant.ready
        if error.fault is Fault.INVALID and awaited and override is not None and override.of_policy:
            take_back(self._server, variant, override, str(error))
        elif error.fault is not Fault.UNREACHABLE:
            self.distrust(variant, str(error))
        return self.emit(
            variant, "load", Outcome.FAILED, started_s=started_s, reason=reason, error=str(error)
        )

    # -- telling ---------------------------------------------------------------------------

    def _report(self, variant: Variant, reason: str) -> None:
        _LOG.warning("%s: %s", variant.model, reason)
        self.emit(variant, "adopt", Outcome.DONE, started_s=self._server.clock(), reason=reason)

    def emit(self, variant: Variant, kind: str, outcome: Outcome, **more: Any) -> ActionRecord:
        """Record what was done to a variant, and hand that over."""
        record = self.record(variant, kind, outcome, **more)
        self._server.emit(record)
        return record

    def record(
        self,
        variant: Variant,
        kind: str,
        outcome: Outcome,
        *,
        started_s: float,
        reason: str,
        error: str | None = None,
    ) -> ActionRecord:
        """Return the record of what was done to a variant."""
        users = [alias.name for alias in self._server.users(variant.model)]
        return ActionRecord(
            kind=kind,
            model=users[0] if users else variant.model,
            source=None,
            target=variant.model,
            outcome=outcome,
            started_s=started_s,
            switch_s=None,
            transaction_s=self._server.clock() - started_s,
            reason=reason,
            error=error,
        )
