"""The two ports between the pure middle and a server, real or simulated.

Owns their shape and nothing else. The real server's adapters are `controller.telemetry` and
`controller.actuation`; the twin implements the same two.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from controller.planning.decision import Decision
from controller.telemetry.observation import Observation


class Outcome(enum.StrEnum):
    """How an action ended. Append only."""

    DONE = "done"
    NOTHING_TO_DO = "nothing_to_do"
    REFUSED = "refused"  # a precheck said no; Triton was not asked
    BUSY = "busy"  # another operation is under way; ask again at the next tick
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"  # and could not be put back: said loudly
    UNKNOWN = "unknown"  # outlasted its deadline; settled by looking


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """What was done to the server, what it cost and how it ended."""

    kind: str  # switch, load, unload, heal, adopt, reassert
    model: str  # the alias
    source: str | None  # Triton model name before
    target: str | None  # Triton model name after
    outcome: Outcome
    started_s: float  # monotonic
    switch_s: float | None  # send to return of the alias's load call
    transaction_s: float | None  # with checks and proof
    reason: str  # the decision's reason, or who asked
    error: str | None = None


class ObservationSource(Protocol):
    """Where observations come from."""

    async def observe(self) -> Observation:
        """Return what is known now, without ever waiting for a source that hangs."""
        ...


class DecisionSink(Protocol):
    """Where decisions go."""

    async def apply(self, decision: Decision) -> ActionRecord:
        """Carry a decision out. Never raises for what a server can do wrong."""
        ...
