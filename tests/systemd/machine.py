"""A machine with a real systemd, whatever this one's PID 1 is.

An overlay of this machine's root is booted with systemd-nspawn, with a network of its own; nothing
in it reaches the disk. There the governor is installed as an operator does it: from a wheel of this
checkout into /opt/triton-governor, then by its own `install-service`. Only its libraries are those
of this environment.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = "triton-governor.service"
GOVERNOR = "/opt/triton-governor/bin/governor"
POLICY = """\
version: 1
triton: {grpc: "127.0.0.1:1", metrics: "http://127.0.0.1:1/metrics"}
gpu: {source: none}
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    variants:
      wide: {model: digits_wide, quality: 0.927}
      narrow: {model: digits_narrow, quality: 0.884}
"""
# basic.target: what this machine has enabled beyond it is not started. No registration with a
# systemd outside, which may not be there. A network of its own, so that 127.0.0.1 is its own too.
NSPAWN = (
    *("--boot", "--quiet", "--machine=governor", "--register=no", "--keep-unit"),
    *("--link-journal=no", "--console=pipe", "--private-network"),
)
# Seconds where the unit has tens of them.
DROP_IN = """\
[Service]
WatchdogSec=4s
TimeoutAbortSec=2s
RestartSec=500ms
"""
# Where this environment's Python and libraries are shown: not in a home, which services do not see.
PYTHON, LIBRARIES, WHEELS = "/opt/python", "/opt/libraries", "/opt/wheels"


class Machine:
    """The booted machine."""

    def __init__(self, upper: Path, leader: int) -> None:
        self.upper = upper  # what was written in it
        self.leader = leader

    def run(
        self, *command: str, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", *command],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            input=given,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-ask-password", *words, check=check).stdout.strip()

    def governor(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the `governor` that is installed in it, as root."""
        return self.run(GOVERNOR, *words, check=check)

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return a property of the service."""
        return self.systemctl("show", "--value", "--property", name, unit)

    def log(self, unit: str = UNIT, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}", *words).stdout

    def until(self, holds: Callable[[], bool], within_s: float = 30.0) -> None:
        ends_s = time.monotonic() + within_s
        while not holds():
            state = self.systemctl("status", "--no-pager", "--lines=40", UNIT, check=False)
            assert time.monotonic() < ends_s, f"{state}\n{self.log()[-4000:]}"
            time.sleep(0.1)

    def write(self, path: str, text: str, mode: str = "644", group: str = "root") -> None:
        """Put a file there as an editor does: as a whole."""
        self.run(
            "sh", "-ec", 'mkdir -p "${1%/*}"; cat >"$1.new"; chgrp "$3" "$1.new"; '
            'chmod "$2" "$1.new"; mv "$1.new" "$1"', "sh", path, mode, group, given=text,
        )  # fmt: skip

    def write_policy(self, text: str) -> None:
        """Replace the policy."""
        self.write("/etc/triton-governor/policy.yaml", text, "640", "triton-governor")

    def files(self) -> set[str]:
        """Return what was written below /etc, /usr and /var/lib since the machine is there."""
        return {
            str(path.relative_to(self.upper))
            for folder in ("etc", "usr", "var/lib")
            for path in (self.upper / folder).rglob("*")
            if path.is_file() or path.is_symlink()
        }


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    for program in ("systemd-nspawn", "nsenter", "systemd-analyze"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian, Ubuntu: apt install systemd-container)"
    return None


@contextlib.contextmanager
def _mounted(kind: str, where: Path, options: str) -> Iterator[None]:
    done = subprocess.run(
        ["mount", "-t", kind, kind, "-o", options, where],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"this machine does not let us mount {kind}: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def _shown_folders() -> dict[Path, str]:
    """Return which folders of ours are shown where: Python, unless it is the system's, and more."""
    shown = {Path(sysconfig.get_path("purelib")): LIBRARIES}
    if Path(sys.base_prefix) != Path("/usr"):
        shown[Path(sys.base_prefix).resolve()] = PYTHON
    return shown


def _build_wheel(folder: Path) -> None:
    """Build the wheel of this checkout, from a copy: a build may write beside what it reads."""
    copy = folder / "checkout"
    copy.mkdir(parents=True)
    for name in ("controller", "packaging", "policies", "systemd"):
        shutil.copytree(
            REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    wheel = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", *wheel, "-w", folder, copy], check=True)
    shutil.rmtree(copy)


def _install(machine: Machine) -> None:
    """Make an environment in /opt and install the wheel into it."""
    system = Path(sys.base_prefix) == Path("/usr")
    python = f"{'/usr' if system else PYTHON}/bin/python{sysconfig.get_python_version()}"
    # A Python that has moved finds its shared library by its old place, or not at all.
    machine.write("/etc/ld.so.conf.d/python.conf", f"{PYTHON}/lib\n")
    machine.run("ldconfig")
    machine.run(python, "-m", "venv", "--without-pip", "/opt/triton-governor")
    packages = f"/opt/triton-governor/lib/python{sysconfig.get_python_version()}/site-packages"
    machine.write(f"{packages}/libraries.pth", f"{LIBRARIES}\n")
    install = ("install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")
    machine.run(
        "sh",
        "-ec",
        f"exec /opt/triton-governor/bin/python -m pip {' '.join(install)} {WHEELS}/*.whl",
    )


@contextlib.contextmanager
def boot(
    folder: Path, furnish: Callable[[Path], None] | None = None, size: str = "256m"
) -> Iterator[Machine]:
    """Boot a machine whose files lie in an empty folder; skip the test where that cannot be.

    `furnish` puts into its root what it is to have (this checkout's wheel, installed in /opt);
    `size` bounds what may be written there.
    """
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)
    scratch, root = folder / "scratch", folder / "root"
    with contextlib.ExitStack() as stack:
        scratch.mkdir()
        root.mkdir()
        stack.enter_context(_mounted("tmpfs", scratch, f"size={size},mode=755"))
        upper, work = scratch / "upper", scratch / "work"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        stack.enter_context(_mounted("overlay", root, layers))
        (root / "etc/machine-id").write_text("")
        shown = _shown_folders()
        if furnish is None:
            _build_wheel(folder / "wheels")
            shown[folder / "wheels"] = WHEELS
        else:
            furnish(root)
        binds = [f"--bind-ro={path}:{where}" for path, where in shown.items()]
        log = stack.enter_context((folder / "console.log").open("wb"))
        booted = subprocess.Popen(
            ["systemd-nspawn", "-D", root, *NSPAWN, *binds, "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            machine = Machine(upper, _leader(booted, folder / "console.log"))
            if furnish is None:
                _install(machine)
            yield machine
        finally:
            booted.terminate()  # asks the machine to power off
            try:
                booted.wait(30)
            except subprocess.TimeoutExpired:
                booted.kill()
                booted.wait()


def _leader(booted: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the machine's PID 1 has started all it should, and return our number for it."""
    ends_s = time.monotonic() + 60
    while time.monotonic() < ends_s:
        if booted.poll() is not None:
            pytest.skip(f"systemd-nspawn cannot boot here: {log.read_text(errors='replace')}")
        for child in psutil.Process(booted.pid).children():
            state = subprocess.run(
                ["nsenter", "-t", str(child.pid), "-a", "systemctl", "is-system-running"],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            if state.stdout.strip() in {"running", "degraded"}:
                return child.pid
        time.sleep(0.2)
    raise AssertionError(f"the machine did not come up: {log.read_text(errors='replace')}")
