"""Batch profiles in replay: do they beat variants alone, and are they left alone where not?

    python benchmarks/profiles.py [--seconds 60] [--jobs N]

Two ways of having profiles. *Engines*: each serves one batch size, and pads smaller ones to it, as
what is compiled for a fixed shape does; without profiles a variant has one engine, the largest
whose batch fits a half (or a quarter) of the objective. *Limits*: the same model, which takes
smaller batches in less time, under several largest batches. The load is the same in all arms. With
drift every latency is 1.6 times as long from half way on, which nobody is told.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from controller.twin.contest import GOVERNOR
from controller.twin.ladder import Ladder, load_ladder
from controller.twin.plan import Plan, ReplayError
from controller.twin.profiles import with_profiles
from controller.twin.replay import run_one
from controller.twin.scoring import Score
from controller.twin.trace import load_trace

DATA = Path(__file__).with_name("data")
BATCHES = (1, 4, 16, 64)
ALL = "every profile"
HALF, QUARTER = "one engine a variant: L/2", "one engine a variant: L/4"
SHARES = {HALF: 0.5, QUARTER: 0.25}
PLAIN = "variants alone"
CLEARLY = 0.0005  # of effective quality


@dataclass(frozen=True)
class Cell:
    """A trace's first minute on a ladder under an objective."""

    trace: Path
    ladder: Path
    limit_s: float
    slowdown: float
    fixed_shape: bool


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each trace")
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    print("| profiles | objective | drift | cells | arm | quality | in time | better | worse |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for fixed_shape in (True, False):
        arms = (HALF, QUARTER, ALL) if fixed_shape else (PLAIN, ALL)
        for limit_s in (0.06, 0.2):
            for slowdown in (1.0, 1.6):
                cells = list(_cells(limit_s, slowdown, fixed_shape=fixed_shape))
                found = Parallel(n_jobs=args.jobs)(
                    delayed(play)(cell, arm, args.seconds) for cell in cells for arm in arms
                )
                _print(cells, arms, [found[i :: len(arms)] for i in range(len(arms))])


def _cells(limit_s: float, slowdown: float, *, fixed_shape: bool) -> Iterator[Cell]:
    for trace in sorted(DATA.glob("*.csv")):
        for ladder in sorted(DATA.glob("*.yaml")):
            yield Cell(trace, ladder, limit_s, slowdown, fixed_shape)


def play(cell: Cell, arm: str, seconds: float) -> Score | None:
    """Replay the governor on what an arm has; None: it has too little for this objective."""
    whole = load_ladder(cell.ladder)
    most = BATCHES[-1]
    cut = replace(
        whole, variants=tuple(replace(v, table_s=v.table_s[:most]) for v in whole.variants)
    )
    profiled = with_profiles(cut, BATCHES, fixed_shape=cell.fixed_shape)
    trace = load_trace(cell.trace).window(0.0, seconds)
    try:
        # All arms get the load that all profiles together are scaled for.
        load = Plan(trace, profiled, cell.limit_s).load()
        ladder = arm_ladder(arm, cut, profiled, cell.limit_s)
        plan = Plan(load, ladder, cell.limit_s, slowdown=cell.slowdown, as_recorded=True)
        return run_one(plan, plan.load(), GOVERNOR, 1).score
    except ReplayError:
        return None


def arm_ladder(arm: str, plain: Ladder, profiled: Ladder, limit_s: float) -> Ladder:
    """Return what an arm of profiles has of a ladder."""
    if arm == ALL:
        return profiled
    if arm == PLAIN:
        return plain
    # Of all batch sizes, not of those that there are profiles for.
    fitting = [(v, int((v.table_s <= SHARES[arm] * limit_s).sum())) for v in plain.variants]
    engines = (
        replace(v, table_s=np.full(rows, v.table_s[rows - 1])) for v, rows in fitting if rows > 0
    )
    return Ladder(plain.name, tuple(engines))


def _print(cells: Sequence[Cell], arms: Sequence[str], found: Sequence[list[Score | None]]) -> None:
    """Print a row for each arm, over the cells in which every arm can play."""
    both = [i for i in range(len(cells)) if all(scores[i] is not None for scores in found)]
    quality = np.array([[scores[i].effective_quality for i in both] for scores in found])
    in_time = np.array([[scores[i].slo_attainment for i in both] for scores in found])
    first = cells[0]
    for arm, own, met in zip(arms, quality, in_time, strict=True):
        gain = own - quality[0]
        print(
            f"| {'engines' if first.fixed_shape else 'limits'} | {first.limit_s * 1e3:.0f} ms "
            f"| {first.slowdown:g} | {len(both)} | {arm} | {own.mean():.4f} | {met.mean():.2%} "
            f"| {(gain > CLEARLY).sum()} | {(gain < -CLEARLY).sum()} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
