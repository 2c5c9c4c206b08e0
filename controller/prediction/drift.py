"""How much slower or faster each device is now than what was learned on it.

Owns one fast factor for each device (clocks, throttling, co-tenants), seen in the residuals of
whatever runs there within about a second. It must not know service times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MEMORY_S: Final = 0.6
_FORGET_S: Final = 600.0  # without data, drift returns to none
_LIMIT: Final = math.log(8.0)
_SHORTEST_S: Final = 0.02


class Drift:
    """The factors, as logarithms: of one device for all variants, until somebody tells of several.

    Args:
        variants: how many there are.
    """

    def __init__(self, variants: int) -> None:
        self._devices: tuple[int, ...] = (0,)
        self._shares = np.ones((variants, 1))
        self._logs = [0.0]
        self._at_s: float | None = None
        self._followed_s: list[float | None] = [None]  # when batches last told of each
        self._shift, self._support = [0.0], [0.0]
        self._on: list[list[tuple[int, float]]] = [[(0, 1.0)]] * variants

    def place(self, devices: Sequence[int], shares: Floats) -> None:
        """Tell devices apart.

        Args:
            devices: their numbers; what is known of one is kept.
            shares: how much of its time each variant spends on each. [variants, devices].
        """
        known = dict(zip(self._devices, self._logs, strict=True))
        told_s = dict(zip(self._devices, self._followed_s, strict=True))
        # Of one that was not told apart before, what was seen of all.
        together = known.get(0, 0.0) if len(known) == 1 else 0.0
        together_s = told_s.get(0) if len(told_s) == 1 else None
        self._devices, self._shares = tuple(devices), shares
        self._logs = [known.get(device, together) for device in devices]
        self._followed_s = [told_s.get(device, together_s) for device in devices]
        self._shift, self._support = [0.0] * len(devices), [0.0] * len(devices)
        self._on = [[(int(at), float(row[at])) for at in np.flatnonzero(row)] for row in shares]

    def of(self, variant: int) -> float:
        """Return what a variant's present service time is over what was learned, as logarithm."""
        return sum(self._logs[device] * share for device, share in self._on[variant])

    def of_all(self) -> Floats:
        """Return the same of every variant. [variants]."""
        return np.asarray(self._shares @ np.array(self._logs))

    def ratios(self) -> dict[int, float]:
        """Return the factor of each device, by its number."""
        return {d: math.exp(log) for d, log in zip(self._devices, self._logs, strict=True)}

    @property
    def most(self) -> float:
        """Return that of the device that is the furthest from what was learned."""
        return max(self._logs, key=abs)

    def note(self, variant: int, residual: float, weight: float) -> None:
        """Take in by how much a batch took longer, as logarithm, beyond what `of` says."""
        for device, share in self._on[variant]:
            self._shift[device] += share * weight * residual
            self._support[device] += share * weight

    def follow(self, now_s: float) -> None:
        """Follow what was noted since the last call.

        By how much follows from the time since batches last told of a device: they come seldomer
        than calls.
        """
        elapsed_s = 0.0 if self._at_s is None else max(now_s - self._at_s, 0.0)
        for device, support in enumerate(self._support):
            drift = self._logs[device]
            if support > 0.0:
                before_s = self._followed_s[device]
                since_s = 0.0 if before_s is None else now_s - before_s
                gain = 1.0 - math.exp(-max(since_s, _SHORTEST_S) / _MEMORY_S)
                gain *= support / (support + 0.5)
                drift += gain * self._shift[device] / support
                self._followed_s[device] = now_s
            else:
                drift *= math.exp(-elapsed_s / _FORGET_S)
            self._logs[device] = max(-_LIMIT, min(_LIMIT, drift))
            self._shift[device] = self._support[device] = 0.0
        self._at_s = now_s
