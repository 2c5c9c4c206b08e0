"""The tables of docs/benchmark.md (written by benchmarks/replay.py)."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from controller.twin.contest import CLAIRVOYANT, COLD, GOVERNOR, LATE, LATE_COLD, RIVALS
from controller.twin.scoring import half_width

OWN = "pressure"  # no rival of the field: a rule of our own that was not taken
DATA = Path(__file__).parent / "data"
IDEALISED = ("ramsis", "slackfit")  # bind late, with the true times and no way to go
TELL = (GOVERNOR, COLD, LATE, LATE_COLD)  # a 99th percentile
COMPARED = tuple(name for name in RIVALS if name != OWN)
NOT_UNDER = 0.6  # of the headroom
PERCENTILE = 0.99
NEAR = 0.002  # of the clairvoyant's share in time
STARTS = "0,300"  # seconds where windows of a trace begin, if nothing else is said
TOLD = (0.985, 0.995)  # share of requests within the told 99th percentile


@dataclass(frozen=True)
class Cell:
    """What all policies did with one trace's window, ladder and objective; or why none did."""

    trace: str
    start_s: int
    ladder: str
    kind: str
    slowdown: float
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def name(self) -> str:
        """Return its name in lists."""
        drift = "" if self.slowdown == 1.0 else f", {self.slowdown:g} times slower from half way on"
        return f"{self.trace} from {self.start_s} s, {self.ladder}, {self.kind} objective{drift}"

    @property
    def best_rival(self) -> str:
        """Return who of the realisable rivals did best."""
        return max(COMPARED, key=lambda name: self.policies[name]["effective_quality"])

    def is_ahead(self, name: str) -> bool:
        """Return whether a governor is above every realisable rival."""
        best = self.policies[self.best_rival]["effective_quality"]
        return bool(self.policies[name]["effective_quality"] > best)

    def in_time(self, name: str) -> bool:
        """Return whether a governor met the objective, or nearly did what a clairvoyant does."""
        got = self.policies[name]["slo_attainment"]
        best = self.policies.get(CLAIRVOYANT, {}).get("slo_attainment", 1.0)
        return got >= PERCENTILE or got >= best - NEAR


def report(
    cells: Sequence[Cell], objectives_ms: Mapping[str, float], args: argparse.Namespace
) -> str:
    """Return the page."""
    full = " --full" if args.full else ""
    data = "" if args.data == DATA else f" --data {args.data.name}"
    starts = "" if args.starts == STARTS else f" --starts {args.starts}"
    size = f"--seconds {args.seconds:g} --seeds {args.seeds}{starts}{full}{data}"
    again = f".venv/bin/python benchmarks/replay.py {size} --out DIR --docs FILE"
    lines = ["# The governor and its rivals, replayed", ""]
    lines += ["Written by `benchmarks/replay.py`; again with:", "", "```", again, "```", ""]
    lines += [_told(args)]
    for slowdown in sorted({cell.slowdown for cell in cells}):
        for kind, objective_ms in objectives_ms.items():
            ran = [
                c for c in cells if (c.kind, c.slowdown) == (kind, slowdown) and c.skipped is None
            ]
            if ran:
                drift = "" if slowdown == 1.0 else f", {slowdown:g} times slower from half way on"
                lines += ["", f"## Objective {objective_ms} ms{drift}", ""]
                lines += [*_sums(ran), "", *_coverage(ran), "", *_each(ran)]
    skipped = [cell for cell in cells if cell.skipped is not None]
    if skipped:
        lines += ["", "## Left out", ""]
        lines += [f"- {cell.name}: {cell.skipped}" for cell in skipped]
    return "\n".join(lines) + "\n"


def _told(args: argparse.Namespace) -> str:
    windows = f"windows of {args.seconds:g} s, {args.seeds} seed{'s' * (args.seeds > 1)}"
    interval = " ±: half of the 95 % interval of a mean over the seeds (Student's t)."
    return (
        f"Every policy gets the same arrivals: {windows}, load and score as in [replay](replay.md)."
        f" `{GOVERNOR}` starts with the profile that the rivals get, `{COLD}` has measured nothing."
        f" `{LATE}` has a dispatcher in Triton ([late binding](late-binding.md)), which costs every"
        f" request a millisecond; `{LATE_COLD}` is the same, and has measured nothing."
        f" All others could run on an unmodified Triton, but `{CLAIRVOYANT}`, which knows every"
        f" arrival, and {' and '.join(f'`{name}`' for name in IDEALISED)}, which choose for each"
        " batch, have the true service times and get to a variant in no time."
        f" `{OWN}` is a rule of our own that was not taken: it is told every arrival at once and"
        " has the true service times, but calibrates nothing."
        " Headroom is counted to a fluid oracle that forms full batches whatever the mix: where a"
        " batch costs nearly the same with one row as with many (ConvNets), or the objective is"
        " a few batches long, not even the clairvoyant gets near it."
        " Nobody but the oracle is told of the slow-down; the load is not lowered for it, so that"
        " the peak of some windows is more than the fastest variant then bears."
        " *ms*: of real time for a decision, whatever else the machine did."
        f"{interval * (args.seeds > 1)}"
    )


