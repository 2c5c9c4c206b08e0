"""How warm a GPU may become and what it may draw: the operator's limits, kept by giving way.

Owns the price on a GPU's time that grows while a limit is exceeded. It must not choose: at that
price every model chooses by itself, and those whose better variant brings the least quality for the
device's time give way first.

Method. An integral controller on the logarithm of the price. It rises while a reading is above its
limit and not falling already, and falls slowly while all are clearly below: in between it stays, or
the choice would swing with the minute that a heat sink takes. It rises no further where a higher
price would change nothing: then even the fastest variants are too much, and only less load helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.value import device_s
from controller.policy.model import GpuPolicy
from controller.prediction.placement import Placement
from controller.prediction.prediction import Prediction
from controller.telemetry.observation import GpuReading

Floats = NDArray[np.float64]

_RISES_S: Final = 5.0  # in which the price grows e-fold
_FALLS_S: Final = 30.0  # in which it falls to 1/e
_SLACK: Final = 0.03  # of the limit: so far below it the price begins to fall
_SMOOTH_S: Final = 8.0  # over which it is seen whether a reading falls
_FIRST: Final = 0.02  # of the most it may become
_NOTHING: Final = 1e-3  # of the most: forgotten
_LEAST: Final = 1e-9  # the same, where there is no most
_CLEARLY: Final = 1.05  # at the very price a better one is worth as much as the fastest
_ABOUT: Final = 1.05  # of the fastest variant's time: as fast


@dataclass(slots=True)
class _Gpu:
    """What is known of one GPU."""

    price_per_s: float = 0.0
    of_limit: float = 0.0  # the reading nearest to its limit, of that
    smooth: float | None = None  # the same, over the last seconds
    told: str | None = None  # what is exceeded, for people


class GpuLimits:
    """The prices that keep GPUs within the policy's limits."""

    def __init__(self, policy: GpuPolicy) -> None:
        self._policy = policy
        self._gpus: dict[int, _Gpu] = {}

    def set_policy(self, policy: GpuPolicy) -> None:
        """Keep other limits from now on."""
        if policy != self._policy:
            self._gpus.clear()
        self._policy = policy

    @property
    def gives_way(self) -> bool:
        """Return whether models are to give way."""
        return any(gpu.price_per_s for gpu in self._gpus.values())

    @property
    def exceeded(self) -> tuple[str, ...]:
        """Return a sentence for each GPU above a limit, or at one."""
        return tuple(gpu.told for _, gpu in sorted(self._gpus.items()) if gpu.told is not None)

    def add_to(self, prices: Sequence[Floats | None], placement: Placement) -> list[Floats | None]:
        """Return the prices of a second of each variant's device, limits counted in, by model."""
        own = self.prices(placement)
        if own is None:
            return list(prices)
        return [
            extra if price is None else price + extra
            for price, extra in zip(prices, own, strict=True)
        ]

    def prices(self, placement: Placement) -> list[Floats] | None:
        """Return what a second costs of each variant's device for a limit's sake, by model.

        None: nothing, anywhere.
        """
        if not self.gives_way:
            return None
        highest = max(gpu.price_per_s for gpu in self._gpus.values())
        known = placement.device_ids != (0,) or set(self._gpus) == {0}
        per_s = np.array(
            [
                # Where nobody knows who is where, everybody gives way.
                self._gpus.get(device, _Gpu()).price_per_s if known else highest
                for device in placement.device_ids
            ]
        )
        return [shares @ per_s for shares in placement.shares]

    def learn(self, gpus: Iterable[GpuReading], most_per_s: float, elapsed_s: float) -> None:
        """Take in how the GPUs are.

        Args:
            gpus: their readings.
            most_per_s: the price at which every model would be on its fastest variant.
            elapsed_s: since the last call.
        """
        if not self._policy.is_limited:
            return
        unseen = set(self._gpus)
        for reading in gpus:
            found = list(self._compared(reading))
            if found:
                gpu = self._gpus.setdefault(reading.index, _Gpu())
                self._follow(gpu, reading.index, *max(found), most_per_s, elapsed_s)
                unseen.discard(reading.index)
        for index in unseen:  # nobody tells how it is: what was done for it ends by itself
            gpu = self._gpus[index]
            _fall(gpu, most_per_s, elapsed_s)
            gpu.told = f"gpu {index} tells no reading any more" if gpu.price_per_s else None

    def _compared(self, reading: GpuReading) -> Iterator[tuple[float, str]]:
        """Yield each reading that has a limit, of the limit, and how to say it."""
        policy = self._policy
        for value, limit, unit in (
            (reading.temperature_celsius, policy.max_temperature_celsius, "°C"),
            (reading.power_watts, policy.max_power_watts, "W"),
        ):
            if value is not None and limit is not None and math.isfinite(value):
                yield value / limit, f"is at {value:.0f} {unit}, of {limit:.0f} that it may be at"

    @staticmethod
    def _follow(
        gpu: _Gpu, index: int, of_limit: float, told: str, most_per_s: float, elapsed_s: float
    ) -> None:
        smooth = of_limit if gpu.smooth is None else gpu.smooth
        smooth += (of_limit - smooth) * (1.0 - math.exp(-elapsed_s / _SMOOTH_S))
        gpu.of_limit, gpu.smooth = of_limit, smooth
        if of_limit > 1.0 and of_limit >= smooth and most_per_s > 0.0:
            grown = gpu.price_per_s * math.exp(elapsed_s / _RISES_S)
            gpu.price_per_s = min(max(grown, _FIRST * most_per_s), _CLEARLY * most_per_s)
        elif of_limit < 1.0 - _SLACK:
            _fall(gpu, most_per_s, elapsed_s)
        gives_way = gpu.price_per_s > 0.0
        gpu.told = None
        if of_limit > 1.0 or gives_way:
            gpu.told = f"gpu {index} {told}" + (": models give way" if gives_way else "")


def _fall(gpu: _Gpu, most_per_s: float, elapsed_s: float) -> None:
    gpu.price_per_s *= math.exp(-elapsed_s / _FALLS_S)
    if gpu.price_per_s < max(_NOTHING * most_per_s, _LEAST):
        gpu.price_per_s = 0.0


def most_per_s(prediction: Prediction, quality: Sequence[float], allowed: Sequence[bool]) -> float:
    """Return the price of a second of its device at which a model is on its fastest variant.

    Those about as fast as the fastest are one with it: the difference of two measured times would
    make any price of them.
    """
    busy_s = device_s(prediction)
    known = zip(prediction.known, allowed, strict=True)
    among = [i for i, (is_known, is_allowed) in enumerate(known) if is_known and is_allowed]
    if not among:
        return 0.0
    least_s = min(busy_s[i] for i in among)
    same_s = _ABOUT * least_s
    best_of_fast = max(quality[i] for i in among if busy_s[i] <= same_s)
    steps = [
        (quality[i] - best_of_fast) / (busy_s[i] - least_s)
        for i in among
        if busy_s[i] > same_s and quality[i] > best_of_fast
    ]
    return max(steps, default=0.0)
