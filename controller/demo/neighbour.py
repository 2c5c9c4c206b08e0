"""The device of the batch scenario, and the neighbour who comes by night to share it.

The device is one processor: the engines run on it, and nothing else of the demo does. The
neighbour is three processes that take turns in short bursts there: they become more busy over some
seconds, until an engine gets a third of it; more, where others use the device already. Owns both;
it must not know what the load is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from controller.demo import processes
from controller.demo.busy import EVERY_S

PROCESSES = 3
"""Each in a session of its own: where the kernel shares out by sessions each counts."""
RISES_S = 3.0
"""From the beginning of each time until it is as busy as it gets."""
_PATIENCE_S = 2.0


class DeviceError(Exception):
    """This machine has no processor to spare for the scenario; the message says why."""


@contextmanager
def device() -> Iterator[int]:
    """Keep this process, and all that it starts from here on, off one processor; yield which.

    Raises:
        DeviceError: there is only one, or they cannot be chosen here.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise DeviceError("this scenario needs Linux: engines and neighbour are put on one core")
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        raise DeviceError(
            "this scenario needs two processor cores, one for the engines and their neighbour and "
            "one for the rest; this process may use one. `governor demo` needs no second one"
        )
    chosen = max(before)
    try:
        os.sched_setaffinity(0, {chosen})  # as the engines will
        os.sched_setaffinity(0, before - {chosen})
    except OSError as error:
        raise DeviceError(
            f"this scenario puts its processes on cores of their own, which is not allowed here: "
            f"{error.strerror}"
        ) from error
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


class Neighbour:
    """Who is busy on a processor at given times; a context manager that ends it.

    Its processes wait, without using the processor, until `begin`.
    """

    def __init__(self, core: int, count: int = PROCESSES, *, rises_s: float = RISES_S) -> None:
        self._core, self._rises_s = core, rises_s
        self._spans_s: list[tuple[float, float]] = []
        self._processes = [
            processes.start(
                processes.python_module("controller.demo.busy"),
                death_signal=signal.SIGKILL,
                stdin=subprocess.PIPE,
                output=subprocess.PIPE,
                errors=subprocess.DEVNULL,
            )
            for _ in range(count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            processes.end(process, patience_s=0)

    def begin(self, spans_s: Sequence[tuple[float, float]]) -> None:
        """Say when it is busy: starts and ends on CLOCK_MONOTONIC, ascending."""
        self._spans_s = list(spans_s)
        for index, process in enumerate(self._processes):
            phase_s = EVERY_S * index / len(self._processes)
            job = {
                "core": self._core,
                "spans_s": self._spans_s,
                "phase_s": phase_s,
                "rises_s": self._rises_s,
            }
            assert process.stdin is not None  # noqa: S101 - asked for above
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()

    def shares(self) -> tuple[float, ...]:
        """Return what it got of the processor in each span, once all are over. 0 to 1.

        Raises:
            DeviceError: one of its processes failed.
        """
        took_s = []
        for process in self._processes:
            out, _ = process.communicate(timeout=_PATIENCE_S)
            if process.returncode != 0 or not out:
                raise DeviceError(f"the neighbour ended with status {process.returncode}")
            took_s.append(json.loads(out)["took_s"])
        return tuple(
            sum(of) / (end_s - start_s)
            for of, (start_s, end_s) in zip(zip(*took_s, strict=True), self._spans_s, strict=True)
        )
