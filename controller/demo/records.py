"""What the load generator wrote down: one record per request.

Owns the shape of the records and their file. It must not judge them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK, DEADLINE, ERROR, LOST = 0, 1, 2, 3
"""How a request ended: answered, not in time, refused by the server, or the connection broke."""


@dataclass(frozen=True, slots=True)
class Records:
    """Every request of one run; arrays of one length, in the order of intended sending."""

    due_s: NDArray[np.float64]  # intended send time; below 0: warm-up
    rows: NDArray[np.int64]
    late_ms: NDArray[np.float64]  # how long after the intended time it was really sent
    latency_ms: NDArray[np.float64]  # from the intended send time; NaN: not answered
    status: NDArray[np.int8]
    variant: NDArray[np.int16]  # number of the variant that answered; -1: none
    correct: NDArray[np.int16]  # rows that were read right
    zero_s: float  # CLOCK_MONOTONIC at due_s = 0
    errors: Mapping[str, int]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Return which requests got an answer within their deadline."""
        return np.equal(self.status, OK)

    @property
    def answered_at_s(self) -> NDArray[np.float64]:
        """Return when each answer came, on the scale of `due_s`; NaN: never."""
        return self.due_s + self.latency_ms / 1e3

    def counted(self) -> Records:
        """Return the records without the warm-up."""
        keep = self.due_s >= 0
        return Records(
            due_s=self.due_s[keep],
            rows=self.rows[keep],
            late_ms=self.late_ms[keep],
            latency_ms=self.latency_ms[keep],
            status=self.status[keep],
            variant=self.variant[keep],
            correct=self.correct[keep],
            zero_s=self.zero_s,
            errors=self.errors,
        )


def load(path: Path) -> Records:
    """Read the file that the generator wrote.

    Raises:
        OSError: it cannot be read.
    """
    with np.load(path) as data:
        arrays: dict[str, Any] = {name: data[name] for name in data.files}
    return Records(
        due_s=arrays["due_s"],
        rows=arrays["rows"],
        late_ms=arrays["late_ms"],
        latency_ms=arrays["latency_ms"],
        status=arrays["status"],
        variant=arrays["variant"],
        correct=arrays["correct"],
        zero_s=float(arrays["zero_s"]),
        errors=json.loads(str(arrays["errors"])),
    )
