"""Where the admin socket lives.

Owns the choice of the runtime folder and of the socket in it, for the daemon and for clients.
It must stay light: the command line imports it at every start.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

SOCKET_VARIABLE = "TRITON_GOVERNOR_SOCKET"
SOCKET_NAME = "governor.sock"
SYSTEM_RUNTIME_DIR = Path("/run/triton-governor")


def runtime_dir() -> Path:
    """Return the folder for what ends with the machine's uptime: systemd's, else the user's."""
    from_systemd = os.environ.get("RUNTIME_DIRECTORY")
    if from_systemd:
        return Path(from_systemd.split(":")[0])
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and Path(session).is_absolute():
        return Path(session) / "triton-governor"
    return Path(f"/tmp/triton-governor-{os.getuid()}")  # noqa: S108 - ensure_private checks it


def default_socket() -> Path:
    """Return where the daemon listens unless told otherwise."""
    named = os.environ.get(SOCKET_VARIABLE)
    return Path(named) if named else runtime_dir() / SOCKET_NAME


def find_socket() -> Path:
    """Return the socket a client should try: the user's own, else that of the system's service."""
    own = default_socket()
    system = SYSTEM_RUNTIME_DIR / SOCKET_NAME
    if os.environ.get(SOCKET_VARIABLE) or own.exists() or not system.exists():
        return own
    return system


def ensure_private(folder: Path) -> None:
    """Make a folder (0700) that nobody else can have prepared for us. Raises OSError.

    A folder that exists must be ours or root's, and others must not be able to replace files.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{folder} is not a folder; remove it") from None
        open_to_all = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in (os.getuid(), 0) or open_to_all:
            raise PermissionError(
                f"{folder} belongs to somebody else or is open to all; remove it or set"
                f" {SOCKET_VARIABLE} to a socket in a folder of your own"
            ) from None
