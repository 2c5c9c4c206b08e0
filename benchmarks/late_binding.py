"""What it is worth to bind a request to a variant when its batch begins, not when it comes.

    python benchmarks/late_binding.py [--seconds 60] [--starts 0 300] [--seeds 1] [--jobs N]
                                      [--limits-ms 60 200] [--slowdowns 1.0 1.3]
                                      [--ladders ...] [--policies governor ...] [--data FOLDER]

The governor as it is with an alias that leads to one variant at a time, the same with a dispatcher
(`governor:late`: the code that runs inside Triton, by plans that the core makes of what it learns;
half a millisecond to a variant and half back, batches sent ahead as there), the same without a
profile (`--policies governor:cold`: an alias without one), the best of the rivals that could run on
an unmodified Triton (by effective quality, cell by cell), and the two published policies that bind
late, which are given the true times and take nothing for themselves. A slow-down of 1.3 makes all
latencies 1.3 times as long from half way on.

Of each cell the share of the headroom, and in brackets the share in time and that within the told
99th percentile, where one is told. At the end the same over all windows of a ladder, and over all
cells: the mean, and the least in brackets; of what was told how many were within 98.5 to 99.5 %.
`--data` takes all traces and ladders of another folder. A cell without a request, or where fewer
than two variants execute a row within half the objective, is left out, with the reason.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from controller.twin.contest import COLD, GOVERNOR, LATE, LATE_COLD, RIVALS
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan, ReplayError
from controller.twin.replay import oracle_quality, run_one
from controller.twin.trace import Trace, TraceFormatError, load_trace

DATA = Path(__file__).with_name("data")
FASTEST = "fixed:fastest"
BEST_RIVAL = "best rival"
POLICIES = (GOVERNOR, LATE, LATE_COLD, BEST_RIVAL, "ramsis", "slackfit")
TOLD = (0.985, 0.995)  # share within the told 99th percentile
OWN = "pressure"  # no rival of the field: a rule of our own that was not taken


class Cell(NamedTuple):
    """What a policy did in one window."""

    captured: float  # of the headroom
    in_time: float
    told: float  # share within what was told; NaN: nothing is


def main() -> None:
    """Print a table of all cells, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--starts", type=float, nargs="+", default=[0.0, 300.0])
    parser.add_argument("--policies", nargs="+", choices=[*POLICIES, COLD], default=POLICIES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limits-ms", type=float, nargs="+", default=[60.0, 200.0])
    parser.add_argument("--slowdowns", type=float, nargs="+", default=[1.0, 1.3])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--ladders", nargs="+", help="all of the folder")
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    ladders = args.ladders or sorted(path.stem for path in args.data.glob("*.yaml"))
    cells = [
        (limit_ms, slowdown, args.data / f"{ladder}.yaml", trace, start_s)
        for limit_ms in args.limits_ms
        for slowdown in args.slowdowns
        for ladder in ladders
        for trace in sorted(args.data.glob("*.csv"))
        for start_s in args.starts
    ]
    print(f"| objective | slow-down | ladder | trace | {' | '.join(args.policies)} |")
    print("| ---: | ---: | --- | --- |" + " ---: |" * len(args.policies))
    found = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(play)(*cell, args.seconds, args.seeds, args.policies) for cell in cells
    )
    groups: dict[tuple[float, float, str], list[list[Cell]]] = {}
    for (limit_ms, slowdown, ladder, trace, start_s), row in zip(cells, found, strict=True):
        window = f"{ladder.stem} | {trace.stem} {start_s:.0f} s"
        if isinstance(row, str):
            print(f"| {_where(limit_ms, slowdown)} | {window} | {row} |", flush=True)
            continue
        for of in (ladder.stem, f"all {len(ladders)}"):
            groups.setdefault((limit_ms, slowdown, of), []).append(row)
        print(f"| {_where(limit_ms, slowdown)} | {window} | {_row(row)} |", flush=True)
    print()
    print(f"| objective | slow-down | ladder, windows | {' | '.join(args.policies)} |")
    print("| ---: | ---: | --- |" + " ---: |" * len(args.policies))
    for (limit_ms, slowdown, ladder), rows in groups.items():
        told = " | ".join(_sums(of) for of in zip(*rows, strict=True))
        print(f"| {_where(limit_ms, slowdown)} | {ladder}, {len(rows)} | {told} |")


def play(
    limit_ms: float,
    slowdown: float,
    ladder: Path,
    trace: Path,
    start_s: float,
    seconds: float,
    seeds: int,
    policies: Sequence[str],
) -> list[Cell] | str:
    """Return what each policy did, means of seeds; or why there is nothing to tell."""
    try:
        load = load_trace(trace).window(start_s, start_s + seconds)
        plan = Plan(load, load_ladder(ladder), limit_ms / 1e3, slowdown=slowdown)
        return _scores(plan, plan.load(), seeds, policies)
    except (ReplayError, TraceFormatError) as error:
        return str(error)


def _scores(plan: Plan, made: Trace, seeds: int, policies: Sequence[str]) -> list[Cell]:
    oracle = oracle_quality(plan, made)

    def mean(name: str) -> Cell:
        scores = [run_one(plan, made, name, seed).score for seed in range(1, seeds + 1)]
        of = np.array([(s.effective_quality, s.slo_attainment, s.coverage) for s in scores])
        return Cell(*of.mean(axis=0).tolist())

    least = mean(FASTEST).captured
    told = []
    for name in policies:
        of = [one for one in RIVALS if one != OWN] if name == BEST_RIVAL else [name]
        best = max(map(mean, of), key=lambda cell: cell.captured)
        told.append(best._replace(captured=(best.captured - least) / float(oracle - least)))
    return told


def _where(limit_ms: float, slowdown: float) -> str:
    return f"{limit_ms:.0f} ms | {slowdown:g}"


def _row(cells: Sequence[Cell]) -> str:
    return " | ".join(
        f"{cell.captured:.1%} ({cell.in_time:.2%}"
        f"{'' if math.isnan(cell.told) else f', told {cell.told:.2%}'})"
        for cell in cells
    )


def _sums(cells: Sequence[Cell]) -> str:
    """Return means, the least of them in brackets, and in how many what was told held."""
    captured, in_time, told = np.array(cells).T
    held = int(((told >= TOLD[0]) & (told <= TOLD[1])).sum())
    text = (
        f"{captured.mean():.1%} ({captured.min():.0%}); {in_time.mean():.2%} ({in_time.min():.2%})"
    )
    return text if np.isnan(told).all() else f"{text}; {held}"


if __name__ == "__main__":
    main()
