"""What a device's time is worth to the models that share it.

Owns the price that makes some models give way to others. It must not choose.

Method. The joint choice for all models is a multiple-choice knapsack: the most weighted quality,
within the device's time. Its Lagrangian dual needs one number, the price of a second of the device;
at the right price every model, choosing by itself, chooses as the whole would. Here the price is
found by dual ascent (Arrow, Hurwicz & Uzawa 1958) on what is predicted rather than on utilisation:
it rises while some model cannot meet its objective on any of its variants, to at most what such a
model's requests are worth, and falls slowly otherwise. Those whose better variant brings the least
quality for the device's time give way first; where nobody is in need the price is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.placement import Placement

Floats = NDArray[np.float64]

_RISES_S: Final = 0.1  # in which the price grows e-fold while somebody is in need
_FALLS_S: Final = 8.0  # in which it falls to 1/e when nobody is
_FIRST: Final = 0.01  # of the most it may become
_NOTHING: Final = 1e-3  # of the most: forgotten


class DevicePrice:
    """The price of a second of the devices, in quality of requests by their weight."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._most_per_s = 0.0

    def learn(self, needs_per_s: Iterable[float], elapsed_s: float) -> None:
        """Take in what a second of the device would be worth to each model that is in need."""
        most = max(needs_per_s, default=0.0)
        if most > 0.0:
            self._most_per_s = most
            grown = self.per_s * math.exp(min(elapsed_s / _RISES_S, 1.0))
            self.per_s = min(max(grown, _FIRST * most), most)
        elif self.per_s > 0.0:
            self.per_s *= math.exp(-elapsed_s / _FALLS_S)
            if self.per_s < _NOTHING * self._most_per_s:
                self.per_s = 0.0


class DevicePrices:
    """The price of each device.

    Args:
        weights: of the models.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._prices: list[DevicePrice] = []
        self._devices: tuple[int, ...] = ()

    def of(self, placement: Placement, *, counts: bool = True) -> list[Floats | None]:
        """Return what a second costs of each variant's device, by model. [variants] each.

        None: nothing, as where it does not count what others use.
        """
        if self._devices != placement.device_ids or not counts:
            self._devices = placement.device_ids
            self._prices = [DevicePrice() for _ in placement.device_ids]
        if not any(price.per_s for price in self._prices):
            return [None] * len(placement.shares)
        per_s = np.array([price.per_s for price in self._prices])
        return [shares @ per_s for shares in placement.shares]

    def learn(
        self,
        placement: Placement,
        needs: Sequence[tuple[int, float] | None],
        elapsed_s: float,
    ) -> None:
        """Take in which variant of each model needs its device, and what for."""
        by_device: list[list[float]] = [[] for _ in self._prices]
        for weight, shares, need in zip(self._weights, placement.shares, needs, strict=True):
            if need is not None:
                variant, worth_per_s = need
                for device in np.flatnonzero(shares[variant]).tolist():
                    by_device[device].append(weight * worth_per_s)
        for price, wanted in zip(self._prices, by_device, strict=True):
            price.learn(wanted, elapsed_s)
