"""Puts a real Triton server into an environment of its own, once.

Owns the folder ``CACHE/server-<python>-<digest of the pins>``: a virtual environment with the
server of the ``nvidia-pytriton`` wheel and what the sample models need. A stamp file is written
last, so a half install has none and is redone; a file lock keeps two installers apart. It must
not touch the project's own environment, and it never runs the server.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.embedded import paths, support

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how much of the whole is done (ratio; None: unknown)."""

TRITON_VERSION = "2.51.0"
WHEEL = "nvidia-pytriton==0.7.0"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_FORMAT = 1
_STAMP = "installation.json"
_TAIL_LINES = 12


class InstallError(Exception):
    """The server could not be installed; the message says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A complete server environment on disk."""

    root: Path
    python: Path
    """The interpreter of the server's environment."""
    tritonserver: Path
    backends: Path
    caches: Path
    library_folder: Path | None
    """Where libpython lies, if the loader does not find it by itself."""
    triton_version: str
    versions: Mapping[str, str]
    """What is installed in the environment: distribution → version."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables to run the server, or its interpreter, with."""
        variables = dict(os.environ)
        # These would put the user's own Python into the server's backend.
        for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONSAFEPATH"):
            variables.pop(name, None)
        venv = self.python.parent.parent
        # The stub embeds Python and finds its environment as `python3` on the PATH.
        variables["PATH"] = f"{self.python.parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
        variables["VIRTUAL_ENV"] = str(venv)
        if self.library_folder is not None:
            inherited = variables.get("LD_LIBRARY_PATH")
            libraries = [str(self.library_folder), *([inherited] if inherited else [])]
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return variables


def installed() -> Installation | None:
    """Return the installation if there is a complete one, without changing anything.

    Raises:
        UnsupportedPlatformError: the server cannot run on this machine.
    """
    support.check_machine()
    interpreter = support.find_interpreter()
    return _read(_root(interpreter), interpreter)


def install(progress: Progress) -> Installation:
    """Make sure that the server is installed, and return where.

    Does nothing where a complete installation exists; safe when two processes do it at once.

    Raises:
        UnsupportedPlatformError: the server cannot run on this machine.
        InstallError: something failed, with the tail of the failing tool's output.
    """
    support.check_machine()
    interpreter = support.find_interpreter()
    root = _root(interpreter)
    ready = _read(root, interpreter)
    if ready is not None:
        return ready
    with file_lock(root.with_name(f"{root.name}.lock"), progress):
        ready = _read(root, interpreter)  # somebody else may have done it meanwhile
        if ready is not None:
            return ready
        return _build(root, interpreter, progress)