def _sums(cells: Sequence[Cell]) -> list[str]:
    head = "| policy | headroom, mean | least | under 60 % in | in time, least | switches | ms |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for policy in dict.fromkeys(name for cell in cells for name in cell.policies):
        of = [cell.policies[policy] for cell in cells if policy in cell.policies]
        room = [one["headroom_captured"] for one in of]
        lines.append(
            f"| {policy} | {fmean(room):.1%}{_interval(of)} | {min(room):.0%} | "
            f"{sum(r < NOT_UNDER for r in room)} of {len(room)} | "
            f"{min(one['slo_attainment'] for one in of):.2%} | "
            f"{fmean(one['switches'] for one in of):.0f} | "
            f"{fmean(one['decision_ms'] for one in of):.2f} |"
        )
    return [*lines, "", *(_told_of(name, cells) for name in (GOVERNOR, LATE))]


def _interval(of: Sequence[dict[str, Any]]) -> str:
    """Return half of the interval of the mean headroom; nothing where there is one seed."""
    by_seed = np.mean([one["headroom_by_seed"] for one in of], axis=0)
    half = half_width(by_seed)
    return "" if half is None else f" ± {half * 100.0:.1f}"


def _told_of(name: str, cells: Sequence[Cell]) -> str:
    ahead = sum(cell.is_ahead(name) for cell in cells)
    met = sum(cell.in_time(name) for cell in cells)
    told = [
        f"- `{name}` is above every rival in {ahead} of {len(cells)} cells",
        f"meets the objective, or comes within {NEAR:.1%} of `{CLAIRVOYANT}`, in {met}",
    ]
    known = [cell.policies for cell in cells if CLAIRVOYANT in cell.policies]
    if known:
        best, ours = (
            fmean(policies[one]["headroom_captured"] for policies in known)
            for one in (CLAIRVOYANT, name)
        )
        told.append(
            f"gets {ours / best:.0%} of the headroom that `{CLAIRVOYANT}` gets in {len(known)}"
        )
    return f"{'; '.join(told)}."


def _coverage(cells: Sequence[Cell]) -> list[str]:
    lines = ["What was told as the 99th percentile, and what came:", ""]
    lines += ["| policy | covered, mean | least | most | 98.5 to 99.5 % in | told / p99 | most |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for policy in (name for name in TELL if name in cells[0].policies):
        covered = [cell.policies[policy]["coverage"] for cell in cells]
        ratio = [cell.policies[policy]["stated_over_p99"] for cell in cells]
        lines.append(
            f"| {policy} | {fmean(covered):.2%} | {min(covered):.2%} | {max(covered):.2%} | "
            f"{sum(TOLD[0] <= c <= TOLD[1] for c in covered)} of {len(covered)} | "
            f"{fmean(ratio):.2f} | {max(ratio):.2f} |"
        )
    return lines


def _each(cells: Sequence[Cell]) -> list[str]:
    shown = [name for name in (*TELL, OWN, *IDEALISED) if name in cells[0].policies]
    told = [name for name in (GOVERNOR, LATE) if name in shown]
    columns = ["trace", "ladder"]
    for name in shown:
        columns += [name, *(["told"] if name in told else [])]
    columns += ["best rival", "its headroom"]
    columns += [CLAIRVOYANT] if any(CLAIRVOYANT in cell.policies for cell in cells) else []
    lines = ["Headroom (share in time); *told*: share within the told 99th percentile.", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for cell in cells:
        row = [f"{cell.trace} {cell.start_s} s", cell.ladder]
        for name in shown:
            row.append(_room(cell.policies[name]))
            row += [f"{cell.policies[name]['coverage']:.2%}"] if name in told else []
        row += [cell.best_rival, _room(cell.policies[cell.best_rival])]
        if CLAIRVOYANT in columns:
            knows = cell.policies.get(CLAIRVOYANT)
            row.append("" if knows is None else _room(knows))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _room(one: Mapping[str, Any]) -> str:
    return f"{one['headroom_captured']:.0%} ({one['slo_attainment']:.2%})"
