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
        self._known = False  # which devices there are
        self._shares = np.ones((variants, 1))
        self._logs = [0.0]
        self._left: dict[int, float] = {}  # logarithms of devices that nobody is on any more
        self._at_s: float | None = None
        self._followed_s: list[float | None] = [None]  # when batches last told of each
        self._shift, self._support = [0.0], [0.0]
        self._on: list[list[tuple[int, float]]] = [[(0, 1.0)]] * variants
        self._of: list[float] | None = None  # of each variant; None: to be found anew

    def place(self, devices: Sequence[int], shares: Floats, *, known: bool = True) -> None:
        """Tell devices apart.

        Args:
            devices: their numbers; what is known of one is kept.
            shares: how much of its time each variant spends on each. [variants, devices].
            known: whether that is where they are, and not one device for want of knowledge.
        """
        logs = dict(zip(self._devices, self._logs, strict=True))
        told_s = dict(zip(self._devices, self._followed_s, strict=True))
        # Of one that was not told apart before, what was seen of all; of another GPU, nothing.
        together, together_s = 0.0, None
        if len(logs) == 1 and not (self._known and known):
            (together,), (together_s,) = logs.values(), told_s.values()
        if self._known:
            self._left |= logs
        logs = self._left | logs
        self._devices, self._shares, self._known = tuple(devices), shares, known
        self._logs = [logs.get(device, together) for device in devices]
        self._followed_s = [told_s.get(device, together_s) for device in devices]
        if known:
            self._left = {d: log for d, log in self._left.items() if d not in self._devices}
        self._shift, self._support = [0.0] * len(devices), [0.0] * len(devices)
        self._on = [[(int(at), float(row[at])) for at in np.flatnonzero(row)] for row in shares]
        self._of = None

    def take_over(self, old: Drift) -> None:
        """Keep what is known of the same machine, until it is told who is where on it."""
        self._devices, self._known, self._left = old._devices, old._known, dict(old._left)
        self._logs, self._followed_s = list(old._logs), list(old._followed_s)
        self._at_s = old._at_s
        self._shift, self._support = [0.0] * len(self._logs), [0.0] * len(self._logs)
        variants = len(self._shares)
        self._shares = np.full((variants, len(self._logs)), 1.0 / len(self._logs))
        self._on = [[(at, float(share)) for at, share in enumerate(row)] for row in self._shares]
        self._of = None

    def of(self, variant: int) -> float:
        """Return what a variant's present service time is over what was learned, as logarithm."""
        return self.of_each()[variant]

    def of_each(self) -> list[float]:
        """Return the same of every variant. Do not change."""
        if self._of is None:
            self._of = self.of_all().tolist()
        return self._of

    def of_all(self) -> Floats:
        """Return the same as an array. [variants]."""
        return np.asarray(self._shares @ np.array(self._logs))

    def ratios(self) -> dict[int, float]:
        """Return the factor of each device, by its number; also of those that nobody is on now."""
        known = self._left | dict(zip(self._devices, self._logs, strict=True))
        return {device: math.exp(log) for device, log in known.items()}

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
        for device in self._left:
            self._left[device] *= math.exp(-elapsed_s / _FORGET_S)
        self._at_s, self._of = now_s, None
