"""The loop that keeps one server as the policy wants it.

Owns the order of things: the lease, the look, what the server allows, the variants, the aliases.
It must not know what any of these steps does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from controller.actuation.capability import Capability, refusal, try_out
from controller.actuation.client import Fault, TritonError
from controller.actuation.idle import IdleOperations
from controller.actuation.lease import Lease
from controller.actuation.reconcile import Reconciler
from controller.actuation.room import look_at_host
from controller.actuation.state import Alias, Server
from controller.actuation.transaction import Transactions
from controller.actuation.warm import Warmer
from controller.policy.model import Policy
from controller.ports import Outcome

_LOG = logging.getLogger(__name__)
_ERROR_PAUSE_S = 1.0
_USED_S = 60.0  # that a variant is left alone that could not be unloaded
_RETRY_S = 30.0  # before a server that did not let us act is tried again


class Keeper:
    """Looks after one server until it is stopped."""

    def __init__(self, server: Server, *, blocked: str | None) -> None:
        self.server = server
        self.warmer = Warmer(server)
        self.transactions = Transactions(server, self.warmer)
        self.reconciler = Reconciler(server, self.transactions, self.warmer)
        self.idle = IdleOperations(server, self.warmer)
        self.lease = Lease(server.policy.triton.grpc)
        self._blocked = blocked
        self._other: str | None = None  # who has the lease
        self._tried: Capability | None = None
        self._tried_s = float("-inf")
        self._indexed_s = float("-inf")
        self._turn = 0
        self._calm = False  # at the last look
        self._wake = asyncio.Event()
        self._chores: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def capability(self) -> Capability:
        """What can be done on the server now; its text is for people."""
        server = self.server
        why = None
        if not server.policy.acts:
            why = "the policy says so"
        elif self._blocked is not None:
            why = self._blocked
        elif self._other is not None:
            why = f"{self._other} has the lease on {server.policy.triton.grpc}"
        elif server.refused is not None:
            why = refusal(server.refused)
        elif self._tried is None:
            why = "waiting for Triton"
        else:
            return self._tried
        return Capability(can_act=False, why=why)

    @property
    def _may_touch(self) -> bool:
        """Whether variants may be loaded, which comes before an alias can be tried."""
        free = self._blocked is None and self._other is None and self.server.refused is None
        return free and self.server.policy.acts

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.create_task(self._run(), name="actuation")

    def set_policy(self, policy: Policy) -> None:
        """Look after another policy's aliases and variants from now on."""
        before = {name for name, variant in self.server.variants.items() if variant.ready}
        self.server.set_policy(policy)
        self.server.control.set_places(policy.triton)
        for name in sorted(before - self.server.variants.keys()):
            # Others may use it, so it is not ours to unload.
            _LOG.warning("%s is in the policy no more and stays loaded", name)
        for alias in self.server.aliases.values():
            self.reconciler.renew_promise(alias)
        self.wake()

    def wake(self) -> None:
        """Look now instead of at the next turn."""
        self._wake.set()

    def heed(self) -> None:
        """Take note that requests were counted anew: look now if they show that something happened.

        What they would show is looked at less often meanwhile.
        """
        if self._calm and not self._is_calm():
            self.wake()

    def _is_calm(self) -> bool:
        return all(map(self.reconciler.is_calm, self.server.aliases.values()))

    async def pause(self, settle_s: float) -> None:
        """End the loop and let actions end; a load that was sent goes on in the server."""
        for task in (self._loop, self._chores):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self.transactions.settle(settle_s)

    async def _run(self) -> None:
        server = self.server
        while True:
            self._wake.clear()
            self._calm = False
            try:
                await self._turn_once()
                self._calm = self._is_calm()
                pause_s = server.timing.calm_look_s if self._calm else server.timing.look_s
            except TritonError as error:
                self._missed(error)
                pause_s = server.timing.look_s
            except Exception:  # noqa: BLE001 - whatever happens: the next look may go well
                _LOG.exception("the look at the server failed")
                pause_s = _ERROR_PAUSE_S
            self._start_chores()
            if server.memory.unsaved and (self._saving is None or self._saving.done()):
                # A disk that hangs holds up this one task, not the loop.
                self._saving = asyncio.create_task(asyncio.to_thread(server.memory.save))
            with contextlib.suppress(TimeoutError):  # wait_for may lose a cancellation on 3.11
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _turn_once(self) -> None:
        server = self.server
        if server.policy.acts and self._blocked is None:
            self._other = self.lease.acquire()
        if not server.reachable:
            await server.control.server_live(deadline_s=server.timing.answer_s)
            await self._look_at_variants(everything=True)
            _LOG.info("Triton at %s answers", server.control.address)
            server.reachable, server.refused = True, None
        elif server.clock() - self._indexed_s >= server.timing.index_s:
            await self._look_at_variants(everything=False)
        await look_at_host(server)
        if self._may_touch:
            await self._try_out()
        for alias in server.aliases.values():
            await self._look_at(alias)

    async def _look_at(self, alias: Alias) -> None:
        act = self.capability.can_act and self.server.acts_on(alias)
        tried = self._tried
        if tried is not None and tried.can_act and not tried.virtual:
            alias.virtual = False
        try:
            await self.reconciler.look(alias, act=act)
            await self.reconciler.ask(alias, act=act)
        except TritonError as error:
            if error.fault is Fault.UNREACHABLE:
                raise
            _LOG.debug("%s was not looked at: %s", alias.name, error)

    async def _look_at_variants(self, *, everything: bool) -> None:
        """Look at the index, and at the configs of some variants or of all."""
        server, answer_s = self.server, self.server.timing.answer_s
        self._indexed_s = server.clock()
        try:
            states = await server.control.index(deadline_s=answer_s)
        except TritonError as error:
            if error.fault is Fault.REFUSED:
                server.refused = str(error)
            elif error.fault is Fault.UNREACHABLE:
                raise
            return
        before = [variant for variant in server.variants.values() if variant.ready]
        if before and all(states.get(v.model, ("", ""))[0] != "READY" for v in before):
            self._forget()  # all at once: a restart too quick to be seen
        await self.warmer.observe(states)
        loaded = [v for v in server.variants.values() if states.get(v.model, ("",))[0] == "READY"]
        if not everything and loaded:
            self._turn += 1
            turn = loaded[self._turn % len(loaded)]
            serving = server.serving()
            loaded = [v for v in loaded if v is turn or v.model in serving or not v.ready]
        limited = server.loadable is not None  # where chores do not look at what is kept out
        ours = server.acted_on()  # nor at what is only advised on
        for variant in loaded:
            unseen = everything or limited or variant.model not in ours
            new = not variant.ready and unseen
            if variant.operation is None and (variant.ready or new):
                await self.warmer.verify(variant, deadline_s=answer_s)

    async def _try_out(self) -> None:
        server = self.server
        stale = server.clock() - self._tried_s > _RETRY_S
        if self._tried is not None and (self._tried.can_act or not stale):
            return
        proven = [v.config for v in server.variants.values() if v.proven and v.config is not None]
        if not proven:
            return
        self._tried = await try_out(server, proven)
        self._tried_s = server.clock()
        level = logging.INFO if self._tried.can_act else logging.WARNING
        _LOG.log(level, "Triton at %s: %s", server.control.address, self._tried)

    def _missed(self, error: TritonError) -> None:
        server = self.server
        if error.fault is not Fault.UNREACHABLE:
            _LOG.debug("not looked: %s", error)
            return
        if server.reachable is not False:
            _LOG.warning("Triton at %s: %s", server.control.address, error)
        server.reachable = False
        self._forget()

    def _forget(self) -> None:
        """Know nothing of a server that may have been restarted."""
        for variant in self.server.variants.values():
            variant.forget()
        for alias in self.server.aliases.values():
            alias.known, alias.ready, alias.heals, alias.heal_after_s = False, None, 0, 0.0
        if self._tried is not None and not self._tried.can_act:
            self._tried = None  # it may have other flags now

    async def _unload_surplus(self) -> None:
        name, self.server.surplus = self.server.surplus, None
        variant = None if name is None else self.server.variants.get(name)
        if variant is None or not variant.ready or variant.model in self.server.serving():
            return
        try:
            record = await self.idle.unload(
                variant, reason="others are worth more of the memory budget", hold_until_s=0.0
            )
            if record.outcome is Outcome.REFUSED:
                variant.used_until_s = self.server.clock() + _USED_S
                _LOG.warning("%s stays loaded: %s", name, record.error)
        except Exception:  # noqa: BLE001 - the next plan asks again
            _LOG.exception("%s could not be unloaded", name)

    # -- the variants, one after the other, beside the loop ----------------------------------

    def _start_chores(self) -> None:
        busy = self._chores is not None and not self._chores.done()
        if self.server.reachable and self._may_touch and not busy:
            self._chores = asyncio.create_task(self._do_chores(), name="actuation chores")

    async def _do_chores(self) -> None:
        while self._may_touch and self.server.reachable:
            await self._unload_surplus()
            variant = self.warmer.next_chore()
            if variant is None:
                return
            try:
                await self.warmer.work(variant)
            except Exception:  # noqa: BLE001 - whatever happens: the others are looked after
                _LOG.exception("%s could not be looked after", variant.model)
                self.warmer.distrust(variant, "an error of the governor's own; see its log")
            self._wake.set()
