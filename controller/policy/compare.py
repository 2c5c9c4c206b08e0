"""What differs between the effective values of two policies.

Owns the comparison. It must not read files or print.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controller.policy.model import Policy
from controller.policy.render import policy_to_dict


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose effective value differs; None: the key is not there, or is off."""

    path: str  # such as models.qa.objective.latency
    before: Any
    after: Any


def changes(before: Policy, after: Policy) -> tuple[Change, ...]:
    """Return what differs in effect, in the order of the file's keys; comments do not count."""
    return tuple(_changes(policy_to_dict(before), policy_to_dict(after), ""))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[Change]:
    for key in dict.fromkeys((*before, *after)):
        here = f"{path}.{key}" if path else key
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, here)
        elif old != new:
            yield Change(here, old, new)
