"""Which variants share a device, and what runs beside each.

Owns the sums over devices. It must not know how much slower what runs beside makes anything.

A variant that has instances on several GPUs is taken to use each for an even part of its time.
Where the place of one variant is not known, all share one device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

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
        self._models = models
        names = dict.fromkeys(name for own in models for name in own)
        self.known = known = all(gpus.get(name) for name in names)
        devices = sorted({gpu for name in names for gpu in gpus[name]}) if known else [0]
        self.device_ids = tuple(devices)
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
        # One that several models list is one, and counts once.
        self._by_name = by_name
        self._rows = rows
        self._present = (rows > 0.0).astype(np.float64)
        # Each variant once, and its row.
        self.names = {name: at for at, name in enumerate(names)}
        self._unique = np.array([self.names[name] for name in self._flat_names])

    @cached_property
    def relatives(self) -> Placement:
        """One in which each model's variants share a device of their own, wherever they run."""
        owners: dict[str, tuple[int, ...]] = {}
        for owner, own in enumerate(self._models):
            for name in own:
                owners[name] = (*owners.get(name, ()), owner)
        return Placement(self._models, owners)

    @property
    def devices(self) -> int:
        """Return how many devices there are."""
        return int(self._flat.shape[1])

    def shares_of(self, models: Sequence[str]) -> Floats:
        """Return how much of its time each of some variants spends on each device."""
        return np.array([self._by_name[name] for name in models])

    def busy_beside(self, busy_ratio: Mapping[str, float]) -> Floats:
        """Return how many batches of other models run beside each variant. [variants of all].

        Args:
            busy_ratio: share of the time in which each variant's batches run, by Triton's name.
        """
        busy = np.array([busy_ratio.get(name, 0.0) for name in self._flat_names])
        return self._beside(busy)

    def work_beside_s(self, work_s: Floats) -> Floats:
        """Return the seconds of other models' work that wait beside each variant.

        Both are of all models, in order. [variants of all].
        """
        return self._beside(work_s)

    def _beside(self, of_each: Floats) -> Floats:
        """Return what there is of other models on the devices of each variant."""
        if len(self._models) == 1:
            return np.zeros(len(self._flat))
        once = np.zeros(len(self._rows))
        np.maximum.at(once, self._unique, of_each)  # models may judge a shared one differently
        own = np.add.reduceat(once[self._unique, None] * self._flat, self._first, axis=0)
        total = once @ self._rows
        beside = (self._flat * (total - own[self._owner])).sum(axis=1)
        return np.asarray(np.maximum(beside, 0.0))

    def others_s(self, busy_s: Floats) -> Floats:
        """Return how long others were busy where each variant runs. [ticks, variants].

        One with instances on several devices is taken to be busy on all of them.

        Args:
            busy_s: for how long each was busy itself, in the order of `names`; after these come
                those that nobody knows the place of, which may be anywhere. [ticks, variants].
        """
        known = len(self.names)
        elsewhere_s = busy_s[:, known:].sum(axis=1, keepdims=True)
        on_s = busy_s[:, :known] @ self._present + elsewhere_s
        total_s = np.repeat(busy_s.sum(axis=1, keepdims=True), busy_s.shape[1], axis=1)
        total_s[:, :known] = on_s @ self._rows.T
        return np.maximum(total_s - busy_s, 0.0)

    def meeting(self, model: int) -> Floats:
        """Return how much of a model's variants' work meets each other. [variants, variants]."""
        shares = self.shares[model]
        met = shares @ shares.T
        np.fill_diagonal(met, 1.0)
        return np.asarray(met)
