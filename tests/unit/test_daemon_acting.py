"""Decisions that are carried out: what is told of those that cannot be."""

import logging
from types import SimpleNamespace

from controller.daemon.acting import Acting
from controller.ports import Outcome


class Actuator:
    """Refuses each model, for a reason of its own."""

    async def apply(self, decision):
        return SimpleNamespace(outcome=Outcome.REFUSED, error=f"{decision.target} is not loaded")


async def test_what_is_refused_at_every_tick_is_told_once_of_each_model(caplog):
    acting = Acting(Actuator())
    decisions = [SimpleNamespace(model=name, target=f"{name}-fast") for name in ("a", "b")]
    with caplog.at_level(logging.WARNING, "governor"):
        for _ in range(5):
            for decision in decisions:
                acting.carry_out(decision)
                await acting.tasks[decision.model]
    assert len(caplog.records) == 2
