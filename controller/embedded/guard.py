"""The process between a parent and its tritonserver: nothing outlives it.

Run as a script (``python -I -S guard.py``), with the standard library only, so that it costs a
few megabytes; its specification is one line of JSON on standard input. It starts the server in
a process group of its own, reports its pid on standard output, and ends everything (server,
Python stubs, shared memory) when the server ends, when it is told to (SIGTERM, SIGINT), or when
the parent is gone.

Why a process and not ``PR_SET_PDEATHSIG`` alone: that signal comes when the *thread* that
forked ends, not the process; it reaches only the server, whose stubs then linger; and nobody is
left to remove the shared memory. The parent's end is seen here as end of file on standard
input, which also holds for ``kill -9``. The death signal is the second line: the server gets it
if this guard itself is killed.

It must not know the governor: its whole world is that specification.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STUB_GRACE_S = 1.0


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the guard dies; runs in the child before its exec."""
    # Safe here, as the guard has one thread and the library is loaded already.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # the guard died between fork and prctl
        os._exit(1)


_LIBC = ctypes.CDLL(None, use_errno=True)


def main(spec: dict[str, Any]) -> int:
    """Start the server, wait for the first reason to end, end everything.

    Returns:
        The server's exit status as a shell would give it (128 + signal).
    """
    # Stubs whose server was killed become children of the guard, so it can wait for them.
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    with Path(spec["log_file"]).open("ab") as log:
        server = subprocess.Popen(  # noqa: S603 - the parent's own command
            spec["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=spec["environment"],
            process_group=0,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    try:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(f"{server.pid}\n")
            sys.stdout.flush()
        _wait_for_a_reason(server, wake_read)
        if server.poll() is None:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(spec["stop_timeout_s"])
    finally:
        _end_group(server)
        for region in Path("/dev/shm").glob(f"{spec['shm_prefix']}*"):  # noqa: S108 - by its name
            region.unlink(missing_ok=True)
    status = server.wait()
    return 128 - status if status < 0 else status


def _read_specification() -> dict[str, Any]:
    """Read one line, unbuffered: what follows on the pipe is only its end."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 65536)
        if not part:
            sys.exit(1)  # the parent is gone already
        line += part
    specification: dict[str, Any] = json.loads(line)
    return specification


def _wait_for_a_reason(server: "subprocess.Popen[bytes]", wake: int) -> None:
    """Return when the server has ended, a signal asks for it, or the parent is gone."""
    while server.poll() is None:
        readable, _, _ = select.select([sys.stdin.fileno(), wake], [], [])
        if wake in readable:
            numbers = set(os.read(wake, 4096))
            if numbers - {signal.SIGCHLD}:
                return
        if sys.stdin.fileno() in readable and not os.read(sys.stdin.fileno(), 4096):
            return


def _end_group(server: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the server's process group and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + _STUB_GRACE_S
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(_read_specification()))
