"""Where the journal lives.

Owns the choice of the state folder. It must not create anything: the store does.
"""

from __future__ import annotations

import os
from pathlib import Path

JOURNAL_NAME = "journal.sqlite3"
SYSTEM_STATES = Path("/var/lib")


def state_dir() -> Path:
    """Return the folder for what survives a restart: systemd's, else the user's XDG one."""
    from_systemd = os.environ.get("STATE_DIRECTORY")
    if from_systemd:
        return Path(from_systemd.split(":")[0])
    home = os.environ.get("XDG_STATE_HOME")
    if home and Path(home).is_absolute():  # the XDG specification: relative paths are ignored
        return Path(home) / "triton-governor"
    return Path.home() / ".local" / "state" / "triton-governor"


def default_journal() -> Path:
    """Return where the daemon keeps its journal unless the policy says otherwise."""
    return state_dir() / JOURNAL_NAME


def find_journal(service: str, *, only: bool = False) -> Path:
    """Return where a client should look: the user's journal, else that of the system's service.

    Args:
        service: what the service's folders are called.
        only: the user's own journal is not meant.
    """
    system = SYSTEM_STATES / service / JOURNAL_NAME
    if only:
        return system
    own = default_journal()
    return system if not own.exists() and _is_there(system) else own


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # to be said when it is opened
        return True
