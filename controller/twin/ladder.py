"""A ladder of variants as measured: quality, and the service time of each batch size.

Owns the reading of ladder files and the interpolation between measured batch sizes. It must not
simulate anything.

Format (YAML): `variants`, each with `name`, `accuracy` in percent and `latency_ms`, the mean
latency of a batch in ms by its size; if known `memory_mib` and `load_s`. Other keys are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MIB: Final = 1024.0**2
_Absent = TypeVar("_Absent", float, None)


class LadderFormatError(Exception):
    """A ladder file that cannot be used; the text names the file, the place and what to do."""


@dataclass(frozen=True, slots=True)
class TwinVariant:
    """One variant: quality in [0, 1], seconds of a batch of 1, 2, ... rows."""

    name: str
    quality: float
    table_s: Floats  # [max_batch]
    memory_bytes: float = 0.0  # of a copy
    load_s: float | None = None  # None: as long as the simulated server says
    profile_of: str | None = None  # the variant whose weights it serves under another limit

    @property
    def max_batch(self) -> int:
        """Return the largest batch."""
        return len(self.table_s)

    def service_s(self, rows: int) -> float:
        """Return the mean seconds of a batch of some rows."""
        return float(self.table_s[rows - 1])

    def capacity_rps(self, limit_s: float) -> float:
        """Return the most rows a second, with batches that take at most half of a limit.

        0 where not even one row does.
        """
        rows = np.arange(1, self.max_batch + 1)
        rates = np.where(self.table_s <= limit_s / 2.0, rows / self.table_s, 0.0)
        return float(rates.max())


@dataclass(frozen=True, slots=True)
class Ladder:
    """Variants of one model, in the file's order."""

    name: str
    variants: tuple[TwinVariant, ...]


def load_ladder(path: Path) -> Ladder:
    """Read a ladder file.

    Raises:
        LadderFormatError: it cannot be read or is not a ladder with two batch sizes and more.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LadderFormatError(f"{path}: {error}") from error
    entries = document.get("variants") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise LadderFormatError(f"{path}: no list of `variants`")
    variants = tuple(_variant(path, index, entry) for index, entry in enumerate(entries))
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise LadderFormatError(f"{path}: two variants have one name")
    return Ladder(path.stem, variants)


def _variant(path: Path, index: int, entry: Any) -> TwinVariant:
    where = f"{path}: variants[{index}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise LadderFormatError(f"{where}: needs a `name`")
    where = f"{path}: {entry['name']}"
    accuracy = entry.get("accuracy")
    if not _is_number(accuracy) or not 0.0 <= accuracy <= 100.0:
        raise LadderFormatError(f"{where}: `accuracy` must be a percentage, not {accuracy!r}")
    measured = entry.get("latency_ms")
    if not isinstance(measured, dict) or not measured:
        raise LadderFormatError(f"{where}: `latency_ms` must map batch sizes to milliseconds")
    for rows, latency_ms in measured.items():
        if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= 4096:
            raise LadderFormatError(f"{where}: {rows!r} is no batch size")
        if not _is_number(latency_ms) or not 0.0 < latency_ms < math.inf:
            raise LadderFormatError(f"{where}: {latency_ms!r} is no latency")
    if len(measured) < 2:
        raise LadderFormatError(
            f"{where}: one batch size is a ceiling of throughput, no curve; measure another"
        )
    return TwinVariant(
        str(entry["name"]),
        accuracy / 100.0,
        interpolate(measured),
        _MIB * _optional(entry, "memory_mib", where, 0.0),
        _optional(entry, "load_s", where, None),
    )


def _optional(entry: dict[str, Any], key: str, where: str, absent: _Absent) -> float | _Absent:
    value = entry.get(key)
    if value is None:
        return absent
    if not _is_number(value) or not 0.0 <= value < math.inf:
        raise LadderFormatError(f"{where}: `{key}` must be a number from 0 on, not {value!r}")
    return float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def interpolate(latency_ms: dict[int, float]) -> Floats:
    """Return the seconds of every batch size up to the largest. [rows].

    Linear between measured sizes; sizes below the smallest take as long as that; never falling.
    """
    sizes = sorted(latency_ms)
    seconds = np.maximum.accumulate([latency_ms[size] / 1e3 for size in sizes])
    return np.interp(np.arange(1, sizes[-1] + 1), sizes, seconds)
