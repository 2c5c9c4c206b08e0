"""Instances in the daemon: what the planner wants of them, handed to the actuator and told.

Owns that hand-over. It must not decide how many: `controller.planning.sizing` does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from controller.planning.sizing import Resize
from controller.policy.model import Policy
from controller.telemetry.observation import Observation

if TYPE_CHECKING:
    from controller.actuation.actuator import Actuator
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore

_LOG = logging.getLogger("governor")


class Sizing:
    """Has variants given the instances that they are to have.

    Args:
        core: knows what instances are worth.
        actuator: gives and takes them.
        journal: is told of every change.
    """

    def __init__(self, core: GovernorCore, actuator: Actuator, journal: Journal) -> None:
        self._core = core
        self._actuator = actuator
        self._journal = journal
        self._told: dict[str, Resize] = {}

    def after_tick(self, observation: Observation | None, policy: Policy) -> None:
        """Hand over what is wanted now."""
        if observation is None or not any(
            variant.max_instances for model in policy.models for variant in model.variants
        ):
            self._told.clear()
            return
        wanted = {resize.model: resize for resize in self._core.resizes(observation)}
        for model, resize in wanted.items():
            if resize != self._told.get(model):
                self._tell(resize)
        # What is wanted no more, as of a model that was paused meanwhile, stays as it is.
        known = observation.instances
        left = {name: known[name].number for name in self._told.keys() & known.keys()}
        self._told = wanted
        if left or wanted:
            self._actuator.set_instances(left | {k: one.number for k, one in wanted.items()})

    def _tell(self, resize: Resize) -> None:
        what = f"{resize.model}: {resize.before} to {resize.number} instances: {resize.why}"
        details = {"gain": round(resize.gain, 5), "number": resize.number, "before": resize.before}
        self._journal.event("instances", resize.model, what, details)
        _LOG.info("%s", what)

    def view(self, observation: Observation | None) -> dict[str, Any]:
        """Return each sized variant's instances and what more would bring, JSON-ready."""
        known = {} if observation is None else observation.instances
        return {
            model: {
                "number": known[model].number if model in known else None,
                "least": known[model].least if model in known else None,
                **sized,
            }
            for model, sized in self._core.sizes().items()
        }
