"""Which GPU a variant's instances go on, where the policy leaves that to us.

Owns the choice of places and of the moves that are worth a load. It must not load anything, nor
choose what is loaded: `controller.planning.pool` does, under what is chosen here.

Method. Requests are slowed down by what others run beside them on their GPU. What that costs is,
for each two variants of different models on one GPU, the requests of one times the busy time of
the other, and the reverse: variants of one model take turns, so they do not disturb each other. On
a GPU that runs slower than what was learned all that counts more. It is made small under each
GPU's memory as a makespan is: the busiest first, each where it adds the least (longest processing
time, Graham 1969), then by single moves and swaps while one helps. What is loaded moves only if
that saves, within a horizon, twice what its load costs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.planning.expected import Work
from controller.planning.pool import HORIZON_S, LEAST_DISTURBED, LEAST_LOAD_S
from controller.prediction.disturbance import PRIOR

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HARM: Final = 0.1  # quality of a request that what is always busy beside it costs
_TWICE: Final = 2.0  # what a move must save, of what its load costs
_WORTH: Final = 0.02  # of all that others' work costs: to choose another place for what is nowhere
_MOVES: Final = 400  # of a search
_FEW: Final = 200
_SWAPPED: Final = 96  # the busiest, that are tried in each other's places
_NOTHING: Final = 1e-12
_FULL: Final = 1e-9  # of what a second costs, as a tie-breaker: to the emptiest GPU


@dataclass(frozen=True, slots=True)
class Placeable:
    """One variant, as far as its place matters."""

    name: str  # Triton's
    model: int  # whose variants take turns with it
    rate_rps: float  # expected of it, by weight
    busy: float  # seconds a second that those take, at the speed that was learned
    need_bytes: float  # of the GPU that it is on
    at: tuple[int, ...] = ()  # where it is, or was to be; (): nowhere, or not known
    allowed: tuple[int, ...] = ()  # we choose one of these; (): it stays where it is
    held: bool = False  # it is loaded, or may be
    may_move: bool = True  # it serves nobody
    load_s: float = 1.0


class Standing(NamedTuple):
    """How a variant stands on the server."""

    need_bytes: float  # of the GPU that it is on; 0: not known
    held: bool  # it is loaded, or may be
    at: tuple[int, ...]  # where it is, or will be loaded; (): not known
    may_move: bool  # it serves nobody and is ours
    fixed: bool = False  # its config lets nobody choose its GPUs


def placeables(
    work: Iterable[Work],
    standing: Mapping[str, Standing],
    allowed: Mapping[str, tuple[int, ...]],
    gpus: tuple[int, ...],
    load_s: Mapping[str, float],
) -> list[Placeable]:
    """Return what is to be placed, and what is only in the way.

    Args:
        work: that is expected of the variants.
        standing: of them, by Triton's name; one that has none is left out.
        allowed: the GPUs of each that we place; (): any.
        gpus: that may be used.
        load_s: seconds of a load of each.
    """
    return [
        Placeable(
            one.name,
            one.model,
            one.rate_rps,
            one.busy,
            standing[one.name].need_bytes,
            at=standing[one.name].at,
            allowed=()
            if one.name not in allowed or standing[one.name].fixed
            else allowed[one.name] or gpus,
            held=standing[one.name].held,
            may_move=standing[one.name].may_move,
            load_s=load_s.get(one.name, 0.0),
        )
        for one in work
        if one.name in standing
    ]


@dataclass(frozen=True, slots=True)
class PlacePlan:
    """Where variants go."""

    aims: Mapping[str, tuple[int, ...]]  # of all that we place, by Triton's name
    move: str | None  # the one of those that are loaded that is to move now
    gain: float = 0.0  # quality a second, of that move


_ORDERS: Final[tuple[Callable[[Placeable], float], ...]] = (
    lambda item: item.busy,
    lambda item: item.rate_rps,
    lambda item: item.busy * item.rate_rps,
    lambda item: item.need_bytes,
)


class Places:
    """The search for one moment.

    Args:
        gpus: that are there and may be used.
        limits_bytes: what variants may hold of each; infinite: no limit.
        slowdown: the present time of a batch over what was learned, of each.
        disturbed: the share of the requests on a GPU that is lost to a load, as long as it takes.
    """

    def __init__(
        self,
        gpus: Sequence[int],
        limits_bytes: Sequence[float],
        slowdown: Sequence[float],
        disturbed: float = PRIOR,
    ) -> None:
        self._disturbed = max(disturbed, LEAST_DISTURBED)
        self._gpus = tuple(gpus)
        self._column = {gpu: at for at, gpu in enumerate(gpus)}
        self._limits = np.array(limits_bytes, dtype=np.float64)
        self._slow = np.array(slowdown, dtype=np.float64)

    def plan(self, items: Sequence[Placeable]) -> PlacePlan:
        """Return where everything goes that we place, and the next move.

        What serves and what the policy places stay; one that is on a GPU that may not be used is
        placed as if it were nowhere. One move at a time, as each is a load.
        """
        if not self._gpus:
            return PlacePlan({}, None)
        ours = [i for i, item in enumerate(items) if item.allowed]
        first = _Board(self, items)
        loose = [i for i in ours if not first.is_placed(i)]
        stranded = {i for i in loose if items[i].held}
        free = np.array([i in stranded or not items[i].held for i in range(len(items))])
        free &= np.array([bool(item.allowed) for item in items])
        found: list[_Board] = []
        # Local steps may be stuck: of few, several orders are tried.
        for order in _ORDERS if 0 < len(loose) <= _FEW else _ORDERS[:1]:
            board = _Board(self, items) if found else first
            for i in sorted(loose, key=lambda i: -order(items[i])):
                board.put(i, board.best(i))
            board.improve(free)
            found.append(board)
        board = min(found, key=lambda one: (one.over(), one.total()))
        move, gain = board.dearest_move([i for i in ours if items[i].may_move and not free[i]])
        aims = {items[i].name: self._aim(board, items[i], i) for i in ours}
        if move is not None:
            i, gpu = move
            aims[items[i].name] = (self._gpus[gpu],)
        waiting = sorted(stranded, key=lambda i: items[i].busy / max(items[i].rate_rps, _NOTHING))
        waiting = [i for i in waiting if items[i].may_move]
        if waiting:  # those first that nobody can use where they are, and of them the fastest
            return PlacePlan(aims, items[waiting[0]].name)
        return PlacePlan(aims, None if move is None else items[move[0]].name, gain)

    def _aim(self, board: _Board, item: Placeable, i: int) -> tuple[int, ...]:
        """Return where one goes; where none of those that are allowed is there, not elsewhere."""
        at = board.where(i)
        if at is not None:
            return (self._gpus[at],)
        return item.at if item.held and item.at else item.allowed[:1]

    def cost(self, items: Sequence[Placeable], aims: Mapping[str, tuple[int, ...]]) -> float:
        """Return what others' work costs with everything in some places, for comparison."""
        moved = [
            Placeable(i.name, i.model, i.rate_rps, i.busy, i.need_bytes, aims.get(i.name, i.at))
            for i in items
        ]
        return _Board(self, moved).total()

    def fits(self, items: Sequence[Placeable], aims: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether everything would have room."""
        used = np.zeros(len(self._gpus))
        for item in items:
            for gpu in aims.get(item.name, item.at):
                used[self._column[gpu]] += item.need_bytes
        return bool((used <= self._limits).all())


class _Board:
    """Who is where, with what each change would do."""

    def __init__(self, places: Places, items: Sequence[Placeable]) -> None:
        self._gpus, self._column = places._gpus, places._column  # noqa: SLF001 - its own search
        self._limits, self._slow = places._limits, places._slow  # noqa: SLF001
        self._items, self._disturbed = items, places._disturbed  # noqa: SLF001
        count, gpus = len(items), len(self._gpus)
        ids = {model: at for at, model in enumerate(dict.fromkeys(item.model for item in items))}
        self._model = np.array([ids[item.model] for item in items], dtype=np.int64)
        self._rate = np.array([item.rate_rps for item in items], dtype=np.float64)
        self._busy = np.array([item.busy for item in items], dtype=np.float64)
        self._need = np.array([item.need_bytes for item in items], dtype=np.float64)
        self._at = np.full(count, -1, dtype=np.int64)  # of those on one GPU; -1: none, or several
        self._may = np.zeros((count, gpus), dtype=np.bool_)
        # Sums over what is on each GPU, and the same of each model.
        self._rates, self._busies = np.zeros(gpus), np.zeros(gpus)
        self._own_rates, self._own_busies = np.zeros((len(ids), gpus)), np.zeros((len(ids), gpus))
        self._used, self._alone = np.zeros(gpus), np.zeros(gpus)
        for i, item in enumerate(items):
            self._may[i, [self._column[g] for g in item.allowed if g in self._column]] = True
            on = [self._column[gpu] for gpu in item.at if gpu in self._column]
            if item.allowed and len(on) == 1 == len(item.at) and self._may[i, on[0]]:
                self.put(i, on[0])
            elif not item.allowed and on:
                for gpu in on:
                    self._add(i, gpu, 1.0 / len(item.at), 1.0 if item.held else 0.0)

    def is_placed(self, i: int) -> bool:
        """Return whether one is where it may be, or may be nowhere."""
        return bool(self._at[i] >= 0) or not self._may[i].any()

    def where(self, i: int) -> int | None:
        """Return the GPU of one, by its place; None: it may be nowhere."""
        return None if self._at[i] < 0 else int(self._at[i])

    def put(self, i: int, gpu: int) -> None:
        """Put one where it was not."""
        if self._at[i] >= 0:
            self._add(i, int(self._at[i]), -1.0, -1.0)
        self._at[i] = gpu
        self._add(i, gpu, 1.0, 1.0)

    def _add(self, i: int, gpu: int, share: float, copies: float) -> None:
        model = self._model[i]
        for sums, own, size in (
            (self._rates, self._own_rates, self._rate[i]),
            (self._busies, self._own_busies, self._busy[i]),
        ):
            sums[gpu] += share * size
            own[model, gpu] += share * size
        self._alone[gpu] += share * self._rate[i] * self._busy[i]
        self._used[gpu] += copies * self._need[i]

    def _costs(self, some: Ints) -> Floats:
        """Return what the work beside each of some would cost on each GPU. [some, gpus]."""
        model, rate, busy = self._model[some], self._rate[some, None], self._busy[some, None]
        beside = rate * (self._busies - self._own_busies[model])
        beside += busy * (self._rates - self._own_rates[model])
        return np.asarray(self._slow * (beside + rate * busy))

    def best(self, i: int) -> int:
        """Return where one adds the least, of the GPUs that have room; or the emptiest."""
        costs = self._costs(np.array([i]))[0]
        left = self._limits - self._used - self._need[i]
        costs = np.where(self._may[i], costs, np.inf)
        roomy = np.where(left >= 0.0, costs, np.inf)
        if not np.isfinite(roomy).any():
            return int(np.argmax(np.where(self._may[i], left, -np.inf)))
        finite = np.isfinite(self._limits)
        size = np.where(finite & (self._limits > 0.0), self._limits, 1.0)
        full = np.where(finite, self._used / size, self._used / max(float(self._used.max()), 1.0))
        return int(np.argmin(roomy + _FULL * full * max(float(np.abs(costs).min()), 1.0)))

    def total(self) -> float:
        """Return what all work beside others costs, each pair once, and each on its own."""
        beside = self._rates * self._busies - (self._own_rates * self._own_busies).sum(axis=0)
        return float((self._slow * (beside + self._alone)).sum())

    def over(self) -> float:
        """Return what is held beyond the limits, if everything is loaded."""
        return float(np.maximum(self._used - self._limits, 0.0).sum())

    def improve(self, free: NDArray[np.bool_]) -> None:
        """Move and swap what is not loaded while that helps."""
        some = np.flatnonzero(free & (self._at >= 0))
        if not some.size or len(self._gpus) < 2:
            return
        worth = _WORTH * self.total() / max(len(self._items), 1) + _NOTHING
        for _ in range(_MOVES):
            costs = self._costs(some)
            now = costs[np.arange(len(some)), self._at[some]]
            room = self._limits - self._used - self._need[some, None] >= 0.0
            saved = np.where(self._may[some] & room, now[:, None] - costs, -np.inf)
            saved[np.arange(len(some)), self._at[some]] = -np.inf
            row, gpu = divmod(int(np.argmax(saved)), len(self._gpus))
            if saved[row, gpu] > worth:
                self.put(int(some[row]), gpu)
            elif not self._swap(some, worth):
                return

    def _swap(self, some: Ints, worth: float) -> bool:
        """Let the two change places that gain the most by it; False: none would."""
        some = some[np.argsort(-self._busy[some], kind="stable")[:_SWAPPED]]
        costs, at = self._costs(some), self._at[some]
        rows = np.arange(len(some))
        now = costs[rows, at]
        to_other = costs[:, at]  # [one, other]: one where the other is
        rate, busy, model, need = self._rate[some], self._busy[some], self._model[some], self._need
        pair = np.outer(rate, busy)
        pair = np.where(model[:, None] == model[None, :], 0.0, pair + pair.T)
        # The other is not there any more when one comes.
        gone = (self._slow[at][:, None] + self._slow[at][None, :]) * pair
        saved = now[:, None] + now[None, :] - to_other - to_other.T + gone
        left = (self._limits - self._used)[at]
        need = need[some]
        fits = left[None, :] + need[None, :] - need[:, None] >= 0.0
        may = self._may[some][:, at]
        saved = np.where(fits & fits.T & may & may.T & (at[:, None] != at[None, :]), saved, -np.inf)
        one, other = divmod(int(np.argmax(saved)), len(some))
        if not saved[one, other] > worth:
            return False
        here, there = int(at[one]), int(at[other])
        self.put(int(some[one]), there)
        self.put(int(some[other]), here)
        return True

    def dearest_move(self, candidates: Collection[int]) -> tuple[tuple[int, int] | None, float]:
        """Return the move of one that is loaded that saves the most, and what it saves a second.

        None: none saves twice what its load costs.
        """
        some = np.array([i for i in candidates if self._at[i] >= 0], dtype=np.int64)
        if not some.size or len(self._gpus) < 2:
            return None, 0.0
        costs = self._costs(some)
        now = costs[np.arange(len(some)), self._at[some]]
        # Both copies are there until the new one is ready.
        room = self._limits - self._used - self._need[some, None] >= 0.0
        saved = _HARM * (now[:, None] - costs)
        load_s = np.array([max(self._items[i].load_s, LEAST_LOAD_S) for i in some])
        beside = np.maximum(self._rates, self._rates.mean())  # a load is work elsewhere, too
        price = load_s[:, None] * self._disturbed * beside / HORIZON_S
        net = np.where(self._may[some] & room, saved - _TWICE * price, -np.inf)
        net[np.arange(len(some)), self._at[some]] = -np.inf
        row, gpu = divmod(int(np.argmax(net)), len(self._gpus))
        if not net[row, gpu] > _NOTHING:
            return None, 0.0
        return (int(some[row]), gpu), float(saved[row, gpu])
