"""How the governor stands to each model: it acts, it advises, or an operator took it back.

Owns that answer and what readings show of it. It must not carry anything out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from controller.actuation.actuator import Actuator
from controller.daemon.operator import OperatorWishes
from controller.planning.decision import Decision
from controller.policy.model import Mode, Policy
from controller.telemetry.observation import ModelReading

_LOG = logging.getLogger("governor")

RELEASED: Final = "released"


class Standing:
    """Says which models are acted on.

    Args:
        policy: returns the one in force.
        wishes: what operators asked for.
        actuator: is told what to leave alone.
    """

    def __init__(
        self, policy: Callable[[], Policy], wishes: OperatorWishes, actuator: Actuator
    ) -> None:
        self._policy = policy
        self._wishes = wishes
        self._actuator = actuator
        self._advised: dict[str, str | None] = {}

    def apply(self) -> None:
        """Have the actuator leave alone what was taken back.

        Until the journal was read, which may take long on a bad disk, what the actuator remembers.
        """
        taken_back = frozenset(self._wishes.releases)
        if not self._wishes.was_read:
            taken_back |= self._actuator.left
        self._actuator.leave(taken_back)

    @property
    def advice(self) -> str | None:
        """Return why nothing at all is acted on, if so."""
        policy = self._policy()
        if not policy.acts:
            said = policy.mode is Mode.ADVISE
            return f"the policy says mode: advise{'' if said else ' of every model'}"
        if all(model.name in self._wishes.releases for model in policy.models):
            return "every model was released"
        capability = self._actuator.capability
        return None if capability.can_act else str(capability)

    def of(self, model: str) -> str:
        """Return act, advise or released. Raises KeyError."""
        if model in self._wishes.releases:
            return RELEASED
        policy = self._policy()
        return policy.mode_of(policy.model(model)).value

    def readings(self, now_s: float) -> dict[str, ModelReading]:
        """Return the models as they are known now, with what operators want of them."""
        self.apply()
        able, policy = self._actuator.capability.can_act, self._policy()
        acts = {model.name for model in policy.models if policy.mode_of(model) is Mode.ACT}
        found = self._wishes.overlay(self._actuator.readings(now_s))
        return {
            name: reading
            if able and name in acts and not reading.released
            else replace(reading, advised=True)
            for name, reading in found.items()
        }

    def is_advised(self, model: str) -> bool:
        """Return whether the policy has decisions on a model carried out by nobody."""
        policy = self._policy()
        return policy.mode_of(policy.model(model)) is Mode.ADVISE

    def probes(self) -> bool:
        """Return whether synthetic requests may be sent to any variant."""
        probing = self._policy().probing
        return self.advice is None or (probing.enabled and probing.while_advising)

    def carries_out(self, decision: Decision) -> bool:
        """Return whether a decision is carried out; tell once where it is advice."""
        if not decision.advised:
            return True
        if self._advised.get(decision.model) != decision.target:
            self._advised[decision.model] = decision.target
            _LOG.info("advice: %s to %s (%s)", decision.model, decision.target, decision.reason)
        return False
