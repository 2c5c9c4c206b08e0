"""Replays the governor and its rivals over many cells, and writes the tables of docs/benchmark.md.

    python benchmarks/replay.py --seconds 60 --seeds 1 --out DIR [--data FOLDER] [--docs FILE]

A cell is a trace's window, a ladder and an objective. Finished cells stay in DIR, so an
interrupted run goes on where it was; `--data` takes all traces and ladders of another folder.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from statistics import fmean

from joblib import Parallel, delayed
from provenance import code_digest

from controller.twin.contest import CLAIRVOYANT, COLD, GOVERNOR, RIVALS
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan, ReplayError
from controller.twin.replay import replay
from controller.twin.trace import load_trace

DATA = Path(__file__).parent / "data"
OBJECTIVES_MS = {"short": 60, "long": 200}
WINDOWS = (0, 300)  # seconds where windows of a trace begin
POLICIES = (GOVERNOR, COLD, *RIVALS, CLAIRVOYANT)
OWN = "pressure"  # no rival: the rule that is to become the governor's
KEPT = ("slo_attainment", "effective_quality", "headroom_captured", "p99_ms", "switches")
KEPT = (*KEPT, "decision_ms", "coverage", "stated_over_p99")
NOT_UNDER = 0.6  # of the headroom


def main() -> int:
    """Run what is not done yet and write the report; return the exit code."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    args.code = code_digest()
    traces = sorted(p for p in args.data.glob("*.csv"))
    ladders = sorted(args.data.glob("*.yaml"))
    cells = [
        (trace, start_s, ladder, kind)
        for kind in OBJECTIVES_MS
        for trace in traces
        for start_s in WINDOWS
        for ladder in ladders
    ]
    work = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(_cell)(cell, args) for cell in cells
    )
    found = []
    for cell in work:
        found.append(cell)
        print(f"{len(found)} of {len(cells)}: {_name(cell)}", file=sys.stderr, flush=True)
    text = _report(found, args)
    print(text)
    if args.docs is not None:
        args.docs.write_text(text, encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each window")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--drift", type=float, default=1.0, help="slow-down half way through")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True, help="folder for finished cells")
    parser.add_argument("--docs", type=Path, help="write the tables there, too")
    parser.add_argument("--jobs", type=int, default=-1)
    return parser.parse_args()


def _cell(cell: tuple[Path, int, Path, str], args: argparse.Namespace) -> dict[str, object]:
    trace, start_s, ladder, kind = cell
    key = [trace.name, start_s, ladder.name, kind, args.seconds, args.seeds, args.drift]
    name = hashlib.sha256(json.dumps([*key, *POLICIES, args.code]).encode()).hexdigest()[:16]
    kept = args.out / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    window = load_trace(trace).window(start_s, start_s + args.seconds)
    plan = Plan(
        window,
        load_ladder(ladder),
        OBJECTIVES_MS[kind] / 1e3,
        slowdown=args.drift,
    )
    done: dict[str, object] = {
        "trace": trace.stem,
        "start_s": start_s,
        "ladder": ladder.stem,
        "kind": kind,
    }
    try:
        document = replay(plan, POLICIES, range(1, args.seeds + 1), jobs=1)
    except ReplayError as error:
        done["skipped"] = str(error)
    else:
        done["policies"] = {
            one["name"]: {field: one[field] for field in KEPT} for one in document["policies"]
        }
    kept.write_text(json.dumps(done), encoding="utf-8")
    return done


def _name(cell: dict[str, object]) -> str:
    return f"{cell['trace']} from {cell['start_s']} s, {cell['ladder']}, {cell['kind']}"


