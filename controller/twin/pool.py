"""What is loaded on the simulated GPUs: loads, unloads, resizes and reloads, with their memory.

Owns the operations that take time and the memory that they hold. It must not decide which.

As on the real server: a copy of a variant is loaded in `load_s`; another instance takes as long as
a load; a reload loads a copy beside the old one and holds twice the memory until it takes over;
what is unloaded first finishes what waits for it, and gives its memory back then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.twin import engine
from controller.twin.engine import State
from controller.twin.ladder import TwinVariant

if TYPE_CHECKING:
    from controller.twin.server import Physics


@dataclass(frozen=True, slots=True)
class _Pending:
    """An operation under way."""

    at_s: float
    variant: int
    gpu: int
    held_bytes: float  # beside the variant's own copy, until it is done
    instances: int  # then
    max_batch: int | None = None  # then; None: as it is
    leaves: int | None = None  # the GPU whose copy goes then


class Pool:
    """The copies and instances of every variant on every GPU."""

    def __init__(self, state: State, variants: Sequence[TwinVariant], physics: Physics) -> None:
        self.state = state
        self._variants = variants
        self._physics = physics
        self._instances: list[list[int]] = state.free.tolist()
        self._pending: list[_Pending] = []
        self.moves = 0  # from one GPU to another, so far
        self._leaving: list[tuple[int, int]] = []
        self.peak_bytes = max(self.used_bytes(gpu) for gpu in range(physics.gpus))

    def fork(self, state: State) -> Pool:
        """Return the same of a forked server."""
        other = copy(self)
        other._detach(state)  # noqa: SLF001 - of this class
        return other

    def _detach(self, state: State) -> None:
        self.state = state
        self._instances = [row.copy() for row in self._instances]
        self._pending, self._leaving = self._pending.copy(), self._leaving.copy()

    def instances(self, variant: int, gpu: int = 0) -> int:
        """Return how many instances there are, those not counted that are still to come."""
        return self._instances[variant][gpu]

    def used_bytes(self, gpu: int) -> float:
        """Return the memory that copies on a GPU hold, half-loaded and half-unloaded ones, too."""
        loading = {(p.variant, p.gpu) for p in self._pending} | set(self._leaving)
        held = sum(p.held_bytes for p in self._pending if p.gpu == gpu)
        return held + sum(
            own.memory_bytes
            for variant, own in enumerate(self._variants)
            if self._instances[variant][gpu] > 0 or (variant, gpu) in loading
        )

    def load(self, variant: int, gpu: int = 0, instances: int = 1) -> bool:
        """Load a copy of a variant; False: another operation on it, or too little memory."""
        if self._instances[variant][gpu] > 0:
            return False
        return self.resize(variant, instances, gpu)

    def unload(self, variant: int, gpu: int = 0) -> bool:
        """Unload a copy; False: it is the last that serves, or another operation is under way.

        Where copies stay on other GPUs it takes nothing more; the last one first does what waits,
        for requests that wait for a variant without any copy would wait for ever.
        """
        if self._is_busy(variant, gpu) or self._alone_serves(variant, gpu):
            return False
        self._leaving.append((variant, gpu))
        if self._stays_elsewhere(variant, gpu):
            self._set(variant, gpu, 0)
        self.release()
        return True

    def resize(self, variant: int, instances: int, gpu: int = 0) -> bool:
        """Change the number of instances: fewer at once, more in the time of a load.

        False: another operation on it is under way, or there is too little memory.
        """
        if self._is_busy(variant, gpu) or instances < 1:
            return False
        before = self._instances[variant][gpu]
        if instances <= before:
            self._set(variant, gpu, instances)
            return True
        return self._begin(_Pending(self._done_s(variant), variant, gpu, 0.0, instances))

    def reload(self, variant: int, max_batch: int) -> bool:
        """Give a variant another largest batch, on every GPU that has a copy.

        False: another operation on one is under way, there is no copy, or too little memory.

        Raises ValueError for a batch beyond the ladder.
        """
        own = self._variants[variant]
        if not 1 <= max_batch <= own.max_batch:
            raise ValueError(f"{own.name}: a batch of {max_batch} is not in 1 to {own.max_batch}")
        done_s = self._done_s(variant)
        copies = [
            _Pending(done_s, variant, gpu, own.memory_bytes, instances, max_batch)
            for gpu, instances in enumerate(self._instances[variant])
            if instances > 0
        ]
        if not copies or any(self._is_busy(variant, load.gpu) for load in copies):
            return False
        return self._begin(*copies)

    def move(self, variant: int, gpu: int) -> bool:
        """Load the copy of a variant on another GPU, in place of the one where it is.

        False: an operation is under way anywhere, it serves, it has not one copy somewhere else, or
        there is too little memory.
        """
        copies = self.places(variant)
        if self._pending or len(copies) != 1 or copies[0] == gpu:
            return False
        here = copies[0]
        if self._alone_serves(variant, here):
            return False
        instances, done_s = self._instances[variant][here], self._done_s(variant)
        return self._begin(_Pending(done_s, variant, gpu, 0.0, instances, leaves=here))

    def places(self, variant: int) -> tuple[int, ...]:
        """Return the GPUs that a variant has instances on."""
        return tuple(gpu for gpu, count in enumerate(self._instances[variant]) if count > 0)

    def is_busy(self, variant: int) -> bool:
        """Return whether an operation on a variant is under way on any GPU."""
        return any(self._is_busy(variant, gpu) for gpu in range(self._physics.gpus))

    def next_s(self) -> float:
        """Return when the next operation is done; infinite: none is under way."""
        return min((pending.at_s for pending in self._pending), default=math.inf)

    def finish(self, now_s: float) -> None:
        """Let those operations take effect that are done by now."""
        for pending in [p for p in self._pending if p.at_s <= now_s]:
            self._pending.remove(pending)
            self._set(pending.variant, pending.gpu, pending.instances)
            if pending.leaves is not None:
                self._set(pending.variant, pending.leaves, 0)
                self.moves += 1
            if pending.max_batch is not None:
                self.state.limits[pending.variant] = pending.max_batch

    def release(self) -> None:
        """Let those copies go that have nothing more to do."""
        for variant, gpu in tuple(self._leaving):
            instances = self._instances[variant][gpu]
            idle = self.state.free[variant, gpu] >= instances
            needed = instances > 0 and self.state.queued[variant, engine.WAITING] > 0
            if idle and not needed and not self._alone_serves(variant, gpu):
                self._set(variant, gpu, 0)
                self._leaving.remove((variant, gpu))

    def _alone_serves(self, variant: int, gpu: int) -> bool:
        """Return whether the alias points, or is about to, at a variant with this copy alone."""
        alias = self.state.alias_of[variant]
        own = self.state.alias[alias]
        serves = {int(own[engine.SERVING])}
        if self.state.alias_s[alias, engine.SWITCH_AT] < math.inf:
            serves.add(int(own[engine.SWITCH_TO]))
        return variant in serves and not self._stays_elsewhere(variant, gpu)

    def _stays_elsewhere(self, variant: int, gpu: int) -> bool:
        copies = (g for g, n in enumerate(self._instances[variant]) if n > 0 and g != gpu)
        return any((variant, other) not in self._leaving for other in copies)

    def _is_busy(self, variant: int, gpu: int) -> bool:
        pending = any((p.variant, p.gpu) == (variant, gpu) for p in self._pending)
        return pending or (variant, gpu) in self._leaving

    def _done_s(self, variant: int) -> float:
        """Return when a load is done that begins now."""
        own_s = self._variants[variant].load_s
        takes_s = self._physics.load_s if own_s is None else own_s
        return float(self.state.clock[engine.NOW]) + takes_s

    def _begin(self, *operations: _Pending) -> bool:
        """Begin all of some operations, or, where memory is too little for one, none."""
        before = self._pending.copy()
        self._pending += operations
        used = max(self.used_bytes(operation.gpu) for operation in operations)
        if used > self._physics.memory_bytes:
            self._pending = before
            return False
        self.peak_bytes = max(self.peak_bytes, used)
        return True

    def _set(self, variant: int, gpu: int, instances: int) -> None:
        self.state.free[variant, gpu] += instances - self._instances[variant][gpu]
        self._instances[variant][gpu] = instances
