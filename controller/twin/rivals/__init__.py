"""How others decide, re-implemented from their descriptions: one file each.

Owns what they have in common. They get the offline profile that their papers ask for; the governor
gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.twin.ladder import TwinVariant


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy may know beforehand."""

    variants: tuple[TwinVariant, ...]  # the offline profile
    limit_s: float  # the objective
    allowed_miss_ratio: float
    seed: int

    def by_quality(self) -> list[int]:
        """Return the variants, best first; of equal ones the faster first."""
        variants = self.variants
        return sorted(
            range(len(variants)),
            key=lambda i: (-variants[i].quality, -variants[i].capacity_rps(self.limit_s)),
        )

    def fastest(self) -> int:
        """Return the variant of the highest capacity."""
        capacities = [variant.capacity_rps(self.limit_s) for variant in self.variants]
        return max(range(len(capacities)), key=capacities.__getitem__)


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees at one of its ticks."""

    now_s: float
    serving: int
    arrived: int  # requests so far
    pending: Sequence[int]  # per variant
    ended: Sequence[tuple[int, int, float]] = ()  # (variant, rows, seconds) of batches since then


class Rival(Protocol):
    """A policy that looks at fixed intervals."""

    tick_s: float
    idealised: bool  # needs what an unmodified Triton cannot do

    def choose(self, view: View) -> int | None:
        """Return the variant to serve from now on; None: leave it."""
        ...
