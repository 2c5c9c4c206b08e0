"""Runs a tutorial as a reader would: every command of it, in order, in an empty folder.

Owns how the text is read and how terminals are played. A block of `sh` is run as it stands; the
comment before it says what a reader sees without being told:

    <!-- run: shows="..." -->          its output matches this; otherwise only its exit codes count
    <!-- run: ends=3 -->               its last command ends with this code, not with 0
    <!-- run: terminal=NAME wait="..." -->   it stays in the foreground of another terminal, which
                                       says this before the reader goes on
    <!-- run: net=yes -->              it downloads
    <!-- press: NAME -->               Ctrl-C in that terminal
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PARTS = re.compile(
    r"(?:<!-- run: (?P<run>.*?) -->\n)?```sh\n(?P<code>.*?)```|<!-- press: (?P<press>\w+) -->",
    re.DOTALL,
)
_BLOCK_S = 420.0  # a first install trains the models
_WAIT_S = 90.0
# A failed command is told, whatever comes after it in the block.
_SHELL = """\
set -E; trap 'echo "FAILED ($?): $BASH_COMMAND"' ERR
source {state}
{code}
ended=$?; trap - ERR; export -p > {state}; exit $ended
"""


@dataclass(frozen=True, slots=True)
class Step:
    """A block to run, or a key to press."""

    code: str
    press: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def read(text: str) -> list[Step]:
    """Return the steps of a tutorial, in order."""
    steps = []
    for part in _PARTS.finditer(text):
        words = shlex.split(part["run"] or "")
        options = dict(word.split("=", 1) for word in words)
        assert set(options) <= {"shows", "ends", "terminal", "wait", "net"}, options
        steps.append(Step(part["code"] or "", part["press"] or "", options))
    assert text.count("```sh\n") == sum(1 for step in steps if step.code)
    return steps


class Reader:
    """Somebody who follows the steps."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], apart: Sequence[str] = ()
    ) -> None:
        """Begin in a folder; `apart` runs what needs no download where nobody else is."""
        self._folder = folder
        self._environment = dict(environment)
        self._apart = list(apart)
        self._state = folder / ".environment"
        self._state.touch()
        self._terminals: dict[str, subprocess.Popen[bytes]] = {}
        self.said = ""

    def do(self, step: Step) -> None:
        """Do one step; an assertion says what was not as the tutorial says."""
        if step.press:
            self._interrupt(step.press)
        elif "terminal" in step.options:
            self._open(step)
        else:
            self._run(step)

    def _run(self, step: Step) -> None:
        apart = [] if step.options.get("net") else self._apart
        code = _SHELL.format(state=shlex.quote(str(self._state)), code=step.code)
        done = subprocess.run(
            [*apart, "bash", "-c", code],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BLOCK_S,
            check=False,
        )
        told = f"{step.code}\n--- said ---\n{done.stdout}"
        self.said += told
        ends = int(step.options.get("ends", "0"))
        assert done.returncode == ends, told
        assert ends or "FAILED (" not in done.stdout, told
        shows = step.options.get("shows")
        assert shows is None or re.search(shows, done.stdout, re.MULTILINE), f"{shows!r}: {told}"

    def _open(self, step: Step) -> None:
        name = step.options["terminal"]
        log = self._folder / f".{name}.log"
        with log.open("wb") as output:
            self._terminals[name] = subprocess.Popen(
                [*self._apart, "bash", "-c", f"{step.code}\ntrue"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ends_s = time.monotonic() + _WAIT_S
        while step.options["wait"] not in (said := log.read_text(errors="replace")):
            assert self._terminals[name].poll() is None, f"{step.code}\nended: {said}"
            assert time.monotonic() < ends_s, f"{step.code}\nsaid only: {said}"
            time.sleep(0.2)

    def _interrupt(self, name: str) -> None:
        """Press Ctrl-C: the terminal's whole foreground gets the signal."""
        os.killpg(self._terminals[name].pid, signal.SIGINT)
        self._terminals[name].wait(60)

    def leave(self) -> None:
        """Close what terminals are still open, as somebody who gives up."""
        for terminal in self._terminals.values():
            if terminal.poll() is None:
                os.killpg(terminal.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    terminal.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(terminal.pid, signal.SIGKILL)
            terminal.wait()


@contextlib.contextmanager
def network_of_its_own() -> Iterator[list[str]]:
    """Yield what to put before a command so that it has a loopback for itself.

    The usual ports are then free, whatever else runs on this machine. Where this is not allowed
    (no root), yield nothing.
    """
    script = (
        "import ctypes, fcntl, socket, struct, time\n"
        "assert ctypes.CDLL(None).unshare(0x40000000) == 0\n"  # CLONE_NEWNET
        "up = struct.pack('16sh22x', b'lo', 0x41)\n"  # IFF_UP | IFF_RUNNING
        "fcntl.ioctl(socket.socket(), 0x8914, up)\n"  # SIOCSIFFLAGS
        "print('up', flush=True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen(
        ["python3", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as holder:
        try:
            assert holder.stdout is not None
            up = holder.stdout.readline() == b"up\n"
            # Through a shim, python3 may have become another process of the same number.
            yield ["nsenter", "--target", str(holder.pid), "--net"] if up else []
        finally:
            holder.kill()
