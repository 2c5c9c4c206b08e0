"""The actuator's small file: written so that nobody is led elsewhere, read as if from a stranger.

Owns what of a file is believed. Whoever can write it must not gain what a model's config can do on
Triton, such as naming the environment in which code runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

LONGEST_BYTES: Final = 16 * 1024 * 1024
# The only fields an override may set; all others could run code or change what clients see.
OVERRIDABLE: Final = frozenset({"instance_group", "dynamic_batching", "max_batch_size"})
_CONFIGS: Final = ("sent", "expected", "disk")
_OF_POLICY: Final = "of_policy"


def differ_as_allowed(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two configs of a model differ in nothing but what may be overridden."""
    names = (one.keys() | other.keys()) - OVERRIDABLE
    return all(name in one and name in other and one[name] == other[name] for name in names)


def check_override(found: Any) -> dict[str, Any]:
    """Return the parts of an override. Raises ValueError for one that is none of ours."""
    if not isinstance(found, dict) or found.keys() - {_OF_POLICY} != set(_CONFIGS):
        raise ValueError("an override has other keys than its configs")
    if not all(isinstance(found[name], dict) for name in _CONFIGS):
        raise ValueError("a config of an override is no mapping")
    if not differ_as_allowed(found["sent"], found["disk"]):
        raise ValueError(f"it overrides more than {', '.join(sorted(OVERRIDABLE))}")
    of_policy = found.get(_OF_POLICY, [])  # files before it have none
    if not isinstance(of_policy, list) or not OVERRIDABLE.issuperset(map(str, of_policy)):
        raise ValueError("what of an override is the policy's is not among its fields")
    return {**found, _OF_POLICY: tuple(of_policy)}


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable for us and our group. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    # A new file each time: what lies there, a link to elsewhere say, is not written to.
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    fresh.replace(path)
