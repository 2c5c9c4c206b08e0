"""`governor replay`: what policies would have done with recorded load, on a simulated Triton.

Owns the command line and the table. It must not simulate or score anything itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.cli.arguments import duration

if TYPE_CHECKING:
    from controller.twin.plan import Plan

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it

_FROM: Final = re.compile(r"(?P<number>[0-9.]+)@(?P<from>[0-9.]+)%")
_STRAGGLERS: Final = re.compile(r"(?P<share>[0-9.]+)%x(?P<factor>[0-9.]+)")
_OF_TRACES: Final = ("percentile", "peak_load")
_WINDOW: Final = re.compile(r"(?P<from>[0-9.]+):(?P<to>[0-9.]+)")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the replay."""
    summary = "Replay recorded load on a simulated Triton, the governor beside other policies."
    parser = subparsers.add_parser("replay", help=summary, description=summary, allow_abbrev=False)
    recorded = parser.add_argument_group(
        "what a governor recorded: its load and what it learned, under a policy"
    )
    recorded.add_argument("--journal", type=Path, metavar="FILE", help="the daemon's journal")
    recorded.add_argument("--policy", type=Path, metavar="YAML", help="the policy to ask about")
    recorded.add_argument("--host", metavar="NAME", help="whose policy; default: this machine's")
    recorded.add_argument("--model", help="the name clients call; default: the policy's only one")
    recorded.add_argument(
        "--since", type=duration, metavar="24h", help="how far back; default: everything"
    )
    given = parser.add_argument_group("or a trace on a ladder")
    given.add_argument("--trace", type=Path, metavar="CSV", help="requests by time")
    given.add_argument("--ladder", type=Path, metavar="YAML", help="variants as measured")
    given.add_argument("--slo", type=duration, metavar="100ms", help="the objective's latency")
    given.add_argument("--percentile", type=float, metavar="P", help="default: 99")
    given.add_argument(
        "--peak-load",
        type=float,
        metavar="X",
        help="99th percentile of the rate, in capacities of the best variant (default: 1.67)",
    )
    parser.add_argument(
        "--policies",
        default="all",
        metavar="A,B|all",
        help="whom to compare; default: all (of a journal: the governor and fixed variants)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--window", type=_window, metavar="0:1800", help="seconds of the trace; default: all"
    )
    parser.add_argument(
        "--drift",
        type=_from_a_share_on,
        default=(1.0, 0.5),
        metavar="1.3@50%",
        help="every latency times 1.3 from half of the trace on, which nobody is told",
    )
    parser.add_argument(
        "--stragglers",
        type=_stragglers,
        default=(0.0, 1.0),
        metavar="1%x5",
        help="1 %% of the batches take 5 times as long",
    )
    parser.add_argument(
        "--cotenants",
        type=_from_a_share_on,
        default=(0.0, 0.5),
        metavar="1@50%",
        help="somebody else keeps one batch on the GPU from half of the trace on",
    )
    given.add_argument(
        "--profiles",
        type=_batches,
        metavar="1,4,16",
        help="give each variant profiles of these largest batches, too",
    )
    given.add_argument(
        "--fixed-shape",
        action="store_true",
        default=None,
        help="each profile and variant is an engine compiled for its largest batch alone",
    )
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="default: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers; - prints")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .png, .svg or .pdf")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay; return 1 when the files or the combination cannot be used."""
    from controller.journal.reader import JournalUnreadableError
    from controller.policy.load import PolicyError
    from controller.twin.ladder import LadderFormatError
    from controller.twin.recorded import RecordedError

    wrong = _misuse(args)
    if wrong is not None:
        output.print_error(wrong)
        return output.USAGE
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        output.print_error("--plot needs matplotlib: pip install 'triton-governor[demo]'")
        return output.PROBLEM
    if importlib.util.find_spec("numba") is None:
        output.print_error("the replay needs numba: pip install 'triton-governor[replay]'")
        return output.PROBLEM
    from controller.twin.contest import possible
    from controller.twin.plan import ReplayError
    from controller.twin.replay import replay
    from controller.twin.trace import TraceFormatError

    try:
        plan = _plan(args) if args.journal is None else _recorded_plan(args)
        plan = _troubled(plan, args)
        if args.window is not None:
            plan = replace(plan, trace=plan.trace.window(*args.window))
        names = possible(plan) if args.policies == "all" else args.policies.split(",")
        document = replay(plan, names, range(1, args.seeds + 1), jobs=args.jobs)
        # First what needs no file: a run of an hour must not be lost to a typing error.
        if args.json is not None and str(args.json) == "-":
            output.print_json(document)
        else:
            print(table(document))
        _write(args, document)
    except (
        JournalUnreadableError,
        LadderFormatError,
        OSError,
        PolicyError,
        RecordedError,
        ReplayError,
        TraceFormatError,
    ) as error:
        output.print_error(str(error))
        return output.PROBLEM
    return output.OK


