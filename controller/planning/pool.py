"""The warm pool: which variants stay loaded, where memory does not hold all.

Owns the choice of what is loaded and the next step towards it. It must not load anything.

Method. Of every model there are moments, each with the requests a second and what one would be
worth on each variant (`controller.prediction.demand`). A set of loaded variants is worth, at each
moment, what its best one is worth: a facility-location function, monotone and submodular, under
a knapsack of memory. It is increased by local search from what is held, by moves (one variant in,
those out that are missed the least for the room) that are worth more within a horizon than the
loads they need cost; and compared with a greedy choice from nothing (Sviridenko 2004; Khuller,
Moss & Naor 1999), since local steps may be stuck.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.budget import Budget
from controller.prediction.disturbance import PRIOR

Floats = NDArray[np.float64]

HORIZON_S: Final = 300.0  # within which a load must earn its cost
LEAST_DISTURBED: Final = 0.005  # where loads are not felt: none is for nothing
LEAST_LOAD_S: Final = 1.0
_MOVES: Final = 64  # of a search
_TRIED: Final = 12  # variants for each move
_FEW: Final = 64  # variants: of more, pairs are not tried
_NOTHING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Wish:
    """What one model wants of the pool."""

    models: tuple[str, ...]  # Triton's names of its variants
    rate_rps: Floats  # of each moment, by how likely it is. [moments]
    worth: Floats  # of a request on each variant, [moments, variants]


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What shall be loaded, and the next step towards it."""

    wanted: frozenset[str]  # Triton's names
    load: tuple[str, ...]  # those that may be loaded now, in this order
    unload: str | None  # now; it serves nobody
    gain: float = 0.0  # effective quality of all requests, of the wanted over what is held


