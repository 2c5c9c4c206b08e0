"""Rows to measure with, from a file.

Owns the two formats, NumPy's npz and JSON lines, and the choice of a sample. It must not send
anything.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LABELS: Final = ("labels", "label")
_EXPECTED: Final = "expected"
_MOST_LINE_BYTES: Final = 64 * 1024 * 1024


class DataError(Exception):
    """A file that cannot be measured with; the text says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is sent, and what is expected of the answers. Every array has a row for each."""

    inputs: Mapping[str, NDArray[Any]]  # by the file's own names
    labels: NDArray[Any] | None = None
    expected: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def only(self, inputs: Mapping[str, str]) -> Rows:
        """Return what goes to a model.

        Args:
            inputs: the file's name of each of the model's inputs.

        Raises:
            DataError: an input is missing, or has not as many rows as the rest.
        """
        for name, key in inputs.items():
            if key not in self.inputs:
                has = ", ".join(self.inputs) or "none"
                raise DataError(
                    f"no data for the input {name!r}: the file has {has}; see --input {name}=KEY"
                )
        chosen = {name: self.inputs[key] for name, key in inputs.items()}
        others = {"labels": self.labels, "expected": self.expected, "groups": self.groups}
        counts = {name: len(values) for name, values in chosen.items()}
        counts |= {name: len(values) for name, values in others.items() if values is not None}
        if len(set(counts.values())) > 1 or not min(counts.values(), default=0):
            told = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no input"
            raise DataError(f"every array needs the same number of rows, and some: {told}")
        return replace(self, inputs=chosen)

    def take(self, places: NDArray[np.intp]) -> Rows:
        """Return some of the rows."""

        def some(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[places]

        return replace(
            self,
            inputs={name: values[places] for name, values in self.inputs.items()},
            labels=some(self.labels),
            expected=some(self.expected),
            groups=some(self.groups),
        )


def read_rows(path: Path, *, labels: str | None = None, group: str | None = None) -> Rows:
    """Return the rows of a file.

    Args:
        path: .npz with an array for each input, or JSON lines `{"inputs": {...}, "label": 3}`.
        labels: the key of the labels; None: `labels` or `label`, where there is one.
        group: the key of what rows were made from; None: each row stands for itself.

    Raises:
        DataError: it cannot be read, or its rows do not fit.
    """
    try:
        found = _npz(path) if path.suffix == ".npz" else _lines(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return _sort_out(path, found, labels, group)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files}
    for name, values in found.items():
        if values.ndim == 0:
            raise DataError(f"{path}: {name} is a single value, not an array of rows")
    return found


def _lines(path: Path) -> dict[str, NDArray[Any]]:
    columns: dict[str, list[Any]] = {}
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE_BYTES), b""), start=1):
            if not line.strip():
                continue
            fields = _line(path, number, line)
            for name, value in fields.items():
                columns.setdefault(name, []).append(value)
            count += 1
            short = [name for name, values in columns.items() if len(values) != count]
            if short:
                raise DataError(f"{path}:{number}: every line needs the same keys: {short[0]}")
    return {name: _array(path, name, values) for name, values in columns.items()}


def _line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not JSON: {error}") from error
    inputs = value.get("inputs") if isinstance(value, dict) else None
    if not isinstance(inputs, dict) or not inputs:
        raise DataError(
            f'{path}:{number}: needs {{"inputs": {{"NAME": value}}, "label": 3}} on each line'
        )
    rest = {name: one for name, one in value.items() if name != "inputs"}
    both = sorted(inputs.keys() & rest.keys())
    if both:
        raise DataError(f"{path}:{number}: {both[0]} is an input and something else")
    return {**inputs, **rest}


def _array(path: Path, name: str, values: list[Any]) -> NDArray[Any]:
    if any(isinstance(value, str) for value in values):
        return np.array([str(value).encode() for value in values], dtype=np.object_)
    try:
        return np.array(values)
    except ValueError as error:
        raise DataError(f"{path}: {name} differs in its shape from line to line") from error


def _sort_out(
    path: Path, found: dict[str, NDArray[Any]], labels: str | None, group: str | None
) -> Rows:
    """Return which array is what; the rest are inputs, or of no use to whoever names his."""
    for key in (labels, group):
        if key is not None and key not in found:
            raise DataError(f"{path}: has no {key!r}; it has {', '.join(found)}")
    named = labels or next((key for key in _LABELS if key in found), None)
    used = {named, group, _EXPECTED}
    return Rows(
        inputs={name: values for name, values in found.items() if name not in used},
        labels=None if named is None else found[named],
        expected=found.get(_EXPECTED),
        groups=None if group is None else found[group],
    )


def sample(rows: Rows, most: int | None, seed: int) -> Rows:
    """Return so many rows at most, drawn at random; of groups, whole ones."""
    if most is None or most >= len(rows):
        return rows
    chance = np.random.default_rng(seed)
    if rows.groups is None:
        return rows.take(np.sort(chance.permutation(len(rows))[:most]))
    _, places = np.unique(rows.groups, return_inverse=True)
    order = chance.permutation(int(places.max()) + 1)
    sizes = np.cumsum(np.bincount(places)[order])
    chosen = order[: max(int(np.searchsorted(sizes, most, side="right")), 1)]
    return rows.take(np.flatnonzero(np.isin(places, chosen)))
