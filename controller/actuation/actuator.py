"""The actuator: what the daemon starts, asks and tells to switch.

Owns the loop that keeps one server as the policy wants it, and the port by which decisions come
in. It must not decide which variant is best. Whatever the server does, nothing here raises into
the daemon, and nothing here waits for the server but for `Timing.patience_s` at most.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.actuation import handback
from controller.actuation.capability import Capability
from controller.actuation.client import Proof, connect
from controller.actuation.instances import instance_readings
from controller.actuation.keeper import Keeper
from controller.actuation.memory import MemoryWatch
from controller.actuation.places import place_of
from controller.actuation.placing import next_place
from controller.actuation.remembered import Memory
from controller.actuation.room import memory_reading, standings
from controller.actuation.state import Alias, Counted, Server, Variant
from controller.actuation.timing import Timing
from controller.actuation.views import alias_readings, operations, variants_view
from controller.planning.decision import Decision
from controller.planning.placing import Standing
from controller.planning.pool import PoolPlan
from controller.policy.model import OnStop, Policy
from controller.ports import ActionRecord, Outcome
from controller.telemetry.observation import Instances, MemoryReading, ModelReading

_STOPPED = Capability(can_act=False, why="not running")


class Actuator:
    """Acts on one Triton server; the `DecisionSink` of the daemon.

    Args:
        policy: what the operator wants.
        clock: monotonic seconds.
        on_record: gets every action that touched the server, once, when it has ended.
        state_file: what is remembered across a death; None: nothing is.
        timing: waiting times.
        free_memory: says whether there is memory for a load; None: nobody is asked.
        counted: when a model's requests were last counted, and the totals; None: Triton is asked.
        on_step: called with alias and step at each boundary of a transaction; for tests.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_record: Callable[[ActionRecord], None],
        state_file: Path | None = None,
        timing: Timing | None = None,
        free_memory: MemoryWatch | None = None,
        counted: Counted | None = None,
        on_step: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._on_record = on_record
        self._memory = Memory(state_file)
        self._timing = timing or Timing()
        self._free_memory = free_memory
        if free_memory is not None:
            free_memory.measured = self._memory.needs
        self._moved_s = clock()  # when an operation on a variant was last under way
        self._counted = counted
        self._on_step = on_step
        self._keeper: Keeper | None = None
        self._stopping = False
        self._changing = asyncio.Lock()  # policies are followed one after the other
        self._orders: dict[str, tuple[str, ...]] = {}
        self._released = self._memory.released

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to look after the server, in the background: it need not be there yet."""
        control, problem = connect(self._policy.triton)
        server = Server(
            policy=self._policy,
            control=control,
            owner=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
            clock=self._clock,
            timing=self._timing,
            memory=self._memory,
            on_record=self._on_record,
            on_step=self._on_step,
            free_memory=self._free_memory,
            counted=self._counted,
            released=self._released,
        )
        for model, order in self._orders.items():
            server.aliases[model].order = order
        if self._free_memory is not None:
            self._free_memory.placed = lambda name: place_of(server.variants.get(name))
            self._free_memory.aims = lambda name: next_place(server, name)
        self._stopping = False
        self._keeper = Keeper(server, blocked=problem)
        self._keeper.start()

    async def set_policy(self, policy: Policy) -> None:
        """Want something else from now on; another address means another server.

        An alias that is no longer in the policy stays on the server as it is.
        """
        async with self._changing:
            if not self._stopping:
                await self._follow(policy)

    async def _follow(self, policy: Policy) -> None:
        before, self._policy = self._policy, policy
        if self._free_memory is not None:
            self._free_memory.set_policy(policy)
        wanted = {model.name: {v.model for v in model.variants} for model in policy.models}
        self._orders = {k: v for k, v in self._orders.items() if set(v) == wanted.get(k)}
        keeper = self._keeper
        if keeper is None:
            return
        # A key that was refused may have been renewed in its file, so that is a new beginning.
        if policy.triton == before.triton and keeper.server.refused is None:
            keeper.set_policy(policy)
            return
        await self._end(keeper)
        await self.start()

    async def stop(self) -> None:
        """Finish what is under way, do what the policy wants at a stop, and let go."""
        self._stopping = True
        async with self._changing:
            await self._let_go()

    async def _let_go(self) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        await keeper.pause(self._timing.stop_s)
        if self._policy.on_stop is OnStop.REVERT and keeper.capability.can_act:
            for alias in keeper.server.aliases.values():
                await handback.revert(keeper, alias)
        await self._end(keeper)

    async def _end(self, keeper: Keeper) -> None:
        await keeper.pause(self._timing.stop_s)
        if self._memory.unsaved:
            await asyncio.wait(
                {asyncio.create_task(asyncio.to_thread(self._memory.save))},
                timeout=self._timing.stop_s,
            )
        await keeper.server.control.close()
        keeper.lease.release()
        self._keeper = None

    # -- the port --------------------------------------------------------------------------

    async def apply(self, decision: Decision) -> ActionRecord:
        """Carry a decision out: return as soon as the alias's load call has returned.

        The proof follows in the background, and the final record goes to `on_record`. Never
        raises for what a server can do wrong.
        """
        now_s = self._clock()
        keeper = self._keeper
        alias = None if keeper is None else keeper.server.aliases.get(decision.model)

        def ended(outcome: Outcome, error: str | None = None) -> ActionRecord:
            return ActionRecord(
                kind="switch",
                model=decision.model,
                source=None if alias is None else alias.target,
                target=target,
                outcome=outcome,
                started_s=now_s,
                switch_s=None,
                transaction_s=None,
                reason=decision.reason.value,
                error=error,
            )

        target: str | None = None
        if not decision.changes or decision.target is None:
            return ended(Outcome.NOTHING_TO_DO)
        if keeper is None or alias is None or self._stopping:
            return ended(Outcome.REFUSED, "not running, or not a model of this policy")
        names = {variant.name: variant.model for variant in alias.policy.variants}
        target = names.get(decision.target)
        if target is None:
            return ended(Outcome.REFUSED, f"{decision.target} is no variant of {alias.name}")
        if not keeper.capability.can_act:
            return ended(Outcome.REFUSED, str(keeper.capability))
        if not keeper.server.acts_on(alias):
            return ended(Outcome.REFUSED, f"{alias.name} is only advised on, or released")
        if alias.held is not None and now_s < alias.held_until_s:
            return ended(Outcome.REFUSED, f"held: {alias.held}")
        if alias.target == target and alias.ready:
            return ended(Outcome.NOTHING_TO_DO)
        return await keeper.transactions.switch(
            alias, target, reason=decision.reason.value, urgent=decision.urgent
        )

    def heed(self) -> None:
        """Take note that what `counted` tells is new."""
        if self._keeper is not None:
            self._keeper.heed()

    # -- what is known ---------------------------------------------------------------------

    @property
    def capability(self) -> Capability:
        """What can be done on the server now; its text is for people."""
        return _STOPPED if self._keeper is None else self._keeper.capability

    def readings(self, now_s: float) -> dict[str, ModelReading]:
        """Return each alias as it is known at this moment, by its name."""
        return {} if self._keeper is None else alias_readings(self._keeper.server, now_s)

    def describe(self) -> dict[str, Any]:
        """Return, JSON-ready, what people want to know of the server and its variants."""
        keeper = self._keeper
        if keeper is None:
            return {"capability": str(self.capability), "reachable": None, "variants": {}}
        server = keeper.server
        return {
            "capability": str(self.capability),
            "owner": server.owner,
            "lease": keeper.lease.held,
            "reachable": server.reachable,
            "variants": variants_view(server),
        }

    # -- orders ----------------------------------------------------------------------------

    def set_speed_order(self, model: str, order: Sequence[str]) -> None:
        """Tell which variants are the fastest, for what is loaded first and for emergencies.

        Args:
            model: the policy's model.
            order: the operator's names of all its variants, the fastest first.

        Raises:
            KeyError: the policy has no such model or variant.
            ValueError: a variant is missing.
        """
        wanted = self._policy.model(model)
        models = tuple(wanted.variant(name).model for name in order)
        if set(models) != {variant.model for variant in wanted.variants}:
            raise ValueError(f"{model}: the order must name every variant")
        self._orders[model] = models
        alias = None if self._keeper is None else self._keeper.server.aliases.get(model)
        if alias is not None:
            alias.order = models

    def resume(self, model: str) -> None:
        """Act again on a model that is held after somebody else's change. Raises KeyError."""
        if self._keeper is not None:
            alias = self._keeper.server.aliases[model]
            self._keeper.reconciler.release(alias)
            for name in alias.order:
                self._keeper.server.variants[name].hold_until_s = 0.0
            self._keeper.wake()

    def leave(self, models: frozenset[str]) -> None:
        """Look on at these models only, from now on; look after all others."""
        self._released = models
        self._memory.leave(models)
        if self._keeper is not None:
            self._keeper.server.released = models

    @property
    def left(self) -> frozenset[str]:
        """Return the models that are only looked on at."""
        return self._released

    def at_hand(self, model: str) -> tuple[Keeper, Alias] | None:
        """Return an alias for `controller.actuation.handback`; None: there is no server yet.

        Raises KeyError.
        """
        keeper = self._keeper
        return None if keeper is None else (keeper, keeper.server.aliases[model])

    async def load(self, model: str, *, override: Mapping[str, Any] | None = None) -> ActionRecord:
        """Load a variant, prove it and make it warm; or give an idle one another config.

        Args:
            model: Triton model name of a variant.
            override: `instance_group`, `dynamic_batching` or `max_batch_size`; {}: as on disk.
        """
        keeper, variant = self._find(model)
        if keeper is None or variant is None:
            return self._plain("load", model, Outcome.REFUSED, str(self.capability))
        if override is not None:
            return await keeper.idle.override(variant, override)
        variant.hold_until_s = variant.retry_s = 0.0
        record = await keeper.warmer.work(variant, reason="asked for")
        return record or self._plain("load", model, Outcome.NOTHING_TO_DO, None)

    async def unload(self, model: str) -> ActionRecord:
        """Unload a variant that serves nobody, and wait until its memory is free."""
        keeper, variant = self._find(model)
        if keeper is None or variant is None:
            return self._plain("unload", model, Outcome.REFUSED, str(self.capability))
        return await keeper.idle.unload(variant, reason="asked for")

    async def probe(self, model: str, rows: int) -> None:
        """Send one synthetic request of so many rows to a variant, for what it teaches.

        Raises:
            TritonError: no answer came.
        """
        server = None if self._keeper is None else self._keeper.server
        variant = None if server is None else server.variants.get(model)
        if server is not None and variant is not None and variant.config and variant.ready:
            deadline_s = self._timing.probe_s
            await server.control.probe(variant.config, deadline_s=deadline_s, rows=rows)

    def proofs(self) -> tuple[Proof, ...]:
        """Return the requests that were sent since the last call to prove models."""
        return () if self._keeper is None else self._keeper.server.control.take_proofs()

    # -- the warm pool -------------------------------------------------------------------------

    def memory(self) -> MemoryReading | None:
        """Return the memory budget and what is under it; None: there is none, or no server yet."""
        keeper, watch = self._keeper, self._free_memory
        if keeper is None or watch is None or not watch.is_limited:
            return None
        held, now_s = set(keeper.server.held()), self._clock()
        if any(v.operation is not None or v.leaving for v in keeper.server.variants.values()):
            self._moved_s = now_s
        elif now_s - self._moved_s > 2.0 * self._timing.reading_s:
            watch.look(held)
        budget = watch.budget()
        return memory_reading(keeper.server, watch, budget, held, now_s)

    def operations(self) -> dict[str, str]:
        """Return what is under way on variants: load, reload or unload, by Triton's name."""
        return {} if self._keeper is None else operations(self._keeper.server)

    def placement(self) -> dict[str, tuple[int, ...]]:
        """Return the GPUs of each variant that was ever loaded; -1 is the host's processors."""
        variants = {} if self._keeper is None else self._keeper.server.variants
        placed = {name: place_of(variant) for name, variant in variants.items()}
        return {name: gpus for name, gpus in placed.items() if gpus}

    def standings(self) -> dict[str, Standing]:
        """Return how every variant stands, by Triton's name; {}: no server was looked at yet."""
        return {} if self._keeper is None else standings(self._keeper.server)

    def avoid(self, gpus: frozenset[int]) -> None:
        """Load nothing on some GPUs: they are lost, or were until a moment ago."""
        if self._free_memory is not None:
            self._free_memory.avoided = gpus

    def place(self, aims: Mapping[str, tuple[int, ...]]) -> None:
        """Put the instances of some variants on other GPUs, each when that disturbs nobody.

        Args:
            aims: by Triton's name, of variants that the policy lets be placed.
        """
        if self._keeper is not None:
            self._keeper.server.aims = dict(aims)

    def instances(self) -> dict[str, Instances]:
        """Return how many instances each loaded variant has, by Triton's name."""
        return {} if self._keeper is None else instance_readings(self._keeper.server)

    def set_instances(self, wanted: Mapping[str, int]) -> None:
        """Give some variants another number of instances, when they are idle and all is calm."""
        known = {} if self._keeper is None else self._keeper.server.variants
        for name in wanted.keys() & known.keys():
            known[name].instances = wanted[name]

    def set_pool(self, plan: PoolPlan) -> None:
        """Load what a plan allows, and unload what it says, when nothing else is under way."""
        if self._keeper is not None and self._keeper.server.loadable is not None:
            # A dispatcher is in no plan: nothing is bound late without it, and it takes little.
            own = self._keeper.server.dispatchers
            self._keeper.server.loadable = frozenset(plan.load) | own
            self._keeper.server.surplus = plan.unload

    def _find(self, model: str) -> tuple[Keeper | None, Variant | None]:
        """Return what is needed to act on a variant. Raises KeyError if it is none."""
        keeper = self._keeper
        if keeper is None or not keeper.capability.can_act:
            return None, None
        return keeper, keeper.server.variants[model]

    def _plain(self, kind: str, model: str, outcome: Outcome, error: str | None) -> ActionRecord:
        reason, now_s = "asked for", self._clock()
        return ActionRecord(kind, model, None, model, outcome, now_s, None, None, reason, error)
