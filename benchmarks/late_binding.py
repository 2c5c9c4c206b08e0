"""What it is worth to bind a request to a variant when its batch begins, not when it comes.

    python benchmarks/late_binding.py [--seconds 60] [--starts 0 300] [--seeds 1] [--jobs N]
                                      [--limits-ms 60 200] [--slowdowns 1.0 1.3]
                                      [--ladders ...] [--policies governor ...]

The governor as it is with an alias that leads to one variant at a time, the same with a dispatcher
(`governor:late`: the code that runs inside Triton, by plans that the core makes of what it learns;
half a millisecond to a variant and half back, batches sent ahead as there), the same without a
profile, the best of the rivals that could run on an unmodified Triton (by effective quality, cell
by cell), and the two published policies that bind late, which are given the true times and take
nothing for themselves. A slow-down of 1.3 makes all latencies 1.3 times as long from half way on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from controller.twin.contest import GOVERNOR, LATE, LATE_COLD, RIVALS
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan
from controller.twin.replay import oracle_quality, run_one
from controller.twin.trace import load_trace

DATA = Path(__file__).with_name("data")
FASTEST = "fixed:fastest"
BEST_RIVAL = "best rival"
POLICIES = (GOVERNOR, LATE, LATE_COLD, BEST_RIVAL, "ramsis", "slackfit")
OWN = "pressure"  # no rival of the field: a rule of our own that was not taken


def main() -> None:
    """Print a table of all cells, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--starts", type=float, nargs="+", default=[0.0, 300.0])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limits-ms", type=float, nargs="+", default=[60.0, 200.0])
    parser.add_argument("--slowdowns", type=float, nargs="+", default=[1.0, 1.3])
    ladders = sorted(path.stem for path in DATA.glob("*.yaml"))
    parser.add_argument("--ladders", nargs="+", default=ladders)
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    cells = [
        (limit_ms, slowdown, ladder, trace, start_s)
        for limit_ms in args.limits_ms
        for slowdown in args.slowdowns
        for ladder in args.ladders
        for trace in sorted(DATA.glob("*.csv"))
        for start_s in args.starts
    ]
    print(f"| objective | slow-down | ladder | trace | {' | '.join(args.policies)} |")
    print("| ---: | ---: | --- | --- |" + " ---: |" * len(args.policies))
    found = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(play)(*cell, args.seconds, args.seeds, args.policies) for cell in cells
    )
    groups: dict[tuple[float, float], list[list[tuple[float, float]]]] = {}
    for (limit_ms, slowdown, ladder, trace, start_s), row in zip(cells, found, strict=True):
        groups.setdefault((limit_ms, slowdown), []).append(row)
        window = f"{trace.stem} {start_s:.0f} s"
        print(f"| {_where(limit_ms, slowdown)} | {ladder} | {window} | {_row(row)} |", flush=True)
    print()
    print(f"| objective | slow-down | of all cells | {' | '.join(args.policies)} |")
    print("| ---: | ---: | --- |" + " ---: |" * len(args.policies))
    for (limit_ms, slowdown), rows in groups.items():
        for what, of in (("mean", np.mean), ("least", np.min)):
            told = [tuple(of(np.array(rows)[:, at], axis=0)) for at in range(len(args.policies))]
            print(f"| {_where(limit_ms, slowdown)} | {what} | {_row(told)} |")


def play(
    limit_ms: float,
    slowdown: float,
    ladder: str,
    trace: Path,
    start_s: float,
    seconds: float,
    seeds: int,
    policies: Sequence[str],
) -> list[tuple[float, float]]:
    """Return, of each policy, the headroom it captured and the share in time; means of seeds."""
    load = load_trace(trace).window(start_s, start_s + seconds)
    plan = Plan(load, load_ladder(DATA / f"{ladder}.yaml"), limit_ms / 1e3, slowdown=slowdown)
    made = plan.load()
    oracle = oracle_quality(plan, made)

    def mean(name: str) -> tuple[float, float]:
        scores = [run_one(plan, made, name, seed).score for seed in range(1, seeds + 1)]
        quality = np.mean([one.effective_quality for one in scores])
        return float(quality), float(np.mean([one.slo_attainment for one in scores]))

    least, _ = mean(FASTEST)
    told = []
    for name in policies:
        of = [one for one in RIVALS if one != OWN] if name == BEST_RIVAL else [name]
        quality, in_time = max(map(mean, of))
        told.append(((quality - least) / float(oracle - least), in_time))
    return told


def _where(limit_ms: float, slowdown: float) -> str:
    return f"{limit_ms:.0f} ms | {slowdown:g}"


def _row(told: list[tuple[float, float]]) -> str:
    """Return the cells: headroom captured (share in time)."""
    return " | ".join(f"{captured:.1%} ({in_time:.2%})" for captured, in_time in told)


if __name__ == "__main__":
    main()
