"""How much batches that run together are in each other's way, and so what instances would do.

Owns what is learned of that, and the correction of measured times for a variant's own instances.
It must not predict.

Method. A batch beside which x others were in execution took (1 + x c) times as long as alone: c is
0 where each has a core, or a part of a GPU, to itself, and 1 where they share one that a single
batch fills. c is the slope over the intercept of a ridge regression, with forgetting, of measured
over usual times on x; the intercept takes what slows the machine as a whole. Others are batches of
other variants, as while two take turns, and of other instances: so something is known of what a
second instance would do before there is one. Each variant has its own c, drawn to that of all. It
begins at one half: without any evidence another instance is worth a trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from controller.prediction.placement import Placement
from controller.prediction.sharing import DeviceSharing
from controller.telemetry.observation import BatchSample, Instances

AT_FIRST: Final = 0.5
MOST: Final = 1.5  # more than 1: they do less together than one alone
_MEMORY: Final = 400.0  # batches after which an old one counts 1/e
_AT_ONCE: Final = 20.0  # batches that one sample counts for, at most
# What is believed before anything was seen counts as so many batches: of the level, of the slope.
_BELIEVED: Final = (15.0, 8.0)
_LEAST, _LARGEST = 0.3, 8.0  # measured over usual: what is beyond is a stall or a first run


@dataclass(slots=True)
class _Seen:
    """Sums: of 1, x, x², y, xy."""

    sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def add(self, x: float, y: float, weight: float) -> None:
        keep, sums = math.exp(-weight / _MEMORY), self.sums
        weighted_x, weighted_y = weight * x, weight * y
        sums[0] = sums[0] * keep + weight
        sums[1] = sums[1] * keep + weighted_x
        sums[2] = sums[2] * keep + weighted_x * x
        sums[3] = sums[3] * keep + weighted_y
        sums[4] = sums[4] * keep + weighted_y * x

    def overlap(self, believed: float) -> float:
        """Return the slope over the intercept."""
        ones, xs, squares, ys, products = self.sums
        level, slope = _BELIEVED
        # What is believed is a ratio: in units of what a machine that is slower or faster as a
        # whole takes alone, or it would tell of overlaps where there are none.
        ones, squares = ones + level, squares + slope
        unit = (ys + level) / (ones + believed * xs)
        ys, products = ys / unit + level, products / unit + slope * believed
        determinant = ones * squares - xs * xs
        intercept = (squares * ys - xs * products) / determinant
        if intercept <= 0.0:
            return believed
        found = (ones * products - xs * ys) / determinant / intercept
        return min(max(found, 0.0), MOST)


class Overlap:
    """Learns it of the variants of a server."""

    def __init__(self) -> None:
        self._all = _Seen()
        self._seen: dict[str, _Seen] = {}
        self._found: dict[str, float] = {}  # since something was learned: asked for at every tick

    def of(self, model: str) -> float:
        """Return how much a variant's instances are in each other's way, 0 to 1.5."""
        found = self._found.get(model)
        if found is None:
            of_all = self._all.overlap(AT_FIRST)
            seen = self._seen.get(model)
            found = of_all if seen is None else seen.overlap(of_all)
            self._found[model] = found
        return found

    def learn(
        self,
        samples: Iterable[BatchSample],
        now_s: float,
        sharing: DeviceSharing,
        placement: Placement,
        instances: Mapping[str, Instances],
        usual_s: Callable[[str, int], float | None],
    ) -> None:
        """Learn from samples as they were measured.

        Args:
            samples: of batches.
            now_s: when they are seen.
            sharing: who was active of late.
            placement: which variants share a device.
            instances: of each variant, by Triton's name; those missing have one.
            usual_s: what a batch of so many rows takes alone on a variant; None: not known.
        """
        for sample in samples:
            usual = usual_s(sample.model, sample.rows)
            if usual is None or sample.after_action or sample.probe:
                continue
            ratio = sample.mean_service_s / usual
            if not _LEAST <= ratio <= _LARGEST:
                continue
            own = instances.get(sample.model)
            beside = sharing.others_active(sample, now_s, placement)
            beside += sharing.siblings_active(sample, now_s, 1 if own is None else own.number)
            weight = min(float(sample.executions), _AT_ONCE)
            self._all.add(beside, ratio, weight)
            self._seen.setdefault(sample.model, _Seen()).add(beside, ratio, weight)
            self._found.clear()

    def alone(
        self,
        samples: Iterable[BatchSample],
        now_s: float,
        sharing: DeviceSharing,
        instances: Mapping[str, Instances],
    ) -> Iterator[BatchSample]:
        """Yield samples with the times that they would have taken without other instances."""
        for sample in samples:
            own = instances.get(sample.model)
            if own is None or own.number < 2:
                yield sample
                continue
            beside = sharing.siblings_active(sample, now_s, own.number)
            yield replace(
                sample,
                mean_service_s=sample.mean_service_s / (1.0 + beside * self.of(sample.model)),
                siblings_ratio=beside / (1.0 + beside),
            )

    def state(self) -> dict[str, Any]:
        """Return what was learned. JSON-ready."""
        return {
            "all": list(self._all.sums),
            "variants": {model: list(seen.sums) for model, seen in self._seen.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned.

        Raises ValueError, KeyError, TypeError; nothing is changed then.
        """
        of_all = _sound("all", state["all"])
        fresh = {str(model): _sound(model, sums) for model, sums in state["variants"].items()}
        self._all, self._seen = of_all, fresh
        self._found.clear()


def _sound(of: str, sums: Iterable[float]) -> _Seen:
    numbers = [float(number) for number in sums]
    sound = len(numbers) == 5 and all(0.0 <= number < 1e9 for number in numbers)
    if not sound or numbers[1] ** 2 > numbers[0] * numbers[2] * (1.0 + 1e-6) + 1e-9:
        raise ValueError(f"{of}: what was learned of how batches overlap is out of range")
    return _Seen(numbers)
