"""How others decide, re-implemented from their descriptions: one file each.

Owns what they have in common. They get the offline profile that their papers ask for; the governor
gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from controller.twin.ladder import TwinVariant


@dataclass(frozen=True)
class Setting:
    """What a policy may know beforehand."""

    variants: tuple[TwinVariant, ...]  # the offline profile
    limit_s: float  # the objective
    allowed_miss_ratio: float
    gpus: int = 1

    @cached_property
    def capacity_rps(self) -> tuple[float, ...]:
        """Return what each variant completes in batches of at most half the objective."""
        return tuple(self.gpus * variant.capacity_rps(self.limit_s) for variant in self.variants)

    @cached_property
    def by_quality(self) -> tuple[int, ...]:
        """Return the variants, best first; of equal ones the faster first."""
        ranks = range(len(self.variants))
        return tuple(
            sorted(ranks, key=lambda i: (-self.variants[i].quality, -self.capacity_rps[i]))
        )

    @cached_property
    def fastest(self) -> int:
        """Return the variant of the highest capacity."""
        return max(range(len(self.variants)), key=self.capacity_rps.__getitem__)

    def most_accurate(self, bears: Callable[[int], bool]) -> int:
        """Return the best variant that bears the load; the fastest where none does."""
        return next((variant for variant in self.by_quality if bears(variant)), self.fastest)


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees at one of its ticks."""

    now_s: float
    serving: int
    arrived: int  # requests so far
    pending: Sequence[int]  # per variant
    ended: Sequence[tuple[int, int, float]] = ()  # (variant, rows, seconds) of batches since then


class ArrivalRate:
    """The rate between two looks, as somebody who only counts requests knows it."""

    def __init__(self) -> None:
        self._arrived = 0
        self._at_s = 0.0

    def since_last(self, view: View) -> float:
        """Return requests a second since the last call."""
        count, elapsed_s = view.arrived - self._arrived, view.now_s - self._at_s
        self._arrived, self._at_s = view.arrived, view.now_s
        return count / elapsed_s if elapsed_s > 0.0 else 0.0


class ExponentialMean:
    """A mean that follows its input; the first one is taken as it is."""

    def __init__(self, gain: float) -> None:
        self._gain = gain
        self.value: float | None = None

    def follow(self, newest: float) -> float:
        """Take a value in and return the mean."""
        before = newest if self.value is None else self.value
        self.value = before + self._gain * (newest - before)
        return self.value


class Rival(Protocol):
    """A policy that looks at fixed intervals."""

    tick_s: float

    def choose(self, view: View) -> int | None:
        """Return the variant to serve from now on; None: leave it."""
        ...
