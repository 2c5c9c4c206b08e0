"""Decisions carried out beside the ticks, one at a time of each model.

Owns those tasks, and which decision each model was switched by last. It must not decide.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from controller.planning.decision import Decision
from controller.ports import Outcome

if TYPE_CHECKING:
    from controller.actuation.actuator import Actuator

_LOG = logging.getLogger("governor")


class Acting:
    """Hands decisions to the actuator."""

    def __init__(self, actuator: Actuator) -> None:
        self._actuator = actuator
        self.tasks: dict[str, asyncio.Task[None]] = {}  # by model
        self.switched: dict[str, Decision] = {}  # the last that was carried out, by model
        self._refused: dict[str, str | None] = {}  # the last refusal that was logged, by model

    def carry_out(self, decision: Decision) -> None:
        """Begin with a decision, unless the model's last one is not through."""
        acting = self.tasks.get(decision.model)
        if acting is None or acting.done():
            self.tasks[decision.model] = asyncio.create_task(self._apply(decision))

    def cancel(self) -> None:
        """Wait for nothing any more."""
        for task in self.tasks.values():
            task.cancel()

    async def _apply(self, decision: Decision) -> None:
        try:
            record = await self._actuator.apply(decision)
            if record.outcome is Outcome.DONE:
                self.switched[decision.model] = decision
            told = self._refused.get(decision.model)
            if record.outcome is Outcome.REFUSED and record.error != told:
                self._refused[decision.model] = record.error
                _LOG.warning("%s to %s refused: %s", decision.model, decision.target, record.error)
        except Exception:  # noqa: BLE001 - a bug there must not end the loop
            _LOG.exception("switching %s to %s failed", decision.model, decision.target)
