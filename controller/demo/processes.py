"""Processes that the demo starts: tied to it, ended in order, measured.

Owns how a child is started and stopped. It must not know what the child is for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from controller.demo import leash


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def start(
    command: Sequence[str],
    *,
    death_signal: signal.Signals,
    output: IO[bytes] | int,
    errors: IO[bytes] | int,
    stdin: int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a command in a session of its own that gets a signal when this process ends.

    Ctrl-C in a terminal does not reach it: whoever started it ends it, in order.
    """
    script = str(Path(leash.__file__))
    return subprocess.Popen(  # noqa: S603 - our own commands
        [sys.executable, "-I", "-S", script, str(os.getpid()), str(int(death_signal)), *command],
        stdin=stdin,
        stdout=output,
        stderr=errors,
        env=None if environment is None else dict(environment),
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], *, patience_s: float) -> None:
    """End a process and its group: asked first if there is patience, then killed."""
    try:
        if process.poll() is None and patience_s > 0:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
    finally:
        # What it started is in its group, and may be there still.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and all its children cost over a stretch of time."""

    cpu_ratio: float  # of one core
    rss_bytes: int  # the most that was seen


class Meter:
    """Measures a process with its children, those included that come and go."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._rss_bytes = 0
        self._start_s = time.monotonic()
        self._start_cpu_s = self._cpu_s()

    def restart(self) -> None:
        """Begin to measure now."""
        self._rss_bytes = 0
        self._start_s = time.monotonic()
        self._start_cpu_s = self._cpu_s()

    def sample(self) -> None:
        """Look at the memory, as often as one likes."""
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        self._rss_bytes = max(self._rss_bytes, total)

    def usage(self) -> Usage:
        """Return what it cost since the start."""
        self.sample()
        span_s = max(time.monotonic() - self._start_s, 1e-6)
        return Usage((self._cpu_s() - self._start_cpu_s) / span_s, self._rss_bytes)

    def _family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def _cpu_s(self) -> float:
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                # What children that have ended used is their parent's to tell.
                total += times.user + times.system + times.children_user + times.children_system
        return total
