"""Which variants stay loaded under a memory budget: the governor's pool beside LRU, LFU and GDS.

    python benchmarks/pool.py [--data FOLDER] [--seconds 3600] [--days 2]
    python benchmarks/pool.py --lost 0 0.05 0.3 [--data FOLDER] [--seconds 3600]

Ten models on one GPU, each with a ladder and a trace of its own. At every second a model uses the
best of its loaded variants that bears the second's load (fluid: nothing else is simulated), and the
caches are asked for the best of all. All of them keep the fastest variant of each model, load one
variant at a time, and lose a share of all requests meanwhile. Ladders do not tell memory: here a
variant takes 0.3 GiB and 0.2 GiB more for every millisecond of a row; a load takes 2 s and 1 s per
GiB. `--days`: the same with traces stretched to days that repeat, with a noise of their own.

`--lost`: what loads really cost, one table for all: the governor with the constant that it begins
with, as it learns it from the requests (with 1 % late anyhow), and told it.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.planning.budget import Budget, Room
from controller.planning.pool import Pool, Wish
from controller.prediction.demand import Demand
from controller.prediction.disturbance import PRIOR, Disturbances, Ended, Traffic
from controller.twin.ladder import load_ladder
from controller.twin.trace import load_trace

Floats = NDArray[np.float64]

DATA = Path(__file__).with_name("data")
LIMITS_S = (0.06, 0.2)
PEAK = 1.67
BEARS = 0.9  # of its capacity
LOST = 0.05  # of all requests, while a variant is loaded, if nothing else is asked for
LATE = 0.01  # of all requests, anyhow
GIB = float(2**30)
PLAN_S = 5.0
DAY_S = 86_400
MINUTE, HOUR = 60, 3600
PATIENCE = (1, 10, 30, 50)  # seconds of a minute that a cache wants a variant for, to load it
WARM_UP_S = 600  # that are not scored


@dataclass(frozen=True)
class Served:
    """One model: what a request is worth on each variant, second by second."""

    names: tuple[str, ...]
    rate_rps: Floats  # [seconds]
    worth: Floats  # [seconds, variants]
    fastest: int


@dataclass(frozen=True)
class World:
    """Some models and what their variants take."""

    models: list[Served]
    needs: dict[str, Room]
    load_s: dict[str, float]
    lost: float = LOST  # of all requests, while a variant is loaded

    @property
    def seconds(self) -> int:
        """Return the length of the traces."""
        return len(self.models[0].rate_rps)

    @property
    def least(self) -> float:
        """Return the bytes of the fastest variants together."""
        return sum(self.needs[m.names[m.fastest]].gpu_bytes for m in self.models)

    @property
    def most(self) -> float:
        """Return the bytes of everything."""
        return sum(need.gpu_bytes for need in self.needs.values())


def make_world(folder: Path, seconds: int, *, stretch: int = 1, days: int = 1) -> World:
    """Read ladders and traces; each model gets another pair, and another part of the trace."""
    traces = [
        load_trace(path) for path in sorted([*folder.glob("*.csv"), *folder.glob("traces/*.csv")])
    ]
    traces = [t for t in traces if t.step_s == 1.0 and len(t.rate_rps) >= 120]
    ladders = [load_ladder(path) for path in sorted(DATA.glob("*.yaml"))]
    models, needs, load_s = [], {}, {}
    rng = np.random.default_rng(0)
    for at in range(2 * len(ladders)):
        ladder, limit_s = ladders[at % len(ladders)], LIMITS_S[at % 2]
        trace = traces[at % len(traces)]
        able = [v for v in ladder.variants if v.capacity_rps(limit_s) > 0.0]
        bears = np.array([v.capacity_rps(limit_s) for v in able])
        quality = np.array([v.quality for v in able])
        rate = np.roll(trace.rate_rps, -37 * at)
        if stretch > 1:
            rate = np.convolve(np.resize(rate, len(rate) + 29), np.ones(30) / 30, "valid")
            rate = np.repeat(rate, stretch)[:DAY_S]
            rate = np.concatenate([rate * f for f in rng.uniform(0.9, 1.1, days)])
        rate = np.resize(rate, seconds)
        rate = rate * min(
            PEAK * bears[quality.argmax()] / max(np.quantile(rate, 0.99), 1e-9),
            0.95 * bears.max() / rate.max(),
        )
        rate = rng.poisson(rate).astype(np.float64)
        served = np.where(rate[:, None] <= BEARS * bears, 1.0, 0.0)
        fastest = int(bears.argmax())
        served[:, fastest] = np.minimum(bears[fastest] / np.maximum(rate, 1e-9), 1.0)
        names = tuple(f"{at}-{ladder.name}-{v.name}" for v in able)
        models.append(Served(names, rate, served * quality, fastest))
        for name, variant in zip(names, able, strict=True):
            gib = 0.3 + 0.2 * 1e3 * float(variant.table_s[0])
            needs[name], load_s[name] = Room(gib * GIB, 0.0), 2.0 + gib
    return World(models, needs, load_s)


class Policy:
    """Loads what it likes, one at a time, within the budget."""

    def __init__(self, world: World, budget: Budget, patience: int = 1) -> None:
        self.world, self.budget, self.patience = world, budget, patience
        self.keep = [m.names[m.fastest] for m in world.models]
        self.held = set(self.keep)
        self.used: dict[str, float] = {}
        self.asked: dict[str, float] = {}  # seconds of about the last minute

    def ask(self, second: int) -> str | None:
        """Return what to load now, after what must go for it went."""
        raise NotImplementedError

    def see(self, second: int, coming: str | None) -> None:
        """Take in what became of a second's requests, beside what is loaded."""

    def room_for(self, name: str, order: dict[str, float], using: set[str]) -> bool:
        """Unload what comes first in an order until there is room."""
        while not self.budget.admits(name, self.held):
            found = [one for one in self.held if one not in self.keep and one not in using]
            if not found:
                return False
            self.held.remove(min(found, key=lambda one: order.get(one, 0.0)))
        return True

    def wishes(self, second: int) -> Iterator[tuple[float, str]]:
        """Yield (requests, variant) that would be used now if it were loaded."""
        for model in self.world.models:
            if model.rate_rps[second] > 0.0:
                best = int(model.worth[second].argmax())
                yield float(model.rate_rps[second]), model.names[best]

    def using(self, second: int) -> set[str]:
        """Return what is used now, of what is held."""
        found = set()
        for model in self.world.models:
            held = [v for v, name in enumerate(model.names) if name in self.held]
            found.add(model.names[max(held, key=lambda v: model.worth[second][v])])
        return found


