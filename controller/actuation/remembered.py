"""What outlasts the actuator: last good targets, overrides, and what variants hold, in a file.

Owns that file. It must not know what is on the server now.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from controller.actuation.state_file import LONGEST_BYTES, check_override, write_private
from controller.telemetry.small_file import read_small

_LOG = logging.getLogger(__name__)

HOST: Final = "host"  # beside the numbers of GPUs, in what variants were seen to hold


@dataclass(frozen=True, slots=True)
class Override:
    """A config that a variant is to have instead of the one in its folder."""

    sent: Mapping[str, Any]
    expected: Mapping[str, Any]  # as the server tells it after the load; {}: not seen yet
    disk: Mapping[str, Any]  # as the server told it before; seen again: the override was lost
    of_policy: Sequence[str] = ()  # the fields that follow from the policy

    def is_met_by(self, seen: Mapping[str, Any]) -> bool:
        """Return whether a config is what was sent, with what Triton adds of its own."""
        return _holds(self.sent, seen)


def of_gpus(needs: Mapping[str, int]) -> dict[str, int]:
    """Return what of a variant's needs is a GPU's, by its number."""
    return {place: held for place, held in needs.items() if place != HOST}


def _holds(wanted: Any, found: Any) -> bool:
    """Return whether a value of a config holds all of another; what is a default may be absent."""
    if isinstance(wanted, Mapping):
        given = found if isinstance(found, Mapping) else {}
        return all(_holds(value, given.get(key)) for key, value in wanted.items())
    if isinstance(wanted, (list, tuple)):
        listed = found if isinstance(found, (list, tuple)) else ()
        return len(wanted) == len(listed) and all(map(_holds, wanted, listed))
    # 64-bit numbers are text in protobuf's JSON.
    return str(wanted) == str(found) or (found is None and wanted in (0, "", "0", False, None))


class Memory:
    """The last good targets, the overrides and what variants hold, in a small file; or nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.targets: dict[str, str] = {}
        self.overrides: dict[str, Override] = {}
        self.needs: dict[str, dict[str, int]] = {}  # bytes that were seen held, by place
        self.released: frozenset[str] = frozenset()
        self.unsaved = False
        self._writing = threading.Lock()  # two at once would take each other's unfinished file
        if path is None:
            return
        try:
            found = json.loads(read_small(str(path), LONGEST_BYTES))
            targets, overrides = found["targets"], found["overrides"]
            self.targets = {k: v for k, v in targets.items() if isinstance(v, str)}
            self.overrides = dict(_believed(path, overrides))
            needs = found.get("needs", {})  # files before this have none
            self.needs = {
                model: {str(gpu): int(held) for gpu, held in on.items() if int(held) >= 0}
                for model, on in needs.items()
                if isinstance(on, dict)
            }
            self.released = frozenset(map(str, found.get("released", ())))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            _LOG.warning("%s cannot be read (%s): starting without it", path, error)

    def remember(self, alias: str, target: str) -> None:
        """Note the last good target of an alias; `save` writes it, off the loop."""
        if self.targets.get(alias) != target:
            self.targets[alias] = target
            self.unsaved = True

    def leave(self, models: frozenset[str]) -> None:
        """Note which models an operator took back, for the time until the journal can be read."""
        if self.released != models:
            self.released, self.unsaved = models, True

    def need(self, model: str, held_bytes: Mapping[str, int]) -> None:
        """Note what a variant holds of each GPU, and of the host, while it is loaded."""
        if self.needs.get(model) != held_bytes:
            self.needs[model] = dict(held_bytes)
            self.unsaved = True

    def override(self, model: str, override: Override | None) -> None:
        """Note the config that a variant is to have; None: the one in its folder."""
        if self.overrides.get(model) == override:
            return
        if override is None:
            del self.overrides[model]
        else:
            self.overrides[model] = override
        self.unsaved = True

    def save(self) -> None:
        """Replace the file as a whole, so that a death in between leaves the old one.

        From any thread; it may hang with its disk.
        """
        with self._writing:
            self._save()

    def _save(self) -> None:
        self.unsaved = False
        if self.path is None:
            return
        overrides = {name: asdict(override) for name, override in dict(self.overrides).items()}
        kept = {"targets": dict(self.targets), "overrides": overrides, "needs": dict(self.needs)}
        text = json.dumps({**kept, "released": sorted(self.released)})
        try:
            write_private(self.path, text)
        except OSError as error:
            _LOG.warning("%s cannot be written (%s): not remembered", self.path, error)


def _believed(path: Path, found: Mapping[str, Any]) -> Iterator[tuple[str, Override]]:
    for model, override in found.items():
        try:
            yield model, Override(**check_override(override))
        except ValueError as error:
            _LOG.warning("%s: the override of %s is not believed: %s", path, model, error)
