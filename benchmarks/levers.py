"""Triton's other levers in replay: instances, beside batch profiles and alone, and queue delays.

    python benchmarks/levers.py [--seconds 60] [--jobs N] [--tables instances engines delays]

*Together* is how many batches the device executes at full speed at one time: 1 for a GPU that a
single batch fills, more where batches are small for it, the cores of a host. Nobody is told.
Ladders do not say it of the GPUs that they were measured on, so all of some are shown. The load is
the same in all arms. First variants that take smaller batches in less time, with one, two and three
instances of each, and with as many as the governor gives them, up to three. Then engines that are
compiled for one batch size (`benchmarks/profiles.py`): one a variant, or four of them as profiles,
each with one instance and with up to three. Last `max_queue_delay`, for which Triton waits for a
batch to fill, on the variants of the first table with one instance.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from profiles import ALL, BATCHES, CLEARLY, DATA, HALF, arm_ladder

from controller.twin.contest import GOVERNOR
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan, ReplayError
from controller.twin.profiles import with_profiles
from controller.twin.replay import run_one
from controller.twin.scoring import Score
from controller.twin.trace import load_trace

MOST = 3
TOGETHER = (1.0, 1.5, 2.0, 3.0)
LIMITS_S = (0.06, 0.2)


@dataclass(frozen=True)
class Arm:
    """What a server has."""

    name: str
    instances: int = 1
    decided: bool = False  # the governor chooses how many
    engines: str | None = None  # None: variants that take smaller batches in less time
    delay_s: float = 0.0


PLAIN = (
    Arm("one instance"),
    Arm("two", instances=2),
    Arm("three", instances=3),
    Arm("the governor decides", decided=True),
)
ENGINES = (
    Arm("variants alone", engines=HALF),
    Arm("variants and instances", engines=HALF, decided=True),
    Arm("variants and batches", engines=ALL),
    Arm("variants, batches and instances", engines=ALL, decided=True),
)
DELAYS = tuple(Arm(f"{ms} ms", delay_s=ms / 1e3) for ms in (0, 1, 2, 5, 10, 20))
TABLES = {
    "instances": (PLAIN, TOGETHER),
    "engines": (ENGINES, TOGETHER[:3]),
    "delays": (DELAYS, TOGETHER[:1]),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each trace")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=tuple(TABLES))
    args = parser.parse_args()
    for arms, together in (TABLES[name] for name in args.tables):
        print("| together | objective | cells | arm | quality | in time | better | worse | worst |")
        print("| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        for parallel in together:
            for limit_s in LIMITS_S:
                cells = list(_cells())
                found = Parallel(n_jobs=args.jobs)(
                    delayed(play)(*cell, limit_s, parallel, arm, args.seconds)
                    for cell in cells
                    for arm in arms
                )
                scores = [found[i :: len(arms)] for i in range(len(arms))]
                _print(f"| {parallel:g} | {limit_s * 1e3:.0f} ms", arms, scores)
        print()


def _cells() -> Iterator[tuple[Path, Path]]:
    for trace in sorted(DATA.glob("*.csv")):
        for ladder in sorted(DATA.glob("*.yaml")):
            yield trace, ladder


def play(
    trace: Path, ladder: Path, limit_s: float, parallel: float, arm: Arm, seconds: float
) -> Score | None:
    """Replay the governor on what an arm has; None: it has too little for this objective."""
    whole, load = load_ladder(ladder), load_trace(trace).window(0.0, seconds)
    try:
        plan = Plan(load, whole, limit_s)
        if arm.engines is not None:
            most = BATCHES[-1]
            cut = replace(
                whole, variants=tuple(replace(v, table_s=v.table_s[:most]) for v in whole.variants)
            )
            profiled = with_profiles(cut, BATCHES, fixed_shape=True)
            # All arms get the load that all profiles together are scaled for.
            load = Plan(load, profiled, limit_s).load()
            own = arm_ladder(arm.engines, cut, profiled, limit_s)
            plan = Plan(load, own, limit_s, as_recorded=True)
        plan = replace(
            plan,
            parallel=parallel,
            instances=arm.instances,
            queue_delay_s=arm.delay_s,
            max_instances=MOST if arm.decided else None,
        )
        return run_one(plan, plan.load(), GOVERNOR, 1).score
    except ReplayError:
        return None


def _print(of: str, arms: Sequence[Arm], found: Sequence[list[Score | None]]) -> None:
    """Print a row for each arm, over the cells in which every arm can play."""
    cells = [[score for score in cell if score is not None] for cell in zip(*found, strict=True)]
    all_play = [cell for cell in cells if len(cell) == len(arms)]
    quality = np.array([[score.effective_quality for score in cell] for cell in all_play]).T
    in_time = np.array([[score.slo_attainment for score in cell] for cell in all_play]).T
    for arm, own, met in zip(arms, quality, in_time, strict=True):
        gain = own - quality[0]
        print(
            f"{of} | {len(all_play)} | {arm.name} | {own.mean():.4f} | {met.mean():.2%} "
            f"| {(gain > CLEARLY).sum()} | {(gain < -CLEARLY).sum()} | {gain.min():+.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
