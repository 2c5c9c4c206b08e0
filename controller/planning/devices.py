"""Which GPUs can be relied on, and how much a host without any is in use.

Owns how long a GPU that was lost is left alone after it came back. It must not read devices, nor
know who is where.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from controller.telemetry.observation import GpuReading, HostReading

_FIRST_S: Final = 30.0  # that one must be well before it is used again; doubles with each loss
_LONGEST_S: Final = 900.0
_FORGOTTEN_S: Final = 3600.0  # without a loss
_HOST_IDLE: Final = 0.5  # share of the host's processors in use
_HOST_FULL: Final = 0.9


@dataclass(slots=True)
class _Lost:
    """What is known of a GPU that was ever lost."""

    losses: int = 0
    is_lost: bool = False  # by its last reading
    until_s: float = -math.inf  # it is left alone
    last_s: float = -math.inf  # it was seen to be lost


class DeviceWatch:
    """Remembers which GPUs are lost, or were until just now."""

    def __init__(self) -> None:
        self._gpus: dict[int, _Lost] = {}

    def keep(self, watched: Collection[int] | None) -> None:
        """Forget GPUs that nobody watches any more, as nothing is told of them; None: all are."""
        if watched is not None:
            self._gpus = {gpu: one for gpu, one in self._gpus.items() if gpu in watched}

    def look(self, gpus: Iterable[GpuReading], now_s: float) -> frozenset[int]:
        """Take in how GPUs are; return those on which nothing should run.

        One that tells nothing stays as it was: a silent driver is no reason to move anything.
        """
        for reading in gpus:
            known = self._gpus.get(reading.index)
            if reading.lost:
                self._lose(known or self._gpus.setdefault(reading.index, _Lost()), now_s)
            elif known is not None and reading.error is None:
                known.is_lost = False
                if now_s >= known.until_s and now_s - known.last_s > _FORGOTTEN_S:
                    del self._gpus[reading.index]
        return frozenset(
            gpu for gpu, one in self._gpus.items() if one.is_lost or now_s < one.until_s
        )

    @staticmethod
    def _lose(gpu: _Lost, now_s: float) -> None:
        if not gpu.is_lost:
            gpu.losses += 1
            gpu.is_lost = True
        gpu.last_s = now_s
        gpu.until_s = now_s + min(_FIRST_S * 2.0 ** (gpu.losses - 1), _LONGEST_S)


def host_contention(host: HostReading) -> float:
    """Return how much work elsewhere slows a variant on a machine without a GPU, 0 to 1."""
    cores = max(host.cpu_count or 1, 1)
    busy = host.cpu_ratio or 0.0
    # Idle cores take the work that sits elsewhere; on a full machine everything shares.
    full = min(max((busy - _HOST_IDLE) / (_HOST_FULL - _HOST_IDLE), 0.0), 1.0)
    return 1.0 / cores + (1.0 - 1.0 / cores) * full