@contextmanager
def file_lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on a file; it goes with the process, however that ends."""
    with path.open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is doing this already", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _root(interpreter: support.Interpreter) -> Path:
    """Return a folder that belongs to these pins and this Python, so that versions coexist."""
    pins = f"{_FORMAT}\n{WHEEL}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    digest = hashlib.sha256(pins.encode()).hexdigest()[:8]
    return paths.cache_folder() / f"server-{interpreter.version}-{digest}"


def _read(root: Path, interpreter: support.Interpreter) -> Installation | None:
    """Return the installation that the stamp vouches for, or None if it has to be (re)done."""
    try:
        stamp = json.loads((root / _STAMP).read_text(encoding="utf-8"))
        if stamp["format"] != _FORMAT:
            return None
        installation = _describe(root, interpreter, dict(stamp["versions"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A venv's interpreter is a link: it dangles when the Python below it is removed.
    complete = installation.tritonserver.exists() and installation.python.exists()
    return installation if complete else None


def _describe(
    root: Path, interpreter: support.Interpreter, versions: Mapping[str, str]
) -> Installation:
    venv = root / "venv"
    server = venv / f"lib/python{interpreter.version}/site-packages/pytriton/tritonserver"
    return Installation(
        root=root,
        python=venv / "bin/python",
        tritonserver=server / "bin/tritonserver",
        backends=server / "backends",
        caches=server / "caches",
        library_folder=interpreter.library_folder,
        triton_version=TRITON_VERSION,
        versions=versions,
    )


def _build(root: Path, interpreter: support.Interpreter, progress: Progress) -> Installation:
    if root.exists():
        progress("removing an unfinished installation", 0.0)
        shutil.rmtree(root)
    root.mkdir(parents=True)
    installation = _describe(root, interpreter, {})
    progress("creating the server's environment", 0.02)
    _run(
        [interpreter.executable, "-m", "venv", root / "venv"],
        "could not create a virtual environment "
        f"(Debian, Ubuntu: 'apt install python{interpreter.version}-venv')",
    )
    pip = [installation.python, "-m", "pip", "install", "--no-input", "--only-binary", ":all:"]
    hint = "check the network, the disk space and pip's settings ('pip config list')"
    progress(f"downloading Triton {TRITON_VERSION} (55 MB)", 0.15)
    # --no-deps: its dependencies serve the PyTriton library, which is not used here.
    _run([*pip, "--no-deps", WHEEL], f"pip could not install {WHEEL}; {hint}")
    progress("installing ONNX Runtime and scikit-learn", 0.4)
    _run([*pip, "-r", REQUIREMENTS], f"pip could not install the sample models' needs; {hint}")
    progress("preparing the Python backend", 0.9)
    _place_stub(installation, interpreter)
    _prove(installation)
    versions = _versions(installation)
    _write_stamp(root, {"format": _FORMAT, "triton": TRITON_VERSION, "versions": versions})
    progress("Triton is installed", 1.0)
    return _describe(root, interpreter, versions)


def _place_stub(installation: Installation, interpreter: support.Interpreter) -> None:
    """Put the stub of our Python beside the backend.

    In the wheel's own folder, because both find their libraries relative to themselves: there
    no library path has to be set that the models' own libraries would inherit.
    """
    stub = "triton_python_backend_stub"
    server = installation.backends.parent
    source = server / "python_backend_stubs" / interpreter.version / stub
    target = installation.backends / "python" / stub
    try:
        shutil.copy2(source, target)
        target.chmod(0o755)
        installation.tritonserver.chmod(0o755)
    except OSError as error:
        raise InstallError(f"the wheel {WHEEL} is not laid out as expected: {error}") from error


def _prove(installation: Installation) -> None:
    """Run what was installed, so that a missing library is found here and not at first use."""
    _run(
        [installation.python, "-c", "import numpy, onnx, onnxruntime, sklearn"],
        "the installed packages do not work together",
        installation.environment(),
    )
    # --help prints and exits 1; a server that cannot be loaded prints the loader's complaint.
    output = _run(
        [installation.tritonserver, "--help"],
        "the installed tritonserver does not start",
        installation.environment(),
        accept=(0, 1),
    )
    if "--model-repository" not in output:
        raise InstallError(f"the installed tritonserver does not start: {_tail(output)}")


def _versions(installation: Installation) -> dict[str, str]:
    output = _run(
        [installation.python, "-m", "pip", "list", "--format=json"],
        "pip could not list what it installed",
        merge=False,
    )
    packages: list[dict[str, Any]] = json.loads(output)
    return {str(package["name"]): str(package["version"]) for package in packages}


def _write_stamp(root: Path, stamp: Mapping[str, Any]) -> None:
    temporary = root / f".{_STAMP}.new"
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(stamp, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(root / _STAMP)


def _run(
    command: list[Any],
    failure: str,
    environment: Mapping[str, str] | None = None,
    *,
    accept: tuple[int, ...] = (0,),
    merge: bool = True,
) -> str:
    """Run a command to its end and return its output.

    Raises:
        InstallError: it could not be run or failed; ``failure`` and the tail of its output.
    """
    variables = dict(os.environ if environment is None else environment)
    variables.pop("PYTHONHOME", None)
    variables.pop("PYTHONPATH", None)
    variables.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    # Where packages come from is the user's choice; where they go is ours.
    for name in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV"):
        variables.pop(name, None)
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands on our own paths
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=variables,
            check=False,
        )
    except OSError as error:
        raise InstallError(f"{failure}: {error}") from error
    if done.returncode not in accept:
        raise InstallError(f"{failure}:\n{_tail(done.stdout)}")
    return done.stdout


def _tail(text: str) -> str:
    return "\n".join(deque((line for line in text.splitlines() if line.strip()), _TAIL_LINES))
