"""Which program the service starts, and why it could not.

Owns what the unit's hardening and the file modes mean for a path. It must not change anything.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from controller.service.layout import SHIPPED_PROGRAM

_HIDDEN: Final = {
    "/home": "ProtectHome=yes",
    "/root": "ProtectHome=yes",
    "/run/user": "ProtectHome=yes",
    "/tmp": "PrivateTmp=yes",  # noqa: S108 - named, not used
    "/var/tmp": "PrivateTmp=yes",  # noqa: S108 - the same
}
_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.+@:,=-]+", re.ASCII)
_PROGRAM: Final = "governor"
_LIBRARY: Final = "numpy"  # stands for all dependencies: they are installed together


class ProgramError(Exception):
    """The service could not start the program; the text says why, `advice` what to do."""

    advice = (
        "install it where a service may read it, with a Python that lies outside of homes: "
        "/usr/bin/python3 -m venv /opt/triton-governor && /opt/triton-governor/bin/pip install "
        f"triton-governor && {SHIPPED_PROGRAM} install-service ..."
    )


def running_program() -> Path:
    """Return the `governor` that runs, by its absolute path. Raises ProgramError."""
    beside = Path(sys.prefix) / "bin" / _PROGRAM
    if beside.is_file():
        return beside
    started = Path(sys.argv[0])
    if started.name == _PROGRAM and started.is_file():
        return started.resolve()
    raise ProgramError(f"there is no program {_PROGRAM} in {beside.parent}: is it installed?")


def check_program(program: Path, root: Path) -> None:
    """Raise ProgramError where a service could not start the program from an image or machine."""
    if not _PLAIN.fullmatch(str(program)):
        raise ProgramError(f"{program} has characters that mean something else in a unit")
    if root != Path("/"):
        inside = root / program.relative_to("/")
        if not inside.is_file():
            raise ProgramError(f"there is no {inside}: install the governor in there first")
        return  # what it needs lies in there too, and cannot be asked from here
    for path, what in _needed(program):
        reason = why_out_of_reach(path)
        if reason is not None:
            raise ProgramError(f"the service could not use {what}: {reason}")
    if os.statvfs(program).f_flag & os.ST_NOEXEC:
        raise ProgramError(f"{program} lies on a file system that is mounted noexec")


def _needed(program: Path) -> Iterator[tuple[Path, str]]:
    yield program, f"the program {program}"
    yield Path(sys.executable), f"its Python {sys.executable}"
    yield Path(sys.base_prefix), f"its Python's library in {sys.base_prefix}"
    for name in (__package__.partition(".")[0], _LIBRARY):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin), f"its module {name}"


def why_hidden(path: Path) -> str | None:
    """Return why a service with the unit's hardening does not see a path, links followed."""
    for seen in (path, path.resolve()):
        for folder, setting in _HIDDEN.items():
            if seen.is_relative_to(folder):
                return f"{seen} is under {folder}, which it does not see ({setting} in its unit)"
    return None


def why_out_of_reach(path: Path) -> str | None:
    """Return why a user without rights could not read a path, or None."""
    hidden = why_hidden(path)
    if hidden is not None:
        return hidden
    for seen in (path, path.resolve()):
        for part in (*reversed(seen.parents), seen):
            try:
                mode = part.stat().st_mode
            except OSError as error:
                return f"{part}: {error.strerror}"
            wanted = stat.S_IXOTH if part.is_dir() else stat.S_IROTH
            if not mode & wanted:
                return f"{part} is closed to others (mode {stat.S_IMODE(mode):04o})"
    return None
