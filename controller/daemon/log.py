"""The log of the process: for a person, for journald, or a JSON object a line.

Owns its formats and priorities, and the audit: one line for every command of an operator and every
action on the server, with who, what and how it ended. No level that an operator chooses hides the
audit. Secrets never come here: who reads one keeps it to himself.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

FORMATS: Final = ("text", "json")

AUDIT: Final = logging.getLogger("governor.audit")
AUDIT.setLevel(logging.INFO)  # its own, so that the root's does not count

_FIELDS: Final = "audit_fields"
_PRIORITIES: Final[Mapping[int, int]] = {  # of syslog(3)
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def audit(
    what: str,
    *,
    who: str,
    model: str | None,
    outcome: str,
    told: str,
    good: bool = True,
    caller: Mapping[str, str | int | None] | None = None,
) -> None:
    """Log what somebody did, or was refused.

    Args:
        what: pin, pause, switch, load and the like.
        who: an operator, or the governor itself.
        model: of what; None: of everything.
        outcome: one word.
        told: the rest, for a person.
        good: whether it ended as it should; else the line is a warning.
        caller: who, in parts, for a line of JSON; None: the same as `who`.
    """
    fields: dict[str, str | int | None] = {"who": who, **(caller or {})}
    fields.update({"what": what, "model": model, "outcome": outcome})
    AUDIT.log(
        logging.INFO if good else logging.WARNING,
        "%s of %s by %s: %s%s",
        what,
        model or "everything",
        who,
        outcome,
        f": {told}" if told else "",
        extra={_FIELDS: fields},
    )


def start_log(level: str, form: str = "text", stream: TextIO | None = None) -> None:
    """Log to a stream, stderr by default, from a level on."""
    to = sys.stderr if stream is None else stream
    journald = is_journald(to)
    handler = logging.StreamHandler(to)
    handler.setFormatter(_Json(journald) if form == "json" else _Text(journald))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Text(logging.Formatter):
    """A line for a person. journald knows the time, and is told the priority."""

    def __init__(self, journald: bool) -> None:
        super().__init__("%(message)s" if journald else "%(asctime)s %(levelname)-7s %(message)s")
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return _prioritised(record, text) if self._journald else text


class _Json(logging.Formatter):
    """An object on one line: time, level, logger, message, and what an audit line has more."""

    def __init__(self, journald: bool) -> None:
        super().__init__()
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        value: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        value.update(getattr(record, _FIELDS, {}))
        if record.exc_info:
            value["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(value, ensure_ascii=False)
        return _prioritised(record, text) if self._journald else text


def _prioritised(record: logging.LogRecord, text: str) -> str:
    return prioritised(text, record.levelno)


def prioritised(text: str, level: int) -> str:
    """Return a text with its syslog priority before each line, as sd-daemon(3) describes."""
    prefix = f"<{_PRIORITIES.get(level, 6)}>"
    return "\n".join(prefix + line for line in text.splitlines())


def is_journald(stream: TextIO) -> bool:
    """Return whether a stream leads to journald: it names its end in the environment.

    A program that a service starts inherits the variable, and may write elsewhere.
    """
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False