class Cache(Policy):
    """What is wanted and not there is loaded; what goes for it, the priority says."""

    def priority(self, name: str, second: int) -> float:
        """Return it for a variant that is wanted now."""
        raise NotImplementedError

    def ask(self, second: int) -> str | None:
        """Load what is wanted often enough, of that what the most requests want."""
        missing = []
        for name in self.asked:
            self.asked[name] *= 1.0 - 1.0 / MINUTE
        for requests, name in self.wishes(second):
            self.used[name] = self.priority(name, second)
            self.asked[name] = self.asked.get(name, 0.0) + 1.0
            if name not in self.held and self.asked[name] >= self.patience:
                missing.append((requests, name))
        for _, name in sorted(missing, reverse=True):
            if self.room_for(name, self.used, self.using(second)):
                return name
        return None


class Lru(Cache):
    """The least recently used goes."""

    def priority(self, name: str, second: int) -> float:  # noqa: ARG002 - all are asked alike
        """Return when it was used."""
        return float(second)


class Lfu(Cache):
    """The least used goes; a use counts half after an hour."""

    def priority(self, name: str, second: int) -> float:
        """Return the uses, each worth more than the one before."""
        return self.used.get(name, 0.0) + 2.0 ** (second / HOUR)


class Gds(Cache):
    """GreedyDual-Size (Cao & Irani 1997): what is cheap to load again for its size goes."""

    inflation = 0.0

    def priority(self, name: str, second: int) -> float:  # noqa: ARG002 - all are asked alike
        """Return the cost of a load for its share of memory, above what went last."""
        return self.inflation + self.world.load_s[name] / self.budget.share(name)

    def room_for(self, name: str, order: dict[str, float], using: set[str]) -> bool:
        """Let what goes raise what stays."""
        before = set(self.held)
        found = super().room_for(name, order, using)
        gone = [order.get(one, 0.0) for one in before - self.held]
        self.inflation = max([self.inflation, *gone])
        return found