def _misuse(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the options, if anything."""
    given = (args.trace, args.ladder, args.slo)
    asked = (args.journal, args.policy)
    if not (all(given) and not any(asked)) and not (all(asked) and not any(given)):
        return "either --trace, --ladder and --slo, or --journal and --policy"
    of_ladders = (*_OF_TRACES, "profiles", "fixed_shape")
    mine, others = (
        ("--trace", ("host", "model", "since")) if all(given) else ("--journal", of_ladders)
    )
    for option in others:
        if getattr(args, option) is not None:
            return f"--{option.replace('_', '-')} does not go with {mine}"
    if args.fixed_shape and args.profiles is None:
        return "--fixed-shape says how --profiles are, and goes with it"
    if args.percentile is not None and not 0.0 < args.percentile < 100.0:
        return "--percentile lies between 0 and 100"
    if args.gpus < 1 or (args.gpus > 1 and not all(given)):
        return "--gpus is 1 or more, and 1 with --journal"
    if args.seeds < 1 or args.jobs == 0 or (args.peak_load is not None and args.peak_load <= 0.0):
        return "--seeds and --peak-load lie above 0; --jobs is not 0"
    return None


def _write(args: argparse.Namespace, document: dict[str, Any]) -> None:
    import json

    if args.json is not None and str(args.json) != "-":
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        _draw(args.plot, document)


def _draw(path: Path, document: dict[str, Any]) -> None:
    from controller.twin.plot import draw

    try:
        draw(path, document)
    except ValueError as error:  # not a kind of file that matplotlib knows
        raise OSError(f"{path}: {error}") from error


def _plan(args: argparse.Namespace) -> Plan:
    from controller.twin.ladder import load_ladder
    from controller.twin.plan import Plan
    from controller.twin.trace import load_trace

    chosen = {name: getattr(args, name) for name in _OF_TRACES if getattr(args, name) is not None}
    ladder = load_ladder(args.ladder)
    if args.profiles is not None:
        from controller.twin.profiles import with_profiles

        ladder = with_profiles(ladder, args.profiles, fixed_shape=bool(args.fixed_shape))
    return Plan(load_trace(args.trace), ladder, args.slo, **chosen)


def _troubled(plan: Plan, args: argparse.Namespace) -> Plan:
    """Return a plan with what shall go wrong."""
    slowdown, slowdown_from = args.drift
    straggler_ratio, straggler_factor = args.stragglers
    cotenants, cotenants_from = args.cotenants
    return replace(
        plan,
        slowdown=slowdown,
        slowdown_from=slowdown_from,
        straggler_ratio=straggler_ratio,
        straggler_factor=straggler_factor,
        cotenants=cotenants,
        cotenants_from=cotenants_from,
        gpus=args.gpus,
    )


def _recorded_plan(args: argparse.Namespace) -> Plan:
    import time

    from controller.journal.reader import JournalReader
    from controller.policy.load import load_policy
    from controller.twin.plan import Plan
    from controller.twin.recorded import RecordedError, RecordedLoad, from_journal

    policy = load_policy(args.policy, host=args.host)
    names = [model.name for model in policy.models]
    if args.model is None and len(names) > 1:
        raise RecordedError(f"{args.policy} has several models; choose one: {', '.join(names)}")
    name = args.model or names[0]
    if name not in names:
        raise RecordedError(f"{args.policy} has no model {name!r}: {', '.join(names)}")
    since_unix_s = 0.0 if args.since is None else time.time() - args.since
    with JournalReader(args.journal) as journal:
        loads = [RecordedLoad(*load) for load in journal.loads(name, since_unix_s)]
        recorded = from_journal(loads, journal.learned("core"), policy, name)
    for variant in recorded.left_out:
        output.print_error(f"{variant} is left out: never measured, or too slow")
    if recorded.unknown_s:
        output.print_error(f"{recorded.unknown_s} s in between were not recorded and are left out")
    objective = recorded.policy.models[0].objective
    return Plan(
        recorded.trace,
        recorded.ladder,
        objective.latency_s,
        objective.percentile,
        max_batch=max(variant.max_batch for variant in recorded.ladder.variants),
        as_recorded=True,
        rows_per_request=recorded.rows_per_request,
        policy=recorded.policy,
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
            f"| {one['name']}{' (idealised)' if one['idealised'] else ''} "
            f"| {one['effective_quality']:.4f}"
            f"{'' if half is None else f' ± {half:.4f}'} "
            f"| {'-' if headroom is None else f'{headroom:.0%}'} | {one['slo_attainment']:.2%} "
            f"| {'never' if p99_ms is None else f'{p99_ms:.1f} ms'} | {one['switches']:.0f} "
            f"| {one['decision_ms']:.2f} ms |"
        )
    return "\n".join(lines)


def _window(text: str) -> tuple[float, float]:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no window; write 0:1800 (seconds)")
    return _float(found["from"]), _float(found["to"])


def _from_a_share_on(text: str) -> tuple[float, float]:
    found = _FROM.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number and a share; write 1.3@50%")
    number, share = _float(found["number"]), _float(found["from"]) / 100.0
    if number <= 0.0 or share > 1.0:
        raise argparse.ArgumentTypeError("a number above 0, from a share of at most 100 % on")
    return number, share


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(one) for one in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are no largest batches; write 1,4,16")
    return found


def _stragglers(text: str) -> tuple[float, float]:
    found = _STRAGGLERS.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} are no stragglers; write 1%x5")
    ratio, factor = _float(found["share"]) / 100.0, _float(found["factor"])
    if ratio > 1.0 or factor <= 0.0:
        raise argparse.ArgumentTypeError("at most 100 %, times a factor above 0")
    return ratio, factor


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
