"""Memory: what variants hold together, and whether one more would fit.

Owns the arithmetic of the memory budget, of each GPU and with the double memory of a reload. It
must not choose what is loaded or where, nor read how much memory there is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple


class Room(NamedTuple):
    """Memory by place. A limit that nobody set is infinite.

    Where GPUs are told apart (`on` is not empty) what counts of one is `gpu_bytes` and its own
    entry together; of a limit it is the entry alone.
    """

    gpu_bytes: float  # of every GPU that is watched
    host_bytes: float
    on: tuple[float, ...] = ()  # of single GPUs, in an order that all rooms of a budget share

    def plus(self, other: Room, sign: float = 1.0) -> Room:
        """Return this with another beside it, or, with a `sign` of -1, without it."""
        return Room(
            self.gpu_bytes + sign * other.gpu_bytes,
            self.host_bytes + sign * other.host_bytes,
            _sum(self.on, other.on, sign),
        )

    def of(self, gpu: int) -> float:
        """Return what is needed of a GPU, by its place in `on`."""
        return self.gpu_bytes + (self.on[gpu] if self.on else 0.0)


NO_LIMIT = Room(math.inf, math.inf)


def _sum(one: tuple[float, ...], other: tuple[float, ...], sign: float) -> tuple[float, ...]:
    if not other:
        return one
    if not one:
        return other if sign > 0.0 else tuple(-size for size in other)
    return tuple(a + sign * b for a, b in zip(one, other, strict=True))


class Budget:
    """What some models may hold together.

    Args:
        limit: the budget.
        needs: what each holds while it is loaded; one that is missing holds nothing.
        loads: what the next load of each takes, where that is something else: one that is to be
            loaded on another GPU than it is on.
    """

    def __init__(
        self,
        limit: Room,
        needs: Mapping[str, Room],
        loads: Mapping[str, Room] | None = None,
    ) -> None:
        self.limit = limit
        self._needs = needs
        self._loads = loads or {}

    def need(self, model: str) -> Room:
        """Return what a model holds while it is loaded."""
        return self._needs.get(model, Room(0.0, 0.0))

    def takes(self, model: str) -> Room:
        """Return what the next load of a model takes."""
        return self._loads.get(model) or self.need(model)

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
                until the new ones are ready: it holds its memory twice meanwhile, or once on each
                of two GPUs.
            held: what is loaded, or may be: operations under way count.
        """
        return self.within(self.total(held).plus(self.takes(model)))

    def share(self, model: str) -> float:
        """Return the largest share of a limit that a model takes; 0: none is limited."""
        return max(
            (
                need / limit
                for need, limit in self._compared(self.need(model))
                if math.isfinite(limit) and limit > 0.0
            ),
            default=0.0,
        )

    def within(self, room: Room) -> bool:
        """Return whether so much may be held."""
        return all(held <= limit for held, limit in self._compared(room))

    def _compared(self, room: Room) -> Iterator[tuple[float, float]]:
        """Yield what is held and what may be, of each place."""
        limit = self.limit
        yield room.host_bytes, limit.host_bytes
        if limit.on:
            for gpu, most in enumerate(limit.on):
                yield room.of(gpu), most
        else:
            yield room.gpu_bytes + max(room.on, default=0.0), limit.gpu_bytes
