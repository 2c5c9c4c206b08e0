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
        by_name = dict(zip(names, rows, strict=True))
        # Of every variant of every model, in order: where it is, and whose it is.
        self._flat_names = [name for own in models for name in own]
        self._flat = np.array([by_name[name] for name in self._flat_names])
        sizes = [len(own) for own in models]
        self._owner = np.repeat(np.arange(len(models)), sizes)
        self._first = np.cumsum([0, *sizes[:-1]])
        self.shares: list[Floats] = np.split(self._flat, self._first[1:])
        # One that several models list counts once.
        self._once = np.zeros(len(self._flat_names))
        places = {name: at for at, name in reversed(list(enumerate(self._flat_names)))}
        self._once[list(places.values())] = 1.0

    @property
    def devices(self) -> int:
        """Return how many devices there are."""
        return int(self._flat.shape[1])

    def busy_beside(self, busy_ratio: Mapping[str, float]) -> list[Floats]:
        """Return how many batches of other models run beside each variant. [variants] each.

        Args:
            busy_ratio: share of the time in which each variant's batches run, by Triton's name.
        """
        busy = np.array([busy_ratio.get(name, 0.0) for name in self._flat_names])
        return self._beside(busy)

    def work_beside_s(self, work_s: Sequence[Floats]) -> list[Floats]:
        """Return the seconds of other models' work that wait beside each variant."""
        return self._beside(np.concatenate(work_s))

    def _beside(self, of_each: Floats) -> list[Floats]:
        """Return what there is of other models on the devices of each variant. [variants] each."""
        on_devices = of_each[:, None] * self._flat
        own = np.add.reduceat(on_devices, self._first, axis=0)
        total = self._once @ on_devices
        beside = (self._flat * (total - own[self._owner])).sum(axis=1)
        return np.split(np.maximum(beside, 0.0), self._first[1:])

    def meeting(self, model: int) -> Floats:
        """Return how much of a model's variants' work meets each other. [variants, variants]."""
        shares = self.shares[model]
        return np.asarray(shares @ (shares > 0.0).T)
