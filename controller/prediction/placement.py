"""Which variants share a device, and what runs beside each.

Owns the sums over devices. It must not know how much slower what runs beside makes anything.

A variant that has instances on several GPUs is taken to use each for an even part of its time.
Where the place of one variant is not known, all share one device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Placement:
    """Where the variants of some models run.

    Args:
        models: Triton's names of the variants of each model.
        gpus: the GPUs of each variant, by Triton's name.
    """

    def __init__(
        self, models: Sequence[tuple[str, ...]], gpus: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.given = gpus
        names = dict.fromkeys(name for own in models for name in own)
        known = all(gpus.get(name) for name in names)
        devices = sorted({gpu for name in names for gpu in gpus[name]}) if known else [0]
        column = {gpu: at for at, gpu in enumerate(devices)}
        rows = np.zeros((len(names), len(devices)))
        for row, name in zip(rows, names, strict=True):
            where = [column[gpu] for gpu in gpus[name]] if known else [0]
            row[where] = 1.0 / len(where)
        self._rows = dict(zip(names, rows, strict=True))
        self.shares: list[Floats] = [np.array([self._rows[n] for n in own]) for own in models]
        self._names = models

    @property
    def devices(self) -> int:
        """Return how many devices there are."""
        return int(self.shares[0].shape[1])

    def busy_beside(self, busy_ratio: Mapping[str, float]) -> list[Floats]:
        """Return how many batches of other models run beside each variant. [variants] each.

        Args:
            busy_ratio: share of the time in which each variant's batches run, by Triton's name.
        """
        total = np.zeros(self.devices)
        for name, ratio in busy_ratio.items():
            if name in self._rows:
                total += ratio * self._rows[name]
        found = []
        for own, shares in zip(self._names, self.shares, strict=True):
            mine = np.array([busy_ratio.get(name, 0.0) for name in own]) @ shares
            found.append(np.maximum(shares @ (total - mine), 0.0))
        return found

    def work_beside_s(self, work_s: Sequence[Floats]) -> list[Floats]:
        """Return the seconds of other models' work that wait beside each variant."""
        by_model = [work @ shares for work, shares in zip(work_s, self.shares, strict=True)]
        total = np.sum(by_model, axis=0)
        return [
            np.maximum(shares @ (total - mine), 0.0)
            for shares, mine in zip(self.shares, by_model, strict=True)
        ]

    def meeting(self, model: int) -> Floats:
        """Return how much of a model's variants' work meets each other. [variants, variants]."""
        shares = self.shares[model]
        return np.asarray(shares @ (shares > 0.0).T)
