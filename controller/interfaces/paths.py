"""Where the admin socket lives, and what the services are called.

Owns the choice of the runtime folder and of the socket in it, for the daemon and for clients, and
the names of the services of several servers on one machine.
It must stay light: the command line imports it at every start.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

SOCKET_VARIABLE = "TRITON_GOVERNOR_SOCKET"
INSTANCE_VARIABLE = "TRITON_GOVERNOR_INSTANCE"
SOCKET_NAME = "governor.sock"
SERVICE = "triton-governor"
RUN = Path("/run")

# A part of a unit's and of folders' names, as it stands: systemd would escape anything else. Not
# longer than fits into the path of a socket, which has 107 bytes.
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)


def service_name(instance: str | None) -> str:
    """Return what the folders of the system's service are called. Raises ValueError.

    Args:
        instance: the server's name where there are several on this machine; None: the only one.
    """
    if instance is None:
        return SERVICE
    if not _INSTANCE.fullmatch(instance):
        raise ValueError(
            f"{instance!r} is no name of an instance: letters, digits and `_ . -`, a letter or a"
            " digit first, at most 63"
        )
    return f"{SERVICE}-{instance}"


def named_instance() -> str | None:
    """Return the instance that the environment names, if it does."""
    return os.environ.get(INSTANCE_VARIABLE) or None


def running_instances() -> list[str]:
    """Return the names of the instances whose runtime folders are there."""
    prefix = f"{SERVICE}-"
    return sorted(path.name.removeprefix(prefix) for path in RUN.glob(f"{prefix}*"))


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


def find_socket(instance: str | None = None) -> Path:
    """Return the socket a client should try. Raises ValueError for what is no instance's name.

    That of a named instance; else the user's own; else that of the system's service; else that of
    the only instance there is.
    """
    if instance is None and not os.environ.get(SOCKET_VARIABLE):
        instance = named_instance()
    if instance is not None:
        return _system_socket(instance)
    own = default_socket()
    if os.environ.get(SOCKET_VARIABLE) or is_there(own):
        return own
    if is_there(_system_socket(None)):
        return _system_socket(None)
    instances = running_instances()
    return _system_socket(instances[0]) if len(instances) == 1 else own


def _system_socket(instance: str | None) -> Path:
    return RUN / service_name(instance) / SOCKET_NAME


def is_there(path: Path) -> bool:
    """Return whether there is such a file; what may not be looked at counts as there."""
    try:
        return path.exists()
    except PermissionError:
        return True


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
