"""What it costs to begin with nothing learned, and how long that lasts, on the simulated server.

    python benchmarks/cold_start.py [--every 1] [--late]

Replays every window of benchmarks/replay.py twice: with the profile that rivals get, and with
nothing measured. Prints, for stretches of time since the start, how much less effective quality the
second got, in points of the window's headroom (oracle less fastest fixed variant), mean and worst
over the windows, and the share of both in time. With `--late` both bind late.
"""

import argparse
import itertools
from pathlib import Path
from statistics import fmean

import numpy as np
from joblib import Parallel, delayed

from controller.twin import contest
from controller.twin.contest import COLD, GOVERNOR, LATE, LATE_COLD
from controller.twin.ladder import load_ladder
from controller.twin.oracle import fluid_quality
from controller.twin.plan import Plan, ReplayError
from controller.twin.trace import load_trace

DATA = Path(__file__).parent / "data"
OBJECTIVES_MS = {"short": 60, "long": 200}
WINDOWS = (0, 300)
EDGES_S = (0.0, 5.0, 15.0, 30.0, 60.0, 90.0, 120.0)
FASTEST = "fixed:fastest"

Row = dict[str, np.ndarray]


def main() -> None:
    """Run all windows and print one table for each objective."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="take every n-th window only")
    parser.add_argument("--late", action="store_true", help="with a dispatcher")
    args = parser.parse_args()
    known, cold = (LATE, LATE_COLD) if args.late else (GOVERNOR, COLD)
    for kind, objective_ms in OBJECTIVES_MS.items():
        cells = [
            (trace, start_s, ladder)
            for trace in sorted(DATA.glob("*.csv"))
            for start_s in WINDOWS
            for ladder in sorted(DATA.glob("*.yaml"))
        ][:: args.every]
        found = Parallel(n_jobs=-1)(
            delayed(_cell)(*cell, objective_ms / 1e3, (known, cold)) for cell in cells
        )
        ran = [one for one in found if one is not None]
        print(f"\n{kind}: objective {objective_ms} ms, {len(ran)} windows of {EDGES_S[-1]:g} s\n")
        print("| seconds | less headroom | at worst | in time, known | nothing known |")
        print("| --- | --- | --- | --- | --- |")
        for i, (from_s, to_s) in enumerate(itertools.pairwise(EDGES_S)):
            held = [one for one in ran if np.isfinite(one[cold][i, 0])]  # some traces end sooner
            less = [one[known][i, 0] - one[cold][i, 0] for one in held]
            met = [fmean(one[name][i, 1] for one in held) for name in (known, cold)]
            print(
                f"| {from_s:g} to {to_s:g} | {fmean(less):.1%} | {max(less):.1%} "
                f"| {met[0]:.2%} | {met[1]:.2%} |"
            )


def _cell(
    trace: Path, start_s: int, ladder: Path, limit_s: float, policies: tuple[str, str]
) -> Row | None:
    """Return (headroom, attainment) of each stretch, by policy. [stretches, 2]."""
    window = load_trace(trace).window(start_s, start_s + EDGES_S[-1])
    plan = Plan(window, load_ladder(ladder), limit_s)
    try:
        load = plan.load()
    except ReplayError:
        return None
    arrivals_s = load.arrivals_s(1)
    quality = np.array([v.quality for v in plan.variants])
    stretch = np.searchsorted(EDGES_S, arrivals_s, side="right") - 1
    count = np.bincount(stretch, minlength=len(EDGES_S) - 1).astype(np.float64)
    count[count == 0.0] = np.nan  # nothing arrived
    scores = {}
    for policy in (*policies, FASTEST):
        outcome = contest.run(plan, load, policy, arrivals_s, 1)
        met = (outcome.served_by >= 0) & (outcome.latency_s <= limit_s)
        got = np.where(met, quality[outcome.served_by], 0.0)
        scores[policy] = (got, met)
    floor = float(scores[FASTEST][0].mean())
    capacity = np.array([v.capacity_rps(limit_s) for v in plan.variants])
    span = fluid_quality(load.rate_rps, quality, capacity) - floor
    return {
        policy: np.stack(
            [
                (np.bincount(stretch, got, len(EDGES_S) - 1) / count - floor) / span,
                np.bincount(stretch, met, len(EDGES_S) - 1) / count,
            ],
            axis=1,
        )
        for policy, (got, met) in scores.items()
    }


if __name__ == "__main__":
    main()
