"""Runs the demo over several seeds and says whether the governor wins, and by how much.

    python benchmarks/demo_seeds.py --seeds 1-10 --seconds 30 --out DIR [--ablations]

Resumable: a seed with its JSON in DIR is not run again; results of other code are refused. Every
seed is published; the interval is Student's t over the paired differences, governor less the best
fixed variant of the same seed. A seed in which the load generator itself stood still is repeated
up to twice, since it did not get its load; such a run is kept as seed-N.stood-still-K.json and
told.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import code_digest
from scipy import stats

from controller.demo.report import STOOD_STILL_MS

_CONFIDENCE = 0.95
_ABLATIONS = ("governor:frozen", "governor:shuffled")
_GOAL = 0.99
_REPEATS = 2  # of a seed in which the machine stood still


def main() -> int:
    """Run what is missing, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=_seeds, default=list(range(1, 11)), metavar="1-10")
    parser.add_argument("--seconds", type=float, default=30.0, help="per arm")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ablations", action="store_true", help="frozen and shuffled, too")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.summary and not _of_this_code(args.out):
        print(f"{args.out} holds seeds of other code: give another --out", file=sys.stderr)
        return 1
    for seed in args.seeds:
        if not args.summary and not _path(args.out, seed).exists():
            status = _run_undisturbed(args, seed)
            if status != 0:
                print(f"seed {seed}: the demo ended with status {status}", file=sys.stderr)
                return 1
    runs = {
        seed: json.loads(_path(args.out, seed).read_text(encoding="utf-8"))
        for seed in args.seeds
        if _path(args.out, seed).exists()
    }
    if not runs:
        print("there is nothing to sum up", file=sys.stderr)
        return 1
    text = summary(runs) + _disturbed(args.out, list(runs))
    (args.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _of_this_code(folder: Path) -> bool:
    """Return whether what a folder holds is of the code that is run; mark an empty one as of it."""
    mark, digest = folder / "code.txt", code_digest()
    if not any(folder.glob("seed-*.json")):
        mark.write_text(digest, encoding="utf-8")
    return mark.exists() and mark.read_text(encoding="utf-8") == digest


def summary(runs: dict[int, Any]) -> str:
    """Return a table of all seeds and the differences, as Markdown."""
    lines = [
        "| seed | governor | in time | failed | best fixed | its variant | in time | difference |",
        "| ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    gains: list[float] = []
    ablated: dict[str, list[float]] = {}
    for seed, document in sorted(runs.items()):
        arms = {arm["name"]: arm for arm in document["arms"]}
        governor = arms["governor"]
        fixed = [arm for name, arm in arms.items() if name.startswith("fixed:")]
        best = max(fixed, key=lambda arm: arm["effective_quality"])
        gains.append(governor["effective_quality"] - best["effective_quality"])
        for name in _ABLATIONS:
            if name in arms:
                difference = governor["effective_quality"] - arms[name]["effective_quality"]
                ablated.setdefault(name, []).append(difference)
        lines.append(
            f"| {seed} | {governor['effective_quality']:.4f} | {governor['slo_attainment']:.2%} "
            f"| {governor['failed']} | {best['effective_quality']:.4f} "
            f"| {best['name'].partition(':')[2]} | {best['slo_attainment']:.2%} "
            f"| {gains[-1]:+.4f} |"
        )
    governors = [
        next(arm for arm in document["arms"] if arm["name"] == "governor")
        for document in runs.values()
    ]
    failed = sum(arm["failed"] for arm in governors)
    reached = sum(arm["slo_attainment"] >= _GOAL for arm in governors)
    lines += [
        "",
        f"Governor less the best fixed variant of each seed: {_interval(gains)}.",
        *(f"Governor less {name}: {_interval(values)}." for name, values in ablated.items()),
        f"Seeds with at least {_GOAL:.0%} of requests in time: {reached} of {len(runs)}.",
        f"Failed requests in all governor arms: {failed}.",
        _spread(runs, "relief_ms", "p95"),
        _spread(runs, "switch_ms", "p50"),
        _spread(runs, "switch_ms", "p99"),
        _spread(runs, "tick_ms", "p99"),
        _spread(runs, "governor", "cpu_ratio"),
        "",
    ]
    return "\n".join(lines)


def _interval(differences: Sequence[float]) -> str:
    """Return mean and confidence interval of paired differences."""
    mean, count = float(np.mean(differences)), len(differences)
    if count < 2:
        return f"{mean:+.4f} (one seed has no interval)"
    error = float(np.std(differences, ddof=1)) / count**0.5
    half = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1)) * error
    return (
        f"{mean:+.4f}, 95 % interval {mean - half:+.4f} to {mean + half:+.4f}, "
        f"smallest {min(differences):+.4f}, {count} seeds"
    )


