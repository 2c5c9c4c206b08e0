"""Twelve models on four GPUs: where they were put, against where the governor puts them.

    python benchmarks/places.py [--seconds 120] [--worlds 6] [--jobs 2]

The worlds are those of `benchmarks/many.py` with four GPUs: each model has a ladder, a trace, an
objective and a weight of its own, and its variants are on one GPU, in turn. They begin there;
with `auto` they may be moved while they are idle, a load of 2.1 s each, one at a time. In some
worlds GPU 0 runs at half its speed from the middle on, or is lost there.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from many import DATA, world

from controller.twin.many import Result, govern, policy_of
from controller.twin.server import Change, Physics

GPUS = 4
EVENTS = {"none": None, "half speed": 2.0, "lost": math.inf}
PLACES = {"in turn": None, "auto": ()}


def run(seed: int, seconds: float, folder: Path, event: str, place: str) -> Result:
    """Run one arm in one world."""
    models = world(seed, seconds, folder, GPUS)
    slowdown = EVENTS[event]
    changes = () if slowdown is None else (Change(seconds / 2.0, slowdown, gpu=0),)
    physics = Physics(gpus=GPUS, changes=changes)
    policy = policy_of(models, PLACES[place])
    return govern(models, policy, physics=physics, duration_s=seconds, seed=seed)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--worlds", type=int, default=6)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    tasks = [(seed, e, p) for seed in range(args.worlds) for e in EVENTS for p in PLACES]
    results = Parallel(n_jobs=args.jobs)(
        delayed(run)(seed, args.seconds, args.data, event, place) for seed, event, place in tasks
    )
    found = dict(zip(tasks, results, strict=True))
    print("| GPU 0 | in turn | auto | by world | moves | least in time: in turn, auto |")
    print("| --- | ---: | ---: | --- | ---: | --- |")
    for event in EVENTS:
        own = {p: [found[seed, event, p] for seed in range(args.worlds)] for p in PLACES}
        means = {p: np.mean([one.together for one in own[p]]) for p in PLACES}
        gains = [a.together - b.together for a, b in zip(own["auto"], own["in turn"], strict=True)]
        least = {p: np.mean([one.attainment.min() for one in own[p]]) for p in PLACES}
        print(
            f"| {event} | {means['in turn']:.4f} | {means['auto']:.4f} "
            f"| {' '.join(f'{gain:+.4f}' for gain in gains)} "
            f"| {np.mean([one.moves for one in own['auto']]):.1f} "
            f"| {least['in turn']:.1%}, {least['auto']:.1%} |"
        )


if __name__ == "__main__":
    main()
