"""What it is worth to bind a request to a variant when its batch begins, not when it comes.

    python benchmarks/late_binding.py [--seconds 60] [--seeds 1] [--limits-ms 60 200]
                                      [--slowdowns 1.0 1.3] [--ladders ...] [--jobs N]

The governor as it is with an alias that leads to one variant at a time, the same with a dispatcher
(`governor:late`: the code that runs inside Triton, by plans that the core makes of what it learns;
half a millisecond to a variant and half back, batches sent ahead as there), the same without a
profile, and the two published policies that bind late, which are given the true times and take
nothing for themselves. A slow-down of 1.3 makes all latencies 1.3 times as long from half way on.
"""

import argparse
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from controller.twin.contest import GOVERNOR, LATE, LATE_COLD
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan
from controller.twin.replay import oracle_quality, run_one
from controller.twin.trace import load_trace

DATA = Path(__file__).with_name("data")
FASTEST = "fixed:fastest"
POLICIES = (GOVERNOR, LATE, LATE_COLD, "ramsis", "slackfit")


def main() -> None:
    """Print a table of all cells, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limits-ms", type=float, nargs="+", default=[60.0, 200.0])
    parser.add_argument("--slowdowns", type=float, nargs="+", default=[1.0, 1.3])
    ladders = sorted(path.stem for path in DATA.glob("*.yaml"))
    parser.add_argument("--ladders", nargs="+", default=ladders)
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    cells = [
        (limit_ms, slowdown, ladder, trace)
        for limit_ms in args.limits_ms
        for slowdown in args.slowdowns
        for ladder in args.ladders
        for trace in sorted(DATA.glob("*.csv"))
    ]
    print(f"| objective | slow-down | ladder | trace | {' | '.join(POLICIES)} |")
    print("| ---: | ---: | --- | --- |" + " ---: |" * len(POLICIES))
    found = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(play)(*cell, args.seconds, args.seeds) for cell in cells
    )
    groups: dict[tuple[float, float], list[list[tuple[float, float]]]] = {}
    for (limit_ms, slowdown, ladder, trace), row in zip(cells, found, strict=True):
        groups.setdefault((limit_ms, slowdown), []).append(row)
        print(
            f"| {_where(limit_ms, slowdown)} | {ladder} | {trace.stem} | {_row(row)} |", flush=True
        )
    print()
    print(f"| objective | slow-down | of all cells | {' | '.join(POLICIES)} |")
    print("| ---: | ---: | --- |" + " ---: |" * len(POLICIES))
    for (limit_ms, slowdown), rows in groups.items():
        for what, of in (("mean", np.mean), ("least", np.min)):
            told = [tuple(of(np.array(rows)[:, at], axis=0)) for at in range(len(POLICIES))]
            print(f"| {_where(limit_ms, slowdown)} | {what} | {_row(told)} |")


def play(
    limit_ms: float, slowdown: float, ladder: str, trace: Path, seconds: float, seeds: int
) -> list[tuple[float, float]]:
    """Return, of each policy, the headroom it captured and the share in time; means of seeds."""
    load = load_trace(trace).window(0.0, seconds)
    plan = Plan(load, load_ladder(DATA / f"{ladder}.yaml"), limit_ms / 1e3, slowdown=slowdown)
    made = plan.load()
    oracle = oracle_quality(plan, made)
    found = {
        name: [run_one(plan, made, name, seed).score for seed in range(1, seeds + 1)]
        for name in (FASTEST, *POLICIES)
    }
    least = np.mean([one.effective_quality for one in found[FASTEST]])
    return [
        (
            float(np.mean([one.effective_quality for one in found[name]]) - least)
            / float(oracle - least),
            float(np.mean([one.slo_attainment for one in found[name]])),
        )
        for name in POLICIES
    ]


def _where(limit_ms: float, slowdown: float) -> str:
    return f"{limit_ms:.0f} ms | {slowdown:g}"


def _row(told: list[tuple[float, float]]) -> str:
    """Return the cells: headroom captured (share in time)."""
    return " | ".join(f"{captured:.1%} ({in_time:.2%})" for captured, in_time in told)


if __name__ == "__main__":
    main()