def _spread(runs: dict[int, Any], part: str, key: str) -> str:
    values = [run[part][key] for run in runs.values() if run[part][key] is not None]
    if not values:
        return f"{part}.{key}: unknown."
    low, middle, high = min(values), float(np.median(values)), max(values)
    return f"{part}.{key} over seeds: {low:.4g} to {high:.4g}, median {middle:.4g}."


def _stood_still(folder: Path, seed: int) -> dict[str, float]:
    """Return how late the load generator itself was in a seed's newest run, where it was much."""
    arms = json.loads(_details(folder, seed).read_text(encoding="utf-8"))["arms"]
    late_ms = {name: arm["late_max_ms"] for name, arm in arms.items()}
    return {name: late for name, late in late_ms.items() if late > STOOD_STILL_MS}


def _disturbed(folder: Path, seeds: Sequence[int]) -> str:
    """Return a line for each run in which the machine stood still, as Markdown."""
    lines = [
        f"- seed-{seed}, which counts all the same: {still}\n"
        for seed in seeds
        if (still := _stood_still(folder, seed))
    ]
    for path in sorted(folder.glob("seed-*.stood-still-*.json")):
        arms = json.loads(path.read_text(encoding="utf-8"))["arms"]
        governor = next(arm for arm in arms if arm["name"] == "governor")
        lines.append(
            f"- {path.stem}, which was repeated: governor {governor['effective_quality']:.4f}, "
            f"{governor['slo_attainment']:.2%} in time\n"
        )
    if not lines:
        return ""
    head = f"The load generator itself was late by more than {STOOD_STILL_MS:g} ms in:\n\n"
    return head + "".join(lines)


def _run_undisturbed(args: argparse.Namespace, seed: int) -> int:
    """Run a seed, again where the machine stood still; return the demo's status."""
    path = _path(args.out, seed)
    for repeat in range(_REPEATS + 1):
        print(f"seed {seed}", flush=True)
        status = _run(args, seed)
        if status != 0:
            return status
        still = _stood_still(args.out, seed)
        if not still or repeat == _REPEATS:
            break
        print(f"seed {seed}: the load generator stood still (ms): {still}", flush=True)
        path.rename(path.with_suffix(f".stood-still-{repeat + 1}.json"))
    return 0


def _run(args: argparse.Namespace, seed: int) -> int:
    path = _path(args.out, seed)
    arms = ["fixed", "governor", *(_ABLATIONS if args.ablations else ())]
    command = [
        *(sys.executable, "-m", "controller.cli.main", "demo", "--quiet"),
        *("--seed", str(seed), "--seconds", str(args.seconds), "--arms", ",".join(arms)),
        *("--json", str(path), "--plot", str(path.with_suffix(".png"))),
        *("--details", str(_details(args.out, seed))),
    ]
    return subprocess.run(command, check=False).returncode


def _path(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}.json"


def _details(folder: Path, seed: int) -> Path:
    return folder / f"details-{seed}.json"


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        seeds += range(int(first), int(last if dash else first) + 1)
    return seeds


if __name__ == "__main__":
    sys.exit(main())
