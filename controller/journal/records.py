"""Journal rows: from the program's values to columns and JSON text, and back.

Owns the stored shape of a record. It must not touch the database or read a clock.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.journal.minutes import MachineMinute, ModelMinute
from controller.planning.decision import Decision
from controller.ports import ActionRecord


@dataclass(frozen=True, slots=True)
class Stamp:
    """When something was recorded, on both clocks: one orders, the other tells people."""

    time_unix_s: float
    monotonic_s: float


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A decision on its way to disk."""

    stamp: Stamp
    decision: Decision


@dataclass(frozen=True, slots=True)
class ActionRow:
    """An action on its way to disk."""

    stamp: Stamp
    action: ActionRecord


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event on its way to disk."""

    stamp: Stamp
    kind: str
    model: str | None
    message: str
    data: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class MinuteRow:
    """What a minute came to, on its way to disk; nobody may change it any more."""

    begins_unix_s: int
    model: str | None  # None: the machine
    minute: ModelMinute | MachineMinute


Row = DecisionRow | ActionRow | EventRow | MinuteRow

ACTION_COLUMNS = (
    "time_unix_s",
    "monotonic_s",
    "kind",
    "model",
    "source",
    "target",
    "outcome",
    "switch_s",
    "transaction_s",
    "reason",
    "error",
)
EVENT_COLUMNS = ("time_unix_s", "monotonic_s", "kind", "model", "message", "data")
# Written every minute: numbers for who computes something, no news for who reads events.
SCORE_EVENT = "score"

_COLUMNS = {
    "decisions": (
        "time_unix_s",
        "monotonic_s",
        "model",
        "serving",
        "target",
        "reason",
        "changes",
        "body",
    ),
    "actions": ACTION_COLUMNS,
    "events": EVENT_COLUMNS,
    "minutes": ("time_unix_s", "model", "body"),
}
_INSERT = {  # our own names: nothing of a record gets into the SQL
    table: f"INSERT INTO {table}({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
    for table, names in _COLUMNS.items()
}


def insertion(row: Row) -> tuple[str, tuple[Any, ...]]:
    """Return the SQL and the values that store a row. Raises ValueError, TypeError on odd data."""
    if isinstance(row, MinuteRow):
        body = dumps_exact(row.minute.stored())
        return _INSERT["minutes"], (row.begins_unix_s, text(row.model), body)
    stamp = row.stamp
    if isinstance(row, DecisionRow):
        decision = row.decision
        return _INSERT["decisions"], (
            stamp.time_unix_s,
            stamp.monotonic_s,
            text(decision.model),
            text(decision.serving),
            text(decision.target),
            str(decision.reason),
            int(decision.changes),
            dumps(decision),
        )
    if isinstance(row, ActionRow):
        stored = action_dict(row)
        return _INSERT["actions"], tuple(stored[name] for name in ACTION_COLUMNS)
    return _INSERT["events"], (
        stamp.time_unix_s,
        stamp.monotonic_s,
        text(row.kind),
        text(row.model),
        text(row.message),
        None if row.data is None else dumps(row.data),
    )


def action_dict(row: ActionRow) -> dict[str, Any]:
    """Return an action as `history` shows it: seconds, and the time it was recorded."""
    action = row.action
    return {
        "time_unix_s": row.stamp.time_unix_s,
        "monotonic_s": action.started_s,
        "kind": text(action.kind),
        "model": text(action.model),
        "source": text(action.source),
        "target": text(action.target),
        "outcome": str(action.outcome),
        "switch_s": action.switch_s,
        "transaction_s": action.transaction_s,
        "reason": text(action.reason),
        "error": text(action.error),
    }


def text(value: str | None) -> str | None:
    """Return text that SQLite and JSON can store: a lone surrogate would refuse the whole row."""
    return None if value is None else value.encode("utf-8", "replace").decode("utf-8")


def dumps(value: Any) -> str:
    """Return compact standard JSON: floats to six digits, NaN and infinity as null."""
    return json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def dumps_exact(value: Any) -> str:
    """Return JSON that gives learned numbers back bit for bit, NaN and infinity included."""
    return json.dumps(value, separators=(",", ":"), default=_plain)


def checksum(blob: str) -> int:
    """Return what tells a damaged learned value from a good one."""
    return zlib.crc32(blob.encode("utf-8"))


def _plain(value: Any) -> Any:
    """Turn arrays and scalars of NumPy into lists and numbers without importing it."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise TypeError(f"{type(value).__name__} cannot be stored as JSON")
    return tolist()


def _rounded(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _rounded(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a record that is a tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_rounded(item) for item in value)
    return _rounded(_plain(value))