def _report(cells: list[dict[str, object]], args: argparse.Namespace) -> str:
    drift = "" if args.drift == 1.0 else f" --drift {args.drift:g}"
    size = f"--seconds {args.seconds:g} --seeds {args.seeds}{drift}"
    again = f".venv/bin/python benchmarks/replay.py {size} --out DIR --docs docs/benchmark.md"
    windows = f"windows of {args.seconds:g} s, {args.seeds} seed(s)"
    told = (
        f"Every policy gets the same arrivals: {windows}, load and score as in [replay](replay.md)."
        f" `{GOVERNOR}` starts with the profile that the rivals get, `{COLD}` has measured nothing."
        f" All but `{CLAIRVOYANT}`, which knows every arrival, could run on an unmodified Triton."
        f" `{OWN}` is no rival of the field but the rule that is to become the governor's own: it"
        " is told every arrival at once and has the true service times, but calibrates nothing."
        " Headroom is counted to a fluid oracle that forms full batches whatever the mix: where a"
        " batch costs nearly the same with one row as with many (ConvNets), or the objective is"
        " a few batches long, not even the clairvoyant gets near it."
    )
    lines = ["# The governor and its rivals, replayed", ""]
    lines += ["Written by `benchmarks/replay.py`; again with:", "", "```", again, "```", "", told]
    for kind, objective_ms in OBJECTIVES_MS.items():
        ran = [c for c in cells if c["kind"] == kind and "policies" in c]
        if ran:
            lines += ["", f"## Objective {objective_ms} ms", "", *_sums(ran), "", *_cells(ran)]
    skipped = [c for c in cells if "skipped" in c]
    if skipped:
        lines += ["", "## Left out", ""]
        lines += [f"- {_name(c)}: {c['skipped']}" for c in skipped]
    return "\n".join(lines) + "\n"


def _sums(cells: list[dict[str, object]]) -> list[str]:
    head = "| policy | headroom, mean | least | under 60 % in | attainment, least | switches | ms |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for policy in POLICIES:
        of = [c["policies"][policy] for c in cells]
        room = [one["headroom_captured"] for one in of]
        lines.append(
            f"| {policy} | {fmean(room):.0%} | {min(room):.0%} | "
            f"{sum(r < NOT_UNDER for r in room)} of {len(room)} | "
            f"{min(one['slo_attainment'] for one in of):.2%} | "
            f"{fmean(one['switches'] for one in of):.0f} | "
            f"{fmean(one['decision_ms'] for one in of):.2f} |"
        )
    lines += ["", "What was stated as the 99th percentile, and what came:", ""]
    lines += ["| policy | coverage, mean | least | most | stated / p99, mean | most |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for policy in (GOVERNOR, COLD):
        covered = [c["policies"][policy]["coverage"] for c in cells]
        ratio = [c["policies"][policy]["stated_over_p99"] for c in cells]
        lines.append(
            f"| {policy} | {fmean(covered):.2%} | {min(covered):.2%} | {max(covered):.2%} | "
            f"{fmean(ratio):.2f} | {max(ratio):.2f} |"
        )
    return lines


def _cells(cells: list[dict[str, object]]) -> list[str]:
    columns = ["trace", "ladder", GOVERNOR, "in time", COLD, OWN]
    columns += ["best rival", "its headroom", "in time", CLAIRVOYANT]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    ahead = ahead_of_own = 0
    rivals = [name for name in RIVALS if name != OWN]
    for cell in cells:
        policies = cell["policies"]
        best = max(rivals, key=lambda name: policies[name]["effective_quality"])
        ours, cold, theirs = policies[GOVERNOR], policies[COLD], policies[best]
        ahead += ours["effective_quality"] > theirs["effective_quality"]
        ahead_of_own += ours["effective_quality"] > policies[OWN]["effective_quality"]
        lines.append(
            f"| {cell['trace']} {cell['start_s']} s | {cell['ladder']} | "
            f"{ours['headroom_captured']:.0%} | {ours['slo_attainment']:.2%} | "
            f"{cold['headroom_captured']:.0%} | {policies[OWN]['headroom_captured']:.0%} | "
            f"{best} | {theirs['headroom_captured']:.0%} | {theirs['slo_attainment']:.2%} | "
            f"{policies[CLAIRVOYANT]['headroom_captured']:.0%} |"
        )
    total = len(cells)
    told = f"`{GOVERNOR}` is above every rival in {ahead} of {total} cells, above `{OWN}` in"
    return [*lines, "", f"{told} {ahead_of_own}."]


if __name__ == "__main__":
    sys.exit(main())
