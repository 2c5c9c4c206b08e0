"""One finding of a check, as `governor doctor` reports it.

Owns its shape and order of gravity. It must not check anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class Level(enum.StrEnum):
    """How grave a finding is."""

    OK = "ok"
    WARN = "warn"  # works, but worse or less safely than it could
    FAIL = "fail"  # the governor cannot do its work, or service is at risk


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw, and what to change where that is not well."""

    name: str
    level: Level
    message: str
    advice: str | None = None


def ok(name: str, message: str, advice: str | None = None) -> Finding:
    """Return a finding that needs nothing; advice is then for the day things change."""
    return Finding(name, Level.OK, message, advice)


def warn(name: str, message: str, advice: str) -> Finding:
    """Return a finding that should be changed."""
    return Finding(name, Level.WARN, message, advice)


def fail(name: str, message: str, advice: str) -> Finding:
    """Return a finding that must be changed."""
    return Finding(name, Level.FAIL, message, advice)


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return findings JSON-ready, with whether none of them failed."""
    checks = [
        {"name": f.name, "level": f.level.value, "message": f.message, "advice": f.advice}
        for f in findings
    ]
    return {"ok": all(check["level"] != Level.FAIL for check in checks), "checks": checks}
