"""The policy's files: read again when one changes, and when somebody asks for it.

Owns noticing that it changed. It must not put a policy in force, nor judge one.

The file is looked at, not the folder's events: that sees what an editor renames into place, what is
written over it, and what a link that is turned over (Kubernetes' mounted files) shows, on every
kind of file system.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from controller.policy.compose import Mark, mark_of
from controller.policy.load import PolicyError, load_policy
from controller.policy.model import Policy

_LOG = logging.getLogger("governor")
_LOOK_S: Final = 0.2

_Marks = dict[str, Mark | None]  # of a file and all that it includes; None: it is not there
_Found = tuple[Policy | str, _Marks]


class PolicyFile:
    """Reads one file, with what it includes, and hands over what it says.

    Args:
        path: the file.
        host: whose policy it is; None: this machine's.
        in_force: returns the SHA-256 of the text that the policy in force came from.
        take: puts another policy in force; returns what there is to say of it, if anything.
        refuse: is told why a text is no policy.
    """

    def __init__(
        self,
        path: Path,
        *,
        host: str | None = None,
        in_force: Callable[[], str],
        take: Callable[[Policy], str | None],
        refuse: Callable[[str], None],
    ) -> None:
        self.path = path
        self.error: str | None = None  # what is not as the file says, in a sentence
        self.host = host
        self._in_force = in_force
        self._take = take
        self._refuse = refuse
        self._note: str | None = None  # what was said of the one in force
        # What was read at the start may have changed since: the first look reads it once more.
        self._known: _Marks = {str(path): None}
        self._reads = 0  # on demand

    def read(self) -> None:
        """Read it now, changed or not."""
        self._reads += 1
        found, self._known = _read(self.path, self.host)
        self._hand_over(found, even_if_same=True)

    async def follow(self) -> None:
        """Read it whenever it changes, until cancelled; what is in the middle of a change waits."""
        before: _Marks | None = None
        while True:
            try:
                # In a thread, as all of these may hang with their file system.
                marks = await asyncio.to_thread(_look, tuple(self._known))
                is_there = marks[str(self.path)] is not None
                if is_there and marks == before and marks != self._known:
                    self._known, reads = marks, self._reads
                    found, known = await asyncio.to_thread(_read, self.path, self.host)
                    if reads == self._reads:  # else somebody asked meanwhile, and has a newer one
                        self._known = known
                        self._hand_over(found, even_if_same=False)
                before = marks
            except Exception as error:  # noqa: BLE001 - the next edit must still be read
                self.error = f"not taken: {error!r}; the log has more"
                _LOG.exception("a changed policy was not taken")
            await asyncio.sleep(_LOOK_S)

    def _hand_over(self, found: Policy | str, *, even_if_same: bool) -> None:
        if isinstance(found, str):
            self.error = f"refused: {found}"
            self._refuse(found)
            return
        if even_if_same or found.sha256 != self._in_force():
            self._note = self._take(found)
        self.error = self._note


def _read(path: Path, host: str | None) -> _Found:
    """Return the policy, or what is wrong with it, and the files as they were when read."""
    seen: _Marks = {str(path): None}
    try:
        return load_policy(path, host=host, seen=seen, environment=os.environ), seen
    except (PolicyError, OSError) as error:
        return str(error), seen


def _look(files: tuple[str, ...]) -> _Marks:
    """Return how some files are now."""
    return {file: _mark(Path(file)) for file in files}


def _mark(path: Path) -> Mark | None:
    try:
        return mark_of(path.stat())
    except (OSError, ValueError):
        return None
