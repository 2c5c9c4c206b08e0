"""Memory: what variants hold together, and whether one more would fit.

Owns the arithmetic of the memory budget, the double memory of a reload included. It must not
choose what is loaded, nor read how much memory there is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple


class Room(NamedTuple):
    """Memory by place. A limit that nobody set is infinite."""

    gpu_bytes: float  # of every GPU that is watched: Triton loads a model on each
    host_bytes: float

    def plus(self, other: Room, sign: float = 1.0) -> Room:
        """Return this with another beside it, or, with a `sign` of -1, without it."""
        return Room(
            self.gpu_bytes + sign * other.gpu_bytes, self.host_bytes + sign * other.host_bytes
        )


NO_LIMIT = Room(math.inf, math.inf)


class Budget:
    """What some models may hold together.

    Args:
        limit: the budget.
        needs: what each holds while it is loaded; one that is missing holds nothing.
    """

    def __init__(self, limit: Room, needs: Mapping[str, Room]) -> None:
        self.limit = limit
        self._needs = needs

    def need(self, model: str) -> Room:
        """Return what a model holds while it is loaded."""
        return self._needs.get(model, Room(0.0, 0.0))

    def total(self, models: Iterable[str]) -> Room:
        """Return what some models hold together; one that is named twice holds it twice."""
        room = Room(0.0, 0.0)
        for model in models:
            room = room.plus(self.need(model))
        return room

    def fits(self, models: Iterable[str]) -> bool:
        """Return whether some models may be loaded together."""
        return self.within(self.total(models))

    def admits(self, model: str, held: Collection[str]) -> bool:
        """Return whether a load of one more model may begin.

        Args:
            model: to be loaded; one that is `held` is reloaded, and Triton keeps its old instances
                until the new ones are ready: it holds its memory twice meanwhile.
            held: what is loaded, or may be: operations under way count.
        """
        return self.within(self.total([*held, model]))

    def share(self, model: str) -> float:
        """Return the largest share of a limit that a model takes; 0: none is limited."""
        return max(
            (
                need / limit
                for need, limit in zip(self.need(model), self.limit, strict=True)
                if math.isfinite(limit) and limit > 0.0
            ),
            default=0.0,
        )

    def within(self, room: Room) -> bool:
        """Return whether so much may be held."""
        return room.gpu_bytes <= self.limit.gpu_bytes and room.host_bytes <= self.limit.host_bytes