class Ours(Policy):
    """The governor's."""

    def __init__(self, world: World, budget: Budget, disturbed: float | None = None) -> None:
        super().__init__(world, budget)
        self.demands = [Demand(len(model.names)) for model in world.models]
        self.disturbed = disturbed  # None: it is learned
        self.learned = Disturbances()
        self.rng = np.random.default_rng(1)

    def see(self, second: int, coming: str | None) -> None:
        """Count what is late, by chance, of what each model served on the variant it uses."""
        using, traffic = self.using(second), []
        for at, model in enumerate(self.world.models):
            count = int(model.rate_rps[second])
            share = LATE + (self.world.lost if coming is not None else 0.0)
            ended = Ended(
                next(name for name in model.names if name in using),
                count,
                int(self.rng.binomial(count, share)),
                second + 0.5,
            )
            traffic.append(Traffic(str(at), count, (ended,)))
        operations = {} if coming is None else {coming: "load"}
        self.learned.look(second + 1.0, 1.0, operations, traffic)

    def ask(self, second: int) -> str | None:
        """Plan every few seconds, and take the plan's steps."""
        for demand, model in zip(self.demands, self.world.models, strict=True):
            demand.observe(second, model.rate_rps[second], model.worth[second])
        if second % PLAN_S:
            return None
        wishes = []
        for demand, model in zip(self.demands, self.world.models, strict=True):
            rate, worth = demand.expected(second, lead_s=self.lead_s)
            wishes.append(Wish(model.names, rate, worth))
        disturbed = self.learned.share("load") if self.disturbed is None else self.disturbed
        pool = Pool(wishes, self.budget, self.world.load_s, disturbed)
        while True:
            plan = pool.plan(held=self.held, serving=self.using(second), keep=self.keep)
            if plan.load:
                return plan.load[0]
            if plan.unload is None:
                return None
            self.held.remove(plan.unload)

    lead_s = 60.0


def static(world: World, budget: Budget) -> set[str]:
    """Return the set that is the best of all that never change, seen afterwards."""
    wishes = [Wish(m.names, m.rate_rps / len(m.rate_rps), m.worth) for m in world.models]
    keep = [m.names[m.fastest] for m in world.models]
    free = Pool(wishes, budget, dict.fromkeys(world.needs, 0.0))
    return set(free.plan(held=keep, serving=(), keep=keep).wanted)


def score(world: World, held_at: list[frozenset[str]], loading: NDArray[np.bool_]) -> float:
    """Return the effective quality of all requests."""
    total = worth = 0.0
    for model in world.models:
        masks = {}
        for at in set(held_at):
            masks[at] = np.array([name in at for name in model.names])
        mask = np.array([masks[at] for at in held_at])
        best = np.where(mask, model.worth, 0.0).max(axis=1)
        lost = np.where(loading, 1.0 - world.lost, 1.0)
        worth += float((model.rate_rps * best * lost)[WARM_UP_S:].sum())
        total += float(model.rate_rps[WARM_UP_S:].sum())
    return worth / total


