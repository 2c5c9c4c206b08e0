"""`governor replay`: what policies would have done with recorded load, on a simulated Triton.

Owns the command line and the table. It must not simulate or score anything itself.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.policy import units

if TYPE_CHECKING:
    from controller.twin.replay import Plan

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it

_DRIFT: Final = re.compile(r"(?P<factor>[0-9.]+)@(?P<from>[0-9.]+)%")
_WINDOW: Final = re.compile(r"(?P<from>[0-9.]+):(?P<to>[0-9.]+)")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the replay."""
    summary = "Replay recorded load on a simulated Triton, the governor beside other policies."
    parser = subparsers.add_parser("replay", help=summary, description=summary, allow_abbrev=False)
    parser.add_argument("--trace", required=True, type=Path, metavar="CSV", help="requests by time")
    parser.add_argument(
        "--ladder", required=True, type=Path, metavar="YAML", help="variants as measured"
    )
    parser.add_argument(
        "--slo", required=True, type=_duration, metavar="100ms", help="the objective's latency"
    )
    parser.add_argument("--percentile", type=float, default=99.0, help="default: 99")
    parser.add_argument(
        "--policies", default="all", metavar="A,B|all", help="whom to compare; default: all"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--peak-load",
        type=float,
        default=1.67,
        metavar="X",
        help="99th percentile of the rate, in capacities of the best variant (default: 1.67)",
    )
    parser.add_argument(
        "--window", type=_window, metavar="0:1800", help="seconds of the trace; default: all"
    )
    parser.add_argument(
        "--drift",
        type=_drift,
        default=(1.0, 0.5),
        metavar="1.3@50%",
        help="every latency times 1.3 from half of the trace on, which nobody is told",
    )
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers; - prints")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay; return 1 when the files or the combination cannot be used."""
    import json

    from controller.twin.ladder import LadderFormatError
    from controller.twin.replay import POLICIES, ReplayError, replay
    from controller.twin.trace import TraceFormatError

    if not 0.0 < args.percentile < 100.0 or args.seeds < 1 or not args.peak_load > 0.0:
        output.print_error("--percentile lies between 0 and 100; --seeds and --peak-load above 0")
        return output.USAGE
    names = POLICIES if args.policies == "all" else tuple(args.policies.split(","))
    try:
        document = replay(_plan(args), names, range(1, args.seeds + 1), jobs=args.jobs)
        if args.json is not None and str(args.json) != "-":
            args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except (LadderFormatError, TraceFormatError, ReplayError, OSError) as error:
        output.print_error(str(error))
        return output.PROBLEM
    if args.json is not None and str(args.json) == "-":
        output.print_json(document)
    else:
        print(table(document))
    return output.OK


def _plan(args: argparse.Namespace) -> Plan:
    from controller.twin.ladder import load_ladder
    from controller.twin.replay import Plan
    from controller.twin.trace import load_trace

    trace = load_trace(args.trace)
    if args.window is not None:
        trace = trace.window(*args.window)
    slowdown, slowdown_from = args.drift
    return Plan(
        trace,
        load_ladder(args.ladder),
        args.slo,
        args.percentile,
        args.peak_load,
        slowdown=slowdown,
        slowdown_from=slowdown_from,
    )


def table(document: dict[str, Any]) -> str:
    """Return the comparison as a Markdown table, best first."""
    seeds = len(document["seeds"])
    title = (
        f"{document['trace']} on {document['ladder']}, {document['percentile']:g} % within "
        f"{document['slo_ms']:g} ms, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"fluid oracle {document['oracle']['effective_quality']:.4f}"
    )
    lines = [
        title,
        "",
        "| policy | effective quality | headroom | in time | p99 | switches | decision |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in sorted(document["policies"], key=lambda p: -p["effective_quality"]):
        headroom, p99_ms = one["headroom_captured"], one["p99_ms"]
        half = one["ci95"]["effective_quality"]
        lines.append(
            f"| {one['name']} | {one['effective_quality']:.4f}"
            f"{'' if half is None else f' ± {half:.4f}'} "
            f"| {'-' if headroom is None else f'{headroom:.0%}'} | {one['slo_attainment']:.2%} "
            f"| {'never' if p99_ms is None else f'{p99_ms:.1f} ms'} | {one['switches']:.0f} "
            f"| {one['decision_ms']:.2f} ms |"
        )
    return "\n".join(lines)


def _duration(text: str) -> float:
    try:
        duration_s = units.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if duration_s <= 0.0:
        raise argparse.ArgumentTypeError("must be longer than 0")
    return duration_s


def _window(text: str) -> tuple[float, float]:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no window; write 0:1800 (seconds)")
    return _float(found["from"]), _float(found["to"])


def _drift(text: str) -> tuple[float, float]:
    found = _DRIFT.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no drift; write 1.3@50%")
    factor, share = _float(found["factor"]), _float(found["from"]) / 100.0
    if factor <= 0.0 or share > 1.0:
        raise argparse.ArgumentTypeError("a factor above 0, at a share of at most 100 %")
    return factor, share


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
