"""Replays the governor and its rivals over many cells, and writes the tables of the docs.

    python benchmarks/replay.py --seconds 30 --seeds 1 --out DIR [--data FOLDER] [--docs FILE]

docs/benchmark.md is of half minutes and one seed (`make benchmark`), docs/benchmark-full.md of
whole traces, in halves (`make benchmark-full`), docs/benchmark-seeds.md of half minutes and ten
seeds.

A cell is a trace's window, a ladder and an objective, each once as it is and once with every
latency 1.3 times as long from half way on. Windows that a trace is too short for are left out.
Without `--full` the clairvoyant plays in the first windows only, and so does everybody with the
slow-down, without the clairvoyant and those who have measured nothing. What a policy did with a
seed is kept in DIR, so an interrupted run goes on where it was; `--data` takes all traces and
ladders of another folder.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from provenance import code_digest
from replay_report import DATA, IDEALISED, STARTS, TELL, Cell, report

from controller.twin.contest import CLAIRVOYANT, COLD, GOVERNOR, LATE, LATE_COLD, RIVALS
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan, ReplayError
from controller.twin.replay import oracle_quality, run_one
from controller.twin.scoring import Score, summed_up
from controller.twin.trace import load_trace

OBJECTIVES_MS = {"short": 60, "long": 200}
POLICIES = (GOVERNOR, COLD, LATE, LATE_COLD, *RIVALS, *IDEALISED, CLAIRVOYANT)
SLOWDOWN = 1.3
FASTEST = "fixed:fastest"  # the zero of the score


@dataclass(frozen=True)
class Task:
    """One policy in one cell with one seed."""

    trace: Path
    start_s: int
    seconds: float
    ladder: Path
    kind: str  # of the objective
    slowdown: float
    policy: str
    seed: int

    @property
    def cell(self) -> tuple[object, ...]:
        """Return what it has in common with its rivals."""
        return (self.trace.stem, self.start_s, self.ladder.stem, self.kind, self.slowdown)

    def kept_in(self, folder: Path, code: str) -> Path:
        """Return where its result is kept."""
        read = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.trace, self.ladder)]
        limit_ms = OBJECTIVES_MS[self.kind]
        key = json.dumps([*self.cell, limit_ms, self.seconds, self.policy, self.seed, *read, code])
        return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"

    def plan(self) -> Plan:
        """Return what is replayed."""
        window = load_trace(self.trace).window(self.start_s, self.start_s + self.seconds)
        limit_s = OBJECTIVES_MS[self.kind] / 1e3
        return Plan(window, load_ladder(self.ladder), limit_s, slowdown=self.slowdown)


def main() -> int:
    """Run what is not done yet and write the report; return the exit code."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    code = code_digest()
    tasks = list(_tasks(args))
    work = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(_play)(task, task.kept_in(args.out, code)) for task in tasks
    )
    played: dict[tuple[object, ...], dict[str, Any]] = {}
    for number, (task, one) in enumerate(zip(tasks, work, strict=True), 1):
        cell = played.setdefault(task.cell, {"scores": {}})
        if "skipped" in one:
            cell["skipped"] = one["skipped"]
        else:
            cell["oracle"] = one["oracle"]
            cell["scores"].setdefault(task.policy, []).append(Score(**one["score"]))
        if number % 50 == 0 or number == len(tasks):
            print(f"{number} of {len(tasks)} runs", file=sys.stderr, flush=True)
    text = report([_cell(*found) for found in played.items()], OBJECTIVES_MS, args)
    print(text)
    if args.docs is not None:
        args.docs.write_text(text, encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each window")
    parser.add_argument("--starts", default=STARTS, help="seconds where windows of a trace begin")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="everybody in every cell")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is done")
    parser.add_argument("--docs", type=Path, help="write the tables there, too")
    parser.add_argument("--jobs", type=int, default=-1)
    return parser.parse_args()


def _tasks(args: argparse.Namespace) -> Iterator[Task]:
    ladders, starts_s = sorted(args.data.glob("*.yaml")), [int(s) for s in args.starts.split(",")]
    windows = [
        (trace, start_s)
        for trace in sorted(args.data.glob("*.csv"))
        for start_s in starts_s
        if start_s + args.seconds <= load_trace(trace).duration_s
    ]
    cells = product((1.0, SLOWDOWN), OBJECTIVES_MS, windows, ladders)
    for slowdown, kind, (trace, start_s), ladder in cells:
        window = (trace, start_s, args.seconds, ladder, kind, slowdown)
        policies = POLICIES if args.full else _few(slowdown, first=start_s == starts_s[0])
        for policy, seed in product(policies, range(1, args.seeds + 1)):
            yield Task(*window, policy, seed)


def _few(slowdown: float, *, first: bool) -> tuple[str, ...]:
    """Return who plays where not everybody does everywhere; `first`: of the windows of a trace."""
    if slowdown == 1.0:
        return POLICIES if first else POLICIES[:-1]
    without = {COLD, LATE_COLD, CLAIRVOYANT}
    return tuple(name for name in POLICIES if name not in without) if first else ()


def _play(task: Task, kept: Path) -> dict[str, Any]:
    """Return the score of a task, or why there is none."""
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    done: dict[str, Any] = {}
    try:
        plan = task.plan()
        load = plan.load()
        done["score"] = asdict(run_one(plan, load, task.policy, task.seed).score)
        done["oracle"] = oracle_quality(plan, load)
    except ReplayError as error:
        done = {"skipped": str(error)}
    # Whole or not at all: who stops a run must not find half a result.
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(done), encoding="utf-8")
    part.replace(kept)
    return done


def _cell(key: tuple[object, ...], played: dict[str, Any]) -> Cell:
    if "skipped" in played:
        return Cell(*key, skipped=played["skipped"])
    floor = np.array([one.effective_quality for one in played["scores"][FASTEST]])
    policies = {
        name: {
            **summed_up(scores, floor, played["oracle"]),
            "headroom_by_seed": [
                (one.effective_quality - zero) / (played["oracle"] - zero)
                for one, zero in zip(scores, floor, strict=True)
            ],
        }
        for name, scores in played["scores"].items()
    }
    if any(one["headroom_captured"] is None for one in policies.values()):
        return Cell(*key, skipped="the oracle is no better than the fastest variant")
    if any(one["coverage"] is None for name, one in policies.items() if name in TELL):
        return Cell(*key, skipped="nothing was ever told")
    return Cell(*key, policies=policies)


if __name__ == "__main__":
    sys.exit(main())