def drive(policy: Policy) -> tuple[float, int]:
    """Return (effective quality, loads)."""
    world = policy.world
    held_at, loading = [], np.zeros(world.seconds, dtype=bool)
    coming, ready_s, loads = None, math.inf, 0
    for second in range(world.seconds):
        if second >= ready_s and coming is not None:
            policy.held.add(coming)
            coming, ready_s = None, math.inf
        if coming is None:
            coming = policy.ask(second)
            if coming is not None and second >= WARM_UP_S:
                loads += 1
            if coming is not None:
                if not policy.budget.admits(coming, policy.held):
                    raise RuntimeError(f"{coming} is over the budget")
                ready_s = second + world.load_s[coming]
        loading[second] = coming is not None
        policy.see(second, coming)
        held_at.append(frozenset(policy.held))
    return score(world, held_at, loading), loads


def what_loads_cost(
    world: World, losts: list[float], shares: list[float], ends: tuple[float, float]
) -> None:
    """Print what becomes of it where loads cost something else than the constant."""
    bottom, top = ends
    print("| budget | lost to a load | told | of the headroom | loads an hour | learned |")
    print("| ---: | ---: | --- | ---: | ---: | ---: |")
    for share in shares:
        limit = world.least + share * (world.most - world.least)
        budget = Budget(Room(limit, math.inf), world.needs)
        for lost in losts:
            real = replace(world, lost=lost)
            for name, told in (("the constant", PRIOR), ("learns", None), ("the truth", lost)):
                policy = Ours(real, budget, told)
                found, loads = drive(policy)
                print(
                    f"| {share:.0%} | {lost:.0%} | {name} | {(found - bottom) / (top - bottom):.1%}"
                    f" | {loads / (world.seconds - WARM_UP_S) * HOUR:.0f} |"
                    f" {policy.learned.share('load'):.1%} |",
                    flush=True,
                )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with traces")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--days", type=int, default=0)
    parser.add_argument("--lost", type=float, nargs="+", help="of all requests, by a load")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.1, 0.25, 0.5, 0.75))
    args = parser.parse_args()
    if args.days:
        length = args.days * DAY_S
        world = make_world(args.data, length, stretch=DAY_S // 600, days=args.days)
    else:
        world = make_world(args.data, args.seconds)
    everything = frozenset(world.needs)
    keep = frozenset(m.names[m.fastest] for m in world.models)
    calm = np.zeros(world.seconds, dtype=bool)
    top = score(world, [everything] * world.seconds, calm)
    bottom = score(world, [keep] * world.seconds, calm)
    print(
        f"{len(world.models)} models, {len(everything)} variants, {world.most / GIB:.1f} GiB, the "
        f"fastest {world.least / GIB:.1f}; {world.seconds} s; effective quality {bottom:.4f} "
        f"with the fastest alone, {top:.4f} with everything loaded"
    )
    if args.lost:
        what_loads_cost(world, args.lost, args.shares, (bottom, top))
        return
    print("| budget | policy | effective quality | of the headroom | loads an hour |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for share in args.shares:
        limit = world.least + share * (world.most - world.least)
        budget = Budget(Room(limit, math.inf), world.needs)
        fixed = [frozenset(static(world, budget))] * world.seconds
        rows = [("best fixed set", score(world, fixed, calm), 0.0)]
        for kind in (Lru, Lfu, Gds):
            found = [(*drive(kind(world, budget, one)), one) for one in PATIENCE]
            rows.append((f"{kind.__name__.lower()}, at once", *found[0][:2]))
            best = max(found)
            rows.append((f"{kind.__name__.lower()}, after {best[2]} s of a minute", *best[:2]))
        rows.append(("**governor**", *drive(Ours(world, budget))))
        for name, found, loads in rows:
            print(
                f"| {share:.0%} | {name} | {found:.4f} | {(found - bottom) / (top - bottom):.1%} "
                f"| {loads / (world.seconds - WARM_UP_S) * HOUR:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
