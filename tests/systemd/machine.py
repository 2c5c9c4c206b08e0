"""A machine with a real systemd, whatever this one's PID 1 is.

An overlay of this machine's root is booted with systemd-nspawn, with a network of its own; nothing
in it reaches the disk. The service runs this checkout, in this environment.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = "triton-governor.service"
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
# What the service must see although homes are hidden from it and /tmp is its own: in a
# developer's checkout, unlike under /opt, the program lies there. And seconds where the unit has
# tens of them.
DROP_IN = """\
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={paths}
WatchdogSec=4s
TimeoutAbortSec=2s
RestartSec=500ms
"""


class Machine:
    """The booted machine."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", *command],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-ask-password", *words, check=check).stdout.strip()

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.systemctl("show", "--value", "--property", name, UNIT)

    def log(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", UNIT).stdout

    def until(self, holds: Callable[[], bool], within_s: float = 30.0) -> None:
        ends_s = time.monotonic() + within_s
        while not holds():
            state = self.systemctl("status", "--no-pager", "--lines=40", UNIT, check=False)
            assert time.monotonic() < ends_s, f"{state}\n{self.log()[-4000:]}"
            time.sleep(0.1)

    def write_policy(self, text: str) -> None:
        """Replace the policy as an editor does."""
        self.run(
            "sh", "-c", "cat > /etc/triton-governor/new <<'END'\n" + text + "END\n"
            "chgrp triton-governor /etc/triton-governor/new; chmod 640 /etc/triton-governor/new; "
            "mv /etc/triton-governor/new /etc/triton-governor/policy.yaml",
        )  # fmt: skip


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


def _program_folders() -> list[Path]:
    """Return what must be there for this environment's Python to run this checkout."""
    return sorted({REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()})


def _furnish(root: Path) -> None:
    """Put the unit, its user, a policy and the program where an installation would."""
    (root / "etc/machine-id").write_text("")
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
        passwd.write("triton-governor:x:64999:64999::/:/usr/sbin/nologin\n")
        group.write("triton-governor:x:64999:\n")
    units = root / "etc/systemd/system"
    shutil.copy(REPOSITORY / "systemd" / UNIT, units / UNIT)
    shown = " ".join(map(str, _program_folders()))
    (units / f"{UNIT}.d").mkdir()
    (units / f"{UNIT}.d" / "test.conf").write_text(DROP_IN.format(paths=shown))
    program = root / "opt/triton-governor/bin/governor"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {Path(sys.prefix) / "bin/governor"} "$@"\n')
    program.chmod(0o755)
    folder = root / "etc/triton-governor"
    folder.mkdir(exist_ok=True)
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "policy.yaml").chmod(0o644)


@contextlib.contextmanager
def boot(
    folder: Path, furnish: Callable[[Path], None] | None = None, size: str = "256m"
) -> Iterator[Machine]:
    """Boot a machine whose files lie in an empty folder; skip the test where that cannot be.

    `furnish` puts into its root what it is to have (this checkout as a service); `size` bounds
    what may be written there.
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
        (furnish or _furnish)(root)
        binds = [f"--bind-ro={path}" for path in _program_folders()]
        log = stack.enter_context((folder / "console.log").open("wb"))
        booted = subprocess.Popen(
            ["systemd-nspawn", "-D", root, *NSPAWN, *binds, "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Machine(root, _leader(booted, folder / "console.log"))
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
