"""The dispatchers of all models: asked a few times a second, beside the ticks.

Owns their tasks and what the ticks see of them. It must not make plans: the core does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from controller.actuation.alias import max_batch
from controller.actuation.dispatching import Dispatching, renew
from controller.dispatch.plan import Plan
from controller.policy.model import DISPATCHER, Policy
from controller.telemetry.observation import BatchSample, Dispatched, VariantReading

if TYPE_CHECKING:
    from controller.actuation.actuator import Actuator

_LOG = logging.getLogger("governor")

_EVERY_S: Final = 0.1


class Dispatchers:
    """Keeps every dispatcher of a policy informed."""

    def __init__(self, policy: Policy, actuator: Actuator) -> None:
        self._actuator = actuator
        self._of: dict[str, Dispatching] = {}
        self._task: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}  # by model: one never waits for another
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Talk to the dispatchers of another policy; what is known of the same ones stays."""
        before, self._of = self._of, {}
        for model in policy.models:
            if model.dispatcher is None:
                continue
            kept = before.get(model.name)
            if kept is not None and kept.policy.dispatcher == model.dispatcher:
                kept.policy = model
                self._of[model.name] = kept
            else:
                self._of[model.name] = Dispatching(
                    model, clock=time.monotonic, serial=lambda: time.time_ns() // 1000
                )
        self._names = {one.model: name for name, one in self._of.items()}

    def start(self) -> None:
        """Begin to talk to them."""
        self._task = asyncio.create_task(self._talk(), name="dispatchers")

    async def stop(self) -> None:
        """Talk to nobody any more; they go on by their last plans."""
        if self._task is not None:
            tasks = {self._task, *self._asking.values()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _talk(self) -> None:
        while True:
            for name, one in self._of.items():
                asking = self._asking.get(name)
                if asking is None or asking.done():
                    self._asking[name] = asyncio.create_task(self._ask(one))
            await asyncio.sleep(_EVERY_S)

    async def _ask(self, one: Dispatching) -> None:
        try:
            at_hand = self._actuator.at_hand(one.policy.name)
        except KeyError:  # a new policy, which the actuator does not follow yet
            return
        if at_hand is None or not at_hand[0].capability.can_act:
            return
        keeper, alias = at_hand
        variant = keeper.server.variants.get(one.model)
        if not keeper.server.acts_on(alias):
            one.leaves_alone()  # it is only advised on
            return
        if variant is None or variant.config is None or not variant.ready:
            if one.report is not None:  # else it is not there yet
                one.asks()
            return
        try:
            if alias.target != one.model and one.is_to_be_renewed():
                await renew(keeper, variant)
            else:
                await one.talk(keeper.server.control, variant.config)
        except Exception:  # noqa: BLE001 - a bug there must not end the others' conversations
            _LOG.exception("%s: talking to its dispatcher failed", one.policy.name)

    # -- the ticks -----------------------------------------------------------------------------

    def observed(
        self,
        variants: Mapping[str, VariantReading],
        samples: tuple[BatchSample, ...],
        proofs: Sequence[str] = (),
    ) -> tuple[dict[str, VariantReading], tuple[BatchSample, ...], dict[str, Dispatched]]:
        """Return the readings and batches of variants alone, and what the dispatchers did.

        What Triton counts of a dispatcher is what was handed to it: the arrivals, and what we said
        to it ourselves. `proofs`: the models that a request of ours was sent to.
        """
        if not self._of:
            return dict(variants), samples, {}
        own = {name: one for name, one in variants.items() if name not in self._names}
        batches = tuple(sample for sample in samples if sample.model not in self._names)
        found = {
            name: one.observed(variants.get(one.model), proofs.count(one.model))
            for name, one in self._of.items()
        }
        return own, batches, found

    def after_tick(self, plans: Mapping[str, Plan | None]) -> None:
        """Have them choose by these plans."""
        for name, one in self._of.items():
            plan = plans.get(name)
            one.want(plan if plan is None else self._within_limits(name, plan))

    def _within_limits(self, name: str, plan: Plan) -> Plan:
        """Return a plan without the batches that Triton would refuse.

        What a variant was measured with may be more than its config allows by now.
        """
        try:
            at_hand = self._actuator.at_hand(name)
        except KeyError:
            return plan
        if at_hand is None:
            return plan
        known = at_hand[0].server.variants
        rows = []
        for model, took_s in zip(plan.names, plan.took_s, strict=True):
            variant = known.get(model)
            config = None if variant is None else variant.config
            rows.append(took_s if config is None else took_s[: max(max_batch(config), 1)])
        return plan._replace(took_s=tuple(rows))

    def order(self, model: str, order: tuple[str, ...]) -> tuple[str, ...]:
        """Return the order of a model's variants by speed with its dispatcher last."""
        return (*order, DISPATCHER) if model in self._of else order

    def view(self, model: str) -> dict[str, Any] | None:
        """Return how a model's is; None: it has none."""
        one = self._of.get(model)
        return None if one is None else one.view()
