"""Load on a Triton, from a process of its own: start it, follow it, read what it measured.

Owns the generator's process and its files. What is sent is `scenario`'s, how is `generator`'s.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from controller.demo import processes, records
from controller.demo.records import Records
from controller.demo.scenario import Schedule, Shape
from controller.demo.wire import Tensors

DEADLINE_S = 2.0
"""A request that is not answered by then has failed."""
_PATIENT_S = 15.0
"""The same while it is measured what goes through: full queues of slow batches are meant there."""


class LoadError(Exception):
    """The load generator ended early; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked, and with what."""

    address: str  # host:port, gRPC
    model: str
    tensors: Tensors
    pages: Path  # .npz with `pages` and `labels`
    objective_ms: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What the generator says of the last second, four times a second."""

    time_s: float  # on the schedule's scale
    sent: int
    failed: int
    in_flight: int
    rate_rps: float
    done: int
    misses: int
    p50_ms: float | None
    p99_ms: float | None
    variant: int  # of the newest answer; -1: none


@dataclass(frozen=True, slots=True)
class Throughput:
    """What goes through when there is always something to do."""

    requests_rps: float
    rows_rps: float


def write_pages(path: Path, pages: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Put the pages to send where a generator finds them."""
    np.savez(path, pages=pages, labels=labels)


class LoadRun:
    """One run of a schedule; a context manager that ends the generator.

    Iterate over it to follow the load to its end, then take `records`.
    """

    def __init__(self, target: Target, schedule: Schedule, folder: Path) -> None:
        self._out = folder / "records.npz"
        self._out.unlink(missing_ok=True)
        path = folder / "schedule.npz"
        np.savez(path, due_s=schedule.due_s, rows=schedule.rows, page=schedule.page)
        self._process = _start(
            target,
            {
                "kind": "open",
                "schedule": str(path),
                "out": str(self._out),
                "sizes": sorted({int(rows) for rows in schedule.rows}),
            },
        )

    @property
    def pid(self) -> int:
        """The generator's process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        processes.end(self._process, patience_s=0)  # it owns nothing to put in order

    def __iter__(self) -> Iterator[Progress]:
        assert self._process.stdout is not None  # noqa: S101 - asked for in _start
        for line in self._process.stdout:
            yield Progress(**json.loads(line))
        self._check()

    def records(self) -> Records:
        """Return the records of a run that has ended.

        Raises:
            LoadError: the generator ended without them.
        """
        self._check()
        return records.load(self._out)

    def _check(self) -> None:
        # It may have written its records and still be on its way out.
        self._process.wait()
        assert self._process.stderr is not None  # noqa: S101 - asked for in _start
        _check(self._process, self._process.stderr.read())


def measure(
    target: Target,
    *,
    duration_s: float,
    shape: Shape,
    concurrency: int = 8,
    seed: int = 0,
) -> Throughput:
    """Measure what goes through with so many requests always in flight.

    Raises:
        LoadError: a request failed, or nobody answers.
    """
    process = _start(
        target,
        {
            "kind": "closed",
            "concurrency": concurrency,
            "duration_s": duration_s,
            "seed": seed,
            "sizes": list(shape.rows),
            "row_weights": list(shape.row_weights),
            "deadline_s": _PATIENT_S,
        },
    )
    try:
        out, words = process.communicate(timeout=duration_s + 2 * _PATIENT_S)
        _check(process, words)
    except subprocess.TimeoutExpired as error:
        raise LoadError("the load generator hangs") from error
    finally:
        processes.end(process, patience_s=0)
    return Throughput(**json.loads(out))


def _start(target: Target, job: Mapping[str, Any]) -> subprocess.Popen[str]:
    process = processes.start(
        processes.python_module("controller.demo.generator"),
        death_signal=signal.SIGKILL,
        stdin=subprocess.PIPE,
        output=subprocess.PIPE,
        errors=subprocess.PIPE,
    )
    line = json.dumps(
        {
            "deadline_s": DEADLINE_S,
            **job,
            "address": target.address,
            "model": target.model,
            "tensors": asdict(target.tensors),
            "pages": str(target.pages),
            "objective_ms": target.objective_ms,
        }
    )
    assert process.stdin is not None  # noqa: S101 - asked for above
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BaseException:
        processes.end(process, patience_s=0)
        raise
    return process


def _check(process: subprocess.Popen[str], words: str) -> None:
    if process.returncode != 0:
        last = words.strip().splitlines()[-1:] or [f"status {process.returncode}"]
        raise LoadError(f"the load generator failed: {last[0]}")
