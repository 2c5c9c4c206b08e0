"""Recorded load: counts per step or single requests, scaled to a ladder, drawn as arrivals.

Owns the trace formats and the scaling. Everything random comes from a seed. It must not know
policies.

Formats (CSV): `second,requests`, one row a second (a name that ends in `_60S` or `_600S`: one row
a step of so many seconds); `t_s,input_tokens,output_tokens`, one row a request. Inside a step
arrivals are drawn as a Poisson process: what is known is the count, not the process.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LONGEST_S = 4e7  # a year and more
_STEP = re.compile(r"_(\d+)S$")
_COUNTS = ["second", "requests"]
_EVENTS = ["t_s", "input_tokens", "output_tokens"]


class TraceFormatError(Exception):
    """A trace, or a part of it, that cannot be used; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests a second, step by step."""

    name: str
    rate_rps: Floats  # [steps]
    step_s: float

    @property
    def duration_s(self) -> float:
        """Return the length of the trace."""
        return len(self.rate_rps) * self.step_s

    def window(self, from_s: float, to_s: float) -> Trace:
        """Return a part of the trace. Raises TraceFormatError where it is empty."""
        first, last = int(from_s // self.step_s), math.ceil(to_s / self.step_s)
        part = self.rate_rps[first:last]
        if len(part) == 0 or from_s < 0.0:
            raise TraceFormatError(
                f"{self.name} has {self.duration_s:g} s: no {from_s:g}:{to_s:g} in it"
            )
        return Trace(self.name, part, self.step_s)

    def scaled(self, peak_rps: float, most_rps: float) -> Trace:
        """Return the trace with its 99th percentile at one rate, and nothing above another."""
        busy = float(np.quantile(self.rate_rps, 0.99))
        highest = float(self.rate_rps.max())
        if highest <= 0.0:
            raise TraceFormatError(f"{self.name} has no requests in this window")
        factor = most_rps / highest
        if busy > 0.0:
            factor = min(factor, peak_rps / busy)
        return Trace(self.name, self.rate_rps * factor, self.step_s)

    def arrivals_s(self, seed: int) -> Floats:
        """Draw the times of all requests, ascending."""
        rng = np.random.default_rng(seed)
        counts = rng.poisson(self.rate_rps * self.step_s)
        starts = np.repeat(np.arange(len(counts)) * self.step_s, counts)
        return np.sort(starts + rng.random(len(starts)) * self.step_s)


def load_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        TraceFormatError: it cannot be read, or a line is not what the header says.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceFormatError(f"{path}: {error}") from error
    header = rows[0] if rows else []
    if header == _COUNTS:
        return _from_counts(path, rows[1:])
    if header == _EVENTS:
        return _from_events(path, rows[1:])
    raise TraceFormatError(
        f"{path}:1: expected `{','.join(_COUNTS)}` or `{','.join(_EVENTS)}`, found {header!r}"
    )


def _from_counts(path: Path, rows: list[list[str]]) -> Trace:
    found = _STEP.search(path.stem)
    step_s = float(found[1]) if found else 1.0
    counts = [_number(path, line, row, 1) for line, row in enumerate(rows, start=2)]
    if not counts:
        raise TraceFormatError(f"{path}: no rows")
    return Trace(path.stem, np.array(counts) / step_s, step_s)


def _from_events(path: Path, rows: list[list[str]]) -> Trace:
    times_s = [_number(path, line, row, 0) for line, row in enumerate(rows, start=2)]
    if not times_s:
        raise TraceFormatError(f"{path}: no rows")
    if max(times_s) > _LONGEST_S:
        raise TraceFormatError(f"{path}: longer than {_LONGEST_S:g} s; are its times in seconds?")
    counts = np.bincount(np.floor(times_s).astype(np.int64))
    return Trace(path.stem, counts.astype(np.float64), 1.0)


def _number(path: Path, line: int, row: list[str], column: int) -> float:
    try:
        value = float(row[column])
    except (IndexError, ValueError):
        value = math.nan
    if not 0.0 <= value < 1e9:
        raise TraceFormatError(f"{path}:{line}: {','.join(row)!r} has no number where one belongs")
    return value
