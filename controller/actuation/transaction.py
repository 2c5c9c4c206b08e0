"""One change of where an alias points: check, send, prove, keep or put back.

Owns the order of the steps and what follows when one of them fails. It must not choose a target:
a decision or `controller.actuation.reconcile` does.

An alias is down as soon as Triton accepts a load for it that it then finds invalid, so everything
checkable is checked before, and the last good alias is put back at once after.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.actuation import alias as shape
from controller.actuation.client import Fault, TritonError
from controller.actuation.state import Alias, Server, Unsettled, Variant, why_not
from controller.actuation.warm import Warmer
from controller.ports import ActionRecord, Outcome

_LOG = logging.getLogger(__name__)
_REASSERTS = 3  # of one proof; the reconcile loop goes on after that
_LOST = (Fault.UNREACHABLE, Fault.UNKNOWN)


class RefusedError(Exception):
    """A check said no; nothing was sent."""


class _BrokenError(Exception):
    """The proof found something that must not stay."""


@dataclass(slots=True)
class Action:
    """One action under way."""

    kind: str
    alias: Alias
    source: str | None
    target: str
    reason: str
    started_s: float
    urgent: bool = False
    switch_s: float | None = None

    def record(
        self, outcome: Outcome, error: str | None = None, *, ended_s: float | None = None
    ) -> ActionRecord:
        """Return what there is to say about it now."""
        return ActionRecord(
            kind=self.kind,
            model=self.alias.name,
            source=self.source,
            target=self.target,
            outcome=outcome,
            started_s=self.started_s,
            switch_s=self.switch_s,
            transaction_s=None if ended_s is None else ended_s - self.started_s,
            reason=self.reason,
            error=error,
        )


class Transactions:
    """Carries out changes of aliases on one server, one at a time for each alias."""

    def __init__(self, server: Server, warmer: Warmer) -> None:
        self._server = server
        self._warmer = warmer
        self._running: set[asyncio.Task[Any]] = set()

    async def switch(
        self, alias: Alias, target: str, *, reason: str, urgent: bool = False, kind: str = "switch"
    ) -> ActionRecord:
        """Point an alias at another variant and return once it does; the proof follows.

        Returns within `Timing.patience_s`. The final record, with the proof, goes to
        `Server.on_record`, for every action that touched the server.

        Args:
            alias: what clients call.
            target: Triton model name.
            reason: for the record.
            urgent: an escape: does not wait for a proof under way, nor for its target's.
            kind: for the record.
        """
        server = self._server
        action = Action(kind, alias, alias.target, target, reason, server.clock(), urgent)
        problem = self._precheck(alias, target, urgent=urgent)
        if problem is not None:
            return action.record(*problem)
        if alias.proof is not None:
            alias.proof.cancel()
            alias.proof = None
        alias.switching, alias.aimed_at = True, target
        task = self._spawn(self._run(action))
        # Shielded by `wait`: neither our patience nor a caller's end takes back what was sent.
        done, _ = await asyncio.wait({task}, timeout=server.timing.patience_s)
        if done and not task.cancelled():
            record: ActionRecord = task.result()
            return record
        return action.record(Outcome.UNKNOWN, "Triton has not answered yet; it is watched")

    async def put(
        self, alias: Alias, config: dict[str, Any], *, kind: str, reason: str
    ) -> ActionRecord:
        """Send a config that was checked already, where clients would otherwise get no answer.

        What stands there is of no use, so a failure puts nothing back: the caller tries again.
        """
        target = shape.target_of(config) or ""
        action = Action(kind, alias, alias.target, target, reason, self._server.clock())
        if alias.switching:
            return action.record(Outcome.BUSY, "an operation on the alias is under way")
        if alias.proof is not None:
            alias.proof.cancel()
            alias.proof = None
        alias.switching, alias.aimed_at = True, target
        try:
            return await self._send(action, config, None)
        finally:
            alias.switching, alias.aimed_at = False, None

    def _precheck(
        self, alias: Alias, target: str, *, urgent: bool
    ) -> tuple[Outcome, str | None] | None:
        """Check from memory alone."""
        variant = self._server.variants.get(target)
        problem: tuple[Outcome, str] | None = None
        if alias.switching:
            problem = Outcome.BUSY, "an operation on the alias is under way"
        elif not urgent and alias.unsettled is not None:
            problem = Outcome.BUSY, "the outcome of the last operation is not known yet"
        elif not urgent and alias.proof is not None:
            problem = Outcome.BUSY, "the last switch is being proven"
        elif alias.config is None:
            problem = Outcome.REFUSED, f"{alias.name} is not there yet"
        elif variant is None:
            problem = Outcome.REFUSED, f"{target} is not one of its variants"
        elif variant.error is None and variant.operation not in (None, "refresh"):
            problem = Outcome.BUSY, f"{target}: {variant.operation} is under way"
        elif (why := why_not(alias, variant)) is not None:
            problem = Outcome.REFUSED, why
        return problem

    async def _run(self, action: Action) -> ActionRecord:
        alias, server = action.alias, self._server
        before = alias.config
        try:
            try:
                await server.step(alias.name, "check")
                await self._check(action)
                config = alias.config or {}
            except RefusedError as error:
                return action.record(Outcome.REFUSED, str(error))
            except TritonError as error:
                return action.record(Outcome.REFUSED, f"not checked, so not switched: {error}")
            except Exception as error:  # noqa: BLE001 - whatever happens: nothing was sent yet
                _LOG.exception("%s: a check failed", alias.name)
                return action.record(Outcome.REFUSED, f"{type(error).__name__}: {error}")
            return await self._send(
                action, shape.point(config, action.target, self._sign()), before
            )
        finally:
            alias.switching, alias.aimed_at = False, None

    def _sign(self) -> shape.Marker:
        return self._server.next_marker()

    async def _check(self, action: Action) -> None:
        """Look at the target again where knowledge is not fresh, and prove it if need be."""
        server, alias = self._server, action.alias
        variant, timing = server.variants[action.target], server.timing
        if server.clock() - variant.checked_s > timing.fresh_s:
            wait_s = timing.urgent_check_s if action.urgent else timing.answer_s
            try:
                await self._warmer.verify(variant, deadline_s=wait_s)
            except TritonError as error:
                if not (action.urgent and error.fault is Fault.UNKNOWN):
                    raise
            why = why_not(alias, variant)
            if why is not None:
                raise RefusedError(why)
        if not variant.proven and not action.urgent:
            await server.step(alias.name, "probe")
            await self._warmer.prove(variant)

    async def _send(
        self, action: Action, config: dict[str, Any], before: dict[str, Any] | None
    ) -> ActionRecord:
        """Send the alias's config, and start the proof or put back what was there."""
        alias, server = action.alias, self._server
        sent = False
        try:
            await server.step(alias.name, "send")
            sent = True
            action.switch_s = await self.write(alias, config)
            await server.step(alias.name, "sent")
        except TritonError as error:
            if error.may_have_happened:
                return self._lose(action, config, error)
            if error.fault is Fault.UNREACHABLE:
                return action.record(Outcome.REFUSED, f"not sent: {error}")
            return await self._put_back(action, before, str(error))
        except asyncio.CancelledError:
            if sent:
                self._lose(action, config, TritonError(Fault.UNKNOWN, "cancelled"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever happens: clients come first
            _LOG.exception("%s: a switch failed", alias.name)
            return await self._put_back(action, before, f"{type(error).__name__}: {error}")
        variant = server.variants.get(action.target)
        if variant is not None and action.switch_s > server.timing.warm_load_s:
            variant.warm = False
        alias.proof = self._spawn(self._prove(action, before))
        return action.record(Outcome.DONE)

    async def write(self, alias: Alias, config: dict[str, Any]) -> float:
        """Send one config of an alias; return the seconds it took. Raises TritonError."""
        server = self._server
        alias.writes += 1
        if alias.unsettled is not None:
            server.emit(alias.unsettled.record)
            alias.unsettled = (
                None  # Triton works off loads of one name in order: this one ends last
            )
        started_s = server.clock()
        try:
            await server.control.load_alias(
                config, virtual=alias.virtual, deadline_s=server.timing.alias_load_s
            )
        except TritonError as error:
            alias.ready = None if error.fault in _LOST else False
            raise
        ended_s = server.clock()
        alias.writes += 1
        if alias.target != shape.target_of(config) or not alias.ready:
            alias.since_s = ended_s
        alias.config, alias.target = config, shape.target_of(config)
        alias.marker, alias.ready, alias.known = shape.marker_of(config), True, True
        alias.written_s, alias.successes, alias.failed = ended_s, 0, 0
        return ended_s - started_s

    def _lose(self, action: Action, config: Mapping[str, Any], error: TritonError) -> ActionRecord:
        """Leave an operation to be settled by looking."""
        record, timing = action.record(Outcome.UNKNOWN, str(error)), self._server.timing
        lost_s = timing.lost_s if error.fault is Fault.UNREACHABLE else timing.settle_s
        action.alias.unsettled = Unsettled(record, config, self._server.clock() + lost_s)
        return record

    async def _put_back(
        self, action: Action, before: dict[str, Any] | None, error: str
    ) -> ActionRecord:
        """Undo an action and say how that went."""
        if before is None and action.alias.ready:
            record = action.record(Outcome.FAILED, error, ended_s=self._server.clock())
            self._server.emit(record)
            return record
        restored = await self.restore(action.alias, before, avoid=action.target)
        outcome = Outcome.ROLLED_BACK if restored else Outcome.FAILED
        record = action.record(outcome, error, ended_s=self._server.clock())
        self._server.emit(record)
        if not restored:
            _LOG.error("%s is DOWN and could not be put back: %s", action.alias.name, error)
        return record

    async def restore(
        self, alias: Alias, before: dict[str, Any] | None, *, avoid: str | None = None
    ) -> bool:
        """Put the last good alias back, or else any other that fits; tell whether one serves."""
        if before is None:
            return False
        server = self._server
        with contextlib.suppress(Exception):  # a fault injected here must not keep clients waiting
            await server.step(alias.name, "restore")
        good = shape.target_of(before)
        others = [
            name
            for name in alias.order
            if name not in (good, avoid) and why_not(alias, server.variants[name]) is None
        ]
        for name in [good, *others]:
            if name is None:
                continue
            try:
                await self.write(alias, shape.point(before, name, self._sign()))
            except TritonError as error:
                _LOG.warning("%s could not be put back on %s: %s", alias.name, name, error)
                if error.fault in _LOST:
                    return False
            else:
                return True
        return False

    async def _prove(self, action: Action, before: dict[str, Any] | None) -> None:
        """Read back, look at the target, ask the alias; keep the switch or undo it."""
        server, alias = self._server, action.alias
        note: str | None = None
        try:
            note = await self._proof_steps(action)
        except asyncio.CancelledError:
            server.emit(action.record(Outcome.DONE, "its proof was cut short by what came next"))
            raise
        except TritonError as error:
            if error.fault in (*_LOST, Fault.OVERLOADED):
                note = f"not proven: {error}"  # says nothing against the alias
            else:
                await self._undo(action, before, str(error))
                return
        except _BrokenError as error:
            await self._undo(action, before, str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever happens: clients come first
            _LOG.exception("%s: a proof failed", alias.name)
            await self._undo(action, before, f"{type(error).__name__}: {error}")
            return
        finally:
            if alias.proof is asyncio.current_task():
                alias.proof = None
        if note is None:
            server.memory.remember(alias.name, action.target)
        server.emit(action.record(Outcome.DONE, note, ended_s=server.clock()))

    async def _proof_steps(self, action: Action) -> str | None:
        """Raise for what must not stay; return a note for what was not seen."""
        server, alias = self._server, action.alias
        control, answer_s = server.control, server.timing.answer_s
        for attempt in range(_REASSERTS + 1):
            await server.step(alias.name, "read_back")
            seen = await control.model_config(alias.name, deadline_s=answer_s)
            marker = shape.marker_of(seen)
            if shape.target_of(seen) == action.target and marker == alias.marker:
                break
            if marker is None or marker.owner != server.owner or attempt == _REASSERTS:
                return "the alias was changed by somebody else meanwhile"
            alias.switching = True
            try:
                again = shape.point(alias.config or seen, action.target, self._sign())
                await self.write(alias, again)
            finally:
                alias.switching = False
        await server.step(alias.name, "target_config")
        # A foreign target that is pointed at again is none of the policy's variants.
        variant = server.variants.get(action.target) or Variant(action.target)
        expected = variant.config
        await self._warmer.verify(variant, deadline_s=answer_s)
        if variant.reapply:
            raise _BrokenError(
                f"{variant.model}: its files changed, so Triton reloaded it without its override; "
                "the override is put back while it is idle"
            )
        await server.step(alias.name, "request")
        try:
            await control.prove(seen, action.target, deadline_s=server.timing.probe_s)
        except TritonError as error:
            if error.fault is Fault.INVALID:
                self._warmer.distrust(variant, str(error))
            raise
        variant.proven = True
        changed = expected is not None and variant.config != expected
        return f"{variant.model} has a new config" if changed else None

    async def _undo(self, action: Action, before: dict[str, Any] | None, error: str) -> None:
        alias = action.alias
        if alias.switching:  # somebody else acts on it already, and will prove what they did
            self._server.emit(action.record(Outcome.UNKNOWN, error))
            return
        alias.switching = True
        try:
            await self._put_back(action, before, error)
        finally:
            alias.switching = False

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def settle(self, timeout_s: float) -> None:
        """Let what is under way end, within a time; then cut it off."""
        if self._running:
            _, pending = await asyncio.wait(self._running, timeout=timeout_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=1.0)
