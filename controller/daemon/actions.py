"""What the actuator did, on its way to everybody who wants to know.

Owns the counts and times of actions. It must not act.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from controller.daemon.log import audit
from controller.daemon.meters import Durations
from controller.ports import ActionRecord, Outcome
from controller.telemetry.observation import ActionCost

if TYPE_CHECKING:
    from controller.journal.journal import Journal
    from controller.telemetry.hub import Telemetry

_FRESHENS: Final = frozenset({"load", "reload", "resize", "heal"})  # variants run cold after these


class ActionLog:
    """Counts actions, tells the journal and the telemetry, and keeps their costs for the core."""

    def __init__(self, journal: Journal, telemetry: Telemetry) -> None:
        self._journal = journal
        self._telemetry = telemetry
        self._costs: list[ActionCost] = []
        self.switches, self.transactions = Durations(), Durations()
        self.switch_counts: Counter[str] = Counter()
        self.failure_counts: Counter[str] = Counter()

    def take(self) -> tuple[ActionCost, ...]:
        """Return what ended since the last call."""
        costs, self._costs = tuple(self._costs), []
        return costs

    def record(self, record: ActionRecord) -> None:
        """Take in what the actuator did."""
        self._journal.action(record)
        good = record.outcome in {Outcome.DONE, Outcome.NOTHING_TO_DO}
        if record.kind == "switch" and record.outcome is Outcome.DONE:
            self.switch_counts[record.model] += 1
        if record.switch_s is not None and record.kind == "switch":
            self.switches.add(record.switch_s)
        if record.transaction_s is not None and record.kind == "switch" and good:
            self.transactions.add(record.transaction_s)
        if record.outcome in {Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.UNKNOWN}:
            self.failure_counts[record.model] += 1
        now_s = time.monotonic()
        duration_s = record.transaction_s or record.switch_s or 0.0
        if record.outcome not in {Outcome.NOTHING_TO_DO, Outcome.BUSY, Outcome.REFUSED}:
            audit(
                record.kind,
                who="the governor",
                model=record.model,
                outcome=record.outcome.value,
                told=_told(record, duration_s),
                good=good,
            )
        self._costs.append(
            ActionCost(record.kind, record.model, record.target or "", duration_s, now_s, ok=good)
        )
        done = record.outcome is not Outcome.REFUSED
        if done and record.kind in _FRESHENS and record.target is not None:
            self._telemetry.note_action(record.target, record.started_s)
            self._telemetry.note_action(record.target, now_s)


def _told(record: ActionRecord, duration_s: float) -> str:
    """Return from what to what, how long it took, why, and what went wrong."""
    moved = [name for name in (record.source, record.target) if name is not None]
    parts = [
        " to ".join(dict.fromkeys(moved)),
        f"{duration_s * 1e3:.1f} ms" if duration_s else "",
        record.reason,
        record.error or "",
    ]
    return ", ".join(part for part in parts if part)