class Pool:
    """The search for one moment.

    Args:
        wishes: of the models.
        budget: what the variants may hold.
        load_s: how long a load of each takes.
        disturbed: the share of all requests that is lost to a load, as long as it takes.
    """

    def __init__(
        self,
        wishes: Sequence[Wish],
        budget: Budget,
        load_s: Mapping[str, float],
        disturbed: float = PRIOR,
    ) -> None:
        self.wishes = wishes
        self.budget = budget
        self._load_s = load_s
        self._disturbed = max(disturbed, LEAST_DISTURBED)
        self.uses: dict[str, list[tuple[int, int]]] = {}
        for at, wish in enumerate(wishes):
            for column, name in enumerate(wish.models):
                self.uses.setdefault(name, []).append((at, 1 << column))
        self.sizes = {name: max(budget.share(name), _NOTHING) for name in self.uses}
        self._known: list[dict[int, float]] = [{0: 0.0} for _ in wishes]
        self._total_rps = max(sum(float(wish.rate_rps.sum()) for wish in wishes), _NOTHING)

    def worth(self, models: Iterable[str]) -> float:
        """Return what the requests of a second are worth, with some variants loaded."""
        masks = self.masks(models)
        return sum(self._model_worth(at, mask) for at, mask in enumerate(masks))

    def plan(
        self,
        *,
        held: Collection[str],
        serving: Collection[str],
        keep: Sequence[str],
        blocked: Collection[str] = (),
        humble: Collection[str] = (),
    ) -> PoolPlan:
        """Return what to do now.

        Args:
            held: what is loaded, or may be.
            serving: stands behind an alias, or is about to: never unloaded.
            keep: to be loaded before anything else, in this order: the fastest of each model.
            blocked: cannot be loaded now.
            humble: may use room that is left, but not take that of others.
        """
        held = frozenset(held) & self.uses.keys()
        must = [name for name in dict.fromkeys(serving) if name in self.uses]
        for name in dict.fromkeys(keep):
            if name in must or not (name in held or name not in blocked):
                continue
            # What is the way out of an overload is not given up, whatever else is too large.
            if name in held or self.budget.fits([*must, name]):
                must.append(name)
        free = [name for name in self.uses if name in held or name not in blocked]
        wanted = self._choose(frozenset(must), held, free, frozenset(humble) - held)
        return self._step(wanted, must, held)

    # -- which -----------------------------------------------------------------------------

    def _choose(
        self,
        must: frozenset[str],
        held: frozenset[str],
        free: Collection[str],
        humble: frozenset[str],
    ) -> frozenset[str]:
        """Return the best of what is held, what moves from there and what a new choice give."""
        bold = [name for name in free if name not in humble]
        kept = _Selection(self, held, bold, must)
        for name in sorted(held - must):
            kept.add(name)
        kept.shrink()
        moved = kept.copy()
        self._improve(moved)
        anew = self._anew(_Selection(self, held, bold, must))
        self._improve(anew)
        best = max((kept, moved, anew), key=lambda found: found.net)
        chosen = best if best.net > kept.net + _NOTHING else kept
        chosen.top_up(name for name in free if name in humble and name not in must)
        return frozenset(chosen.losses) | must

    @staticmethod
    def _anew(empty: _Selection) -> _Selection:
        """Return the best greedy choice: from nothing, and from each pair of what gains the most.

        A greedy one takes what is small and good for its memory, and has no room left for what is
        large and good (partial enumeration: Sviridenko 2004). Among very many that makes no
        difference, and takes a second.
        """
        best = empty.copy()
        best.fill()
        if len(empty.gains) > _FEW:
            return best
        likely = heapq.nlargest(_TRIED, empty.gains, key=empty.gains.__getitem__)
        for pair in itertools.combinations(likely, 2):
            found = empty.copy()
            if all(found.take(name) for name in pair):
                found.fill()
                best = max(best, found, key=lambda one: one.net)
        return best

    @staticmethod
    def _improve(found: _Selection) -> None:
        """Move while a move is worth its load."""
        for _ in range(_MOVES):
            likely = heapq.nlargest(_TRIED, found.gains, key=found.gains.__getitem__)
            best = None
            for name in likely:
                if found.gains[name] <= _NOTHING:
                    break
                move = found.copy()
                move.add(name)
                fits = move.shrink(but=name)
                if fits and move.net > (found if best is None else best).net + _NOTHING:
                    best = move
            if best is None:
                return
            found.become(best)

    def cost(self, name: str) -> float:
        """Return what a load costs: requests that miss by it."""
        takes_s = max(self._load_s.get(name, 0.0), LEAST_LOAD_S)
        return takes_s * self._total_rps * self._disturbed

    # -- what sets are worth: of each model a set is a mask, seen once and then known -----------

    def masks(self, models: Iterable[str]) -> list[int]:
        """Return the variants among some, of each model."""
        masks = [0] * len(self.wishes)
        for name in models:
            for at, bit in self.uses[name]:
                masks[at] |= bit
        return masks

    def gain(self, name: str, masks: Sequence[int]) -> float:
        """Return what one more variant would add."""
        return sum(
            self._model_worth(at, masks[at] | bit) - self._model_worth(at, masks[at])
            for at, bit in self.uses[name]
        )

    def loss(self, name: str, masks: Sequence[int]) -> float:
        """Return what is lost without a variant."""
        return sum(
            self._model_worth(at, masks[at]) - self._model_worth(at, masks[at] & ~bit)
            for at, bit in self.uses[name]
        )

    def _model_worth(self, at: int, mask: int) -> float:
        known = self._known[at]
        found = known.get(mask)
        if found is None:
            wish = self.wishes[at]
            columns = [column for column in range(len(wish.models)) if mask >> column & 1]
            found = known[mask] = float(wish.rate_rps @ wish.worth[:, columns].max(axis=1))
        return found

    # -- the next step -----------------------------------------------------------------------

    def _step(
        self,
        wanted: frozenset[str],
        must: Sequence[str],
        held: frozenset[str],
    ) -> PoolPlan:
        ranks, masks = {name: rank for rank, name in enumerate(must)}, self.masks(wanted & held)
        order = {
            name: (ranks.get(name, math.inf), -self.gain(name, masks), name)
            for name in wanted - held
        }
        load: list[str] = []
        waits = False
        for name in sorted(order, key=order.__getitem__):
            if self.budget.admits(name, [*held, *load]):
                load.append(name)
            else:
                waits = True
        unload = None
        if waits or not self.budget.fits(held):
            loaded = self.masks(held)
            unload = min(
                sorted(held - wanted - set(must)),
                key=lambda name: self.loss(name, loaded) / self.sizes[name],
                default=None,
            )
        gain = (self.worth(wanted) - self.worth(held)) / self._total_rps
        return PoolPlan(wanted, tuple(load), unload, gain)


