"""Can the embedded Triton run here, and with which Python?

Owns the platform check and its sentences. It must not install or start anything.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The wheel is tagged manylinux_2_35_x86_64.
MINIMUM_GLIBC = (2, 35)
# The wheel carries stubs for 3.8 to 3.13, but NumPy 1, which the backend needs, has no wheels
# for 3.13, and the governor itself starts at 3.11.
PYTHON_VERSIONS = ("3.11", "3.12")
_PROBE_TIMEOUT_S = 30.0

# Runs in the candidate interpreter. Looking the library up by its bare name asks the loader's
# own search (its cache, LD_LIBRARY_PATH); an interpreter linked against it has it already, from
# a place that only it may know, so that place is looked at first.
_PROBE = """
import ctypes, json, os, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
name = "libpython%s.so.1.0" % version
folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")]
found = next((d for d in folders if d and os.path.exists(os.path.join(d, name))), None)
loadable = True
if found is None:
    try:
        ctypes.CDLL(name)
    except OSError:
        loadable = False
print(json.dumps({
    "version": version, "implementation": sys.implementation.name,
    "library_folder": found, "loadable": loadable,
}))
"""


class UnsupportedPlatformError(Exception):
    """The embedded Triton cannot run on this machine; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that the server's Python backend can embed."""

    executable: Path
    version: str
    """Major and minor, as in ``3.11``."""
    library_folder: Path | None
    """Where its shared library lies; None if the loader finds it by itself."""


def check_machine(
    system: str | None = None, machine: str | None = None, libc: tuple[str, str] | None = None
) -> None:
    """Refuse a machine that the wheel's binaries cannot run on.

    The arguments default to what this machine is.

    Raises:
        UnsupportedPlatformError: with one sentence that says why.
    """
    system = system or platform.system()
    machine = machine or platform.machine()
    if system != "Linux":
        raise UnsupportedPlatformError(
            f"the embedded Triton runs on Linux only, and this is {system}; use a Linux machine, "
            "or point the policy at a Triton elsewhere"
        )
    if machine not in {"x86_64", "AMD64"}:
        raise UnsupportedPlatformError(
            f"the embedded Triton is built for x86-64, and this machine is {machine}; "
            "point the policy at a Triton container instead"
        )
    library, version = libc or platform.libc_ver()
    wanted = ".".join(map(str, MINIMUM_GLIBC))
    if library != "glibc":
        raise UnsupportedPlatformError(
            f"the embedded Triton needs glibc {wanted} or newer, and this system has "
            f"{library or 'another C library'}; use Debian 12, Ubuntu 22.04 or newer"
        )
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return  # an unreadable version is no reason to refuse: the loader will say
    if found < MINIMUM_GLIBC:
        raise UnsupportedPlatformError(
            f"the embedded Triton needs glibc {wanted} or newer, and this system has {version}; "
            "use Debian 12, Ubuntu 22.04 or newer"
        )


def find_interpreter(candidates: Sequence[Path] | None = None) -> Interpreter:
    """Return the first usable Python: the running one, else one on the PATH.

    Raises:
        UnsupportedPlatformError: none is usable; tells what is wrong with the first.
    """
    if candidates is None:
        found = (shutil.which(f"python{version}") for version in PYTHON_VERSIONS)
        candidates = [Path(sys.executable), *(Path(path) for path in found if path)]
    first: UnsupportedPlatformError | None = None
    for candidate in candidates:
        try:
            return inspect_interpreter(candidate)
        except UnsupportedPlatformError as error:
            first = first or error
    raise first or UnsupportedPlatformError("no Python interpreter was found")


def inspect_interpreter(executable: Path) -> Interpreter:
    """Ask one Python whether the server's Python backend can embed it.

    Raises:
        UnsupportedPlatformError: it cannot; with one sentence that says what to install.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and a constant script
            [executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        facts = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UnsupportedPlatformError(f"{executable} does not run as a Python: {error}") from error
    version = str(facts["version"])
    if facts["implementation"] != "cpython" or version not in PYTHON_VERSIONS:
        raise UnsupportedPlatformError(
            f"the embedded Triton needs CPython {' or '.join(PYTHON_VERSIONS)} (the NumPy 1 of "
            f"its Python backend has no wheels beyond), and {executable} is "
            f"{facts['implementation']} {version}; install one of these beside it"
        )
    folder = facts["library_folder"]
    if folder is None and not facts["loadable"]:
        raise UnsupportedPlatformError(
            f"the shared library libpython{version}.so.1.0 of {executable} was not found, and "
            f"Triton's Python backend cannot do without: install it (Debian, Ubuntu: "
            f"'apt install libpython{version}'; Fedora: 'dnf install python{version}-libs'; "
            "pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )
    return Interpreter(executable, version, Path(folder) if folder else None)
