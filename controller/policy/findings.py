"""What a check across values finds."""

from __future__ import annotations

from dataclasses import dataclass

from controller.policy.problems import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """A contradiction between values, at the value (or the key) that is easiest to change."""

    path: Path
    message: str
    at_key: bool = False