class _Selection:
    """Some variants that may stay loaded, with what each change of them would do."""

    def __init__(
        self, pool: Pool, held: frozenset[str], free: Collection[str], must: frozenset[str]
    ) -> None:
        self._pool = pool
        self._held = held
        self._masks = pool.masks(must)
        self._room = pool.budget.total(must)
        self.net = 0.0  # worth within the horizon, less loads; of `must` and what is held: nothing
        self.losses: dict[str, float] = {}  # of those beyond `must`
        self.gains = {name: pool.gain(name, self._masks) for name in free if name not in must}

    def copy(self) -> _Selection:
        """Return the same, to try something out."""
        other = copy(self)
        other._masks, other.losses, other.gains = (  # noqa: SLF001 - of this class
            self._masks.copy(),
            self.losses.copy(),
            self.gains.copy(),
        )
        return other

    def become(self, other: _Selection) -> None:
        """Take over another's selection."""
        self._masks, self._room, self.net = other._masks, other._room, other.net
        self.losses, self.gains = other.losses, other.gains

    def add(self, name: str) -> None:
        """Select one more."""
        gain = self.gains.pop(name)
        self.losses[name] = gain
        self._move(name, gain, 1.0)

    def remove(self, name: str) -> None:
        """Select one less."""
        loss = self.losses.pop(name)
        self.gains[name] = loss
        self._move(name, -loss, -1.0)

    def take(self, name: str) -> bool:
        """Select one more if there is room; False: there is not."""
        fits = self.fits(name)
        if fits:
            self.add(name)
        return fits

    def fits(self, name: str) -> bool:
        """Return whether there is room for one more."""
        return self._pool.budget.within(self._room.plus(self._pool.budget.need(name)))

    def shrink(self, but: str | None = None) -> bool:
        """Remove what is missed the least for its memory until the rest fits; False: it does not.

        Of what nobody misses, the largest.
        """
        budget, sizes = self._pool.budget, self._pool.sizes
        while not budget.within(self._room):
            name = min(
                (one for one in self.losses if one != but),
                key=lambda one: (self.losses[one] / sizes[one], -sizes[one]),
                default=None,
            )
            if name is None:
                return False
            self.remove(name)
        return True

    def fill(self) -> None:
        """Add what is worth the most for its memory, as long as there is room."""
        # Gains only fall as the selection grows: one that is still as it was is the largest.
        sizes = self._pool.sizes
        queue = [(-gain / sizes[name], name) for name, gain in self.gains.items()]
        heapq.heapify(queue)
        while queue:
            density, name = heapq.heappop(queue)
            now = -self.gains[name] / sizes[name]
            if now > density:
                heapq.heappush(queue, (now, name))
            elif self.gains[name] > _NOTHING and self.fits(name):
                self.add(name)

    def top_up(self, humble: Iterable[str]) -> None:
        """Use the room that is left: what is loaded need not be loaded when it is needed."""
        self.gains |= {name: self._pool.gain(name, self._masks) for name in humble}
        order = {
            name: (name not in self._held, -gain / self._pool.sizes[name], self._pool.sizes[name])
            for name, gain in self.gains.items()
        }
        for name in sorted(order, key=order.__getitem__):
            if self.fits(name):
                self.add(name)

    def _move(self, name: str, gain: float, sign: float) -> None:
        pool = self._pool
        self._room = self._room.plus(pool.budget.need(name), sign)
        paid = 0.0 if name in self._held else pool.cost(name)
        self.net += gain * HORIZON_S - sign * paid
        for at, bit in pool.uses[name]:
            self._masks[at] ^= bit
        for at, _ in pool.uses[name]:
            for other in pool.wishes[at].models:
                if other in self.gains:
                    self.gains[other] = pool.gain(other, self._masks)
                elif other in self.losses:
                    self.losses[other] = pool.loss(other, self._masks)
