"""Which GPU is which, when one of them is not there any more.

Owns the index that a GPU keeps: NVML counts those that are there, and after a new initialisation
without one of them the others may have moved up. Triton's indices are those of its own start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from controller.telemetry.observation import GpuReading


class Cards:
    """The GPUs that were ever seen."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}  # by UUID, as first seen
        self._names: dict[str, str | None] = {}

    def told(
        self, readings: Iterable[GpuReading], watched: Collection[int] | None = None
    ) -> tuple[GpuReading, ...]:
        """Return the readings with the indices that GPUs had at first, and those that are gone.

        A GPU that says no UUID is where NVML has it, as long as no other was there.

        Args:
            readings: as NVML counts by now.
            watched: the GPUs that are asked for, as they were counted at first; None: all.
        """
        found: dict[int, GpuReading] = {}
        silent = []
        for reading in readings:
            if reading.uuid is None:
                silent.append(reading)
                continue
            at = self._index.get(reading.uuid)
            if at is None:
                at = self._index[reading.uuid] = self._place(reading.index)
            self._names[reading.uuid] = reading.name
            found[at] = replace(reading, index=at) if at != reading.index else reading
        for reading in silent:
            free = reading.index if reading.index not in found else self._missing(found)
            if free is not None:
                found[free] = replace(reading, index=free)
        for uuid, at in self._index.items():
            if at not in found:
                why = "it was there and is not any more"
                found[at] = GpuReading(at, uuid, self._names[uuid], error=why, lost=True)
        return tuple(found[at] for at in sorted(found) if watched is None or at in watched)

    def _place(self, index: int) -> int:
        """Return where a GPU goes that was never seen."""
        taken = set(self._index.values())
        return index if index not in taken else max(taken) + 1

    def _missing(self, found: dict[int, GpuReading]) -> int | None:
        return next((at for at in self._index.values() if at not in found), None)
