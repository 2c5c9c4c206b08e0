"""Several models on one GPU or several: the governor beside who knows the present.

    python benchmarks/many.py [--seconds 60] [--worlds 12] [--gpus 4] [--data FOLDER]

Each world has four models on one simulated GPU, or three on each of several, with a ladder, a
trace, an objective and a weight of their own; on each GPU the traces' peaks together are 1.67
times what the best variants bear, capped at 0.95 of what the fastest bear. The mixed-integer
programme is told the true rate of the present second and the true service times; of several shares
of a device that it may fill, the one is shown that turned out best over all worlds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from controller.twin.ladder import TwinVariant, load_ladder
from controller.twin.load import Load
from controller.twin.many import Result, Shared, fixed, govern, knows_the_present, policy_of
from controller.twin.server import Physics
from controller.twin.trace import load_trace

DATA = Path(__file__).with_name("data")
LIMITS_S = (0.06, 0.1, 0.2, 0.4)
WEIGHTS = (1.0, 1.0, 2.0, 0.5)
PEAK, CAP = 1.67, 0.95
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)


def world(seed: int, seconds: float, folder: Path, gpus: int) -> list[Shared]:
    """Return some models, whose ladders, traces, windows and objectives are drawn."""
    count = 4 if gpus == 1 else 3 * gpus
    beside = count // gpus
    rng = np.random.default_rng(seed)
    ladders = [load_ladder(path) for path in sorted(DATA.glob("*.yaml"))]
    files = sorted([*folder.glob("*.csv"), *folder.glob("traces/*.csv")])
    traces = [trace for trace in map(load_trace, files) if trace.step_s == 1.0]
    models = []
    for at in range(count):
        limit_s = LIMITS_S[(at + seed) % len(LIMITS_S)]
        ladder = ladders[int(rng.integers(len(ladders)))]
        able = tuple(v for v in ladder.variants if v.capacity_rps(limit_s) > 0.0)
        while len(able) < 2:
            ladder = ladders[int(rng.integers(len(ladders)))]
            able = tuple(v for v in ladder.variants if v.capacity_rps(limit_s) > 0.0)
        bears = [v.capacity_rps(limit_s) for v in able]
        trace = traces[int(rng.integers(len(traces)))]
        while True:
            start_s = float(rng.integers(max(int(trace.duration_s - seconds), 1)))
            load = trace.window(start_s, start_s + seconds)
            if load.rate_rps.sum() > 0.0:
                break
        best = bears[int(np.argmax([v.quality for v in able]))]
        load = load.scaled(PEAK * best / beside, CAP * max(bears) / beside)
        named = tuple(_named(v, f"{at}-{v.name}") for v in able)
        models.append(
            Shared(
                f"model{at}",
                Load(
                    named,
                    load.arrivals_s(seed * 100 + at),
                    int(np.argmax(bears)),
                    limit_s,
                    gpus=(at % gpus,),
                ),
                WEIGHTS[at % len(WEIGHTS)],
            )
        )
    return models


def _named(variant: TwinVariant, name: str) -> TwinVariant:
    return replace(variant, name=name, profile_of=None)


def run(seed: int, seconds: float, folder: Path, gpus: int, arm: str) -> Result:
    """Run one arm in one world."""
    models = world(seed, seconds, folder, gpus)
    settings = {"physics": Physics(gpus=gpus), "duration_s": seconds, "seed": seed}
    policy = policy_of(models)
    if arm == "governor":
        return govern(models, policy, **settings)
    if arm == "fastest":
        return fixed(models, [m.load.serving for m in models], **settings)
    return knows_the_present(models, tick_s=policy.tick_s, most=float(arm), **settings)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    arms = ["fastest", "governor", *map(str, SHARES)]
    tasks = [(seed, arm) for seed in range(args.worlds) for arm in arms]
    found = dict(
        zip(
            tasks,
            Parallel(n_jobs=args.jobs)(
                delayed(run)(seed, args.seconds, args.data, args.gpus, arm) for seed, arm in tasks
            ),
            strict=True,
        )
    )
    means = {
        arm: np.mean([found[seed, arm].together for seed in range(args.worlds)]) for arm in arms
    }
    best = max(map(str, SHARES), key=means.__getitem__)
    told = ", ".join(f"{arm} {mean:.4f}" for arm, mean in means.items())
    print(f"means: {told}; shown of the programme: {best} of each device")
    print(
        "| world | fastest | programme | governor | of the programme "
        "| in time: governor, (programme), [fastest] | switches |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(args.worlds):
        own, other = found[seed, "governor"], found[seed, best]
        print(
            f"| {seed} | {found[seed, 'fastest'].together:.4f} | {other.together:.4f} "
            f"| {own.together:.4f} | {own.together / other.together:.1%} "
            f"| {_percents(own.attainment)} ({_percents(other.attainment)}) "
            f"[{_percents(found[seed, 'fastest'].attainment)}] "
            f"| {own.switches} ({other.switches}) |"
        )


def _percents(values: Sequence[float]) -> str:
    return " ".join(f"{100 * value:.1f}" for value in values)


if __name__ == "__main__":
    main()
