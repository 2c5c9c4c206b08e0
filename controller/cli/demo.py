"""`governor demo`: see the governor work, on a real Triton, with one command.

Owns the command line and what is printed at the end. It must not import the demo before it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import textwrap
from pathlib import Path

from controller.cli import output

_SCENARIOS = ("bursts", "batch")
_DEFAULT_SECONDS = {"bursts": 30.0, "batch": 40.0}
_MIN_SECONDS, _MAX_SECONDS = 10.0, 3600.0
_WIDTH = 100
_NEEDS = ("rich", "matplotlib")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="see it work: a real Triton, a bursty load, fixed variants against the governor",
        description="Installs a Triton Inference Server and trains sample models (once), then "
        "sends the same bursty load to each variant fixed and to a governed alias. "
        "Everything stays on this machine and ends with the command.",
    )
    parser.add_argument(
        "--scenario",
        choices=_SCENARIOS,
        default=_SCENARIOS[0],
        help="bursts: bursts of load, five variants (default); batch: days and nights on a shared "
        "device, engines of several batch sizes",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="N",
        help="length of each arm (default "
        f"{', '.join(f'{name}: {of:g}' for name, of in _DEFAULT_SECONDS.items())})",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the load (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument(
        "--plot",
        type=Path,
        default=Path("demo.png"),
        metavar="FILE",
        help="write the picture (default demo.png)",
    )
    parser.add_argument("--no-plot", action="store_true", help="write no picture")
    parser.add_argument("--quiet", action="store_true", help="no live view, no table")
    parser.add_argument(
        "--arms",
        metavar="LIST",
        help="run only these: fixed, fixed:VARIANT, governor, governor:late (separated by commas)",
    )
    parser.add_argument(
        "--relief",
        type=int,
        metavar="STEPS",
        help="instead: measure the time from a step in load to relief",
    )
    # For experiments: everything that the published form leaves out.
    parser.add_argument("--details", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; Ctrl-C ends it and everything it started."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        output.print_error(
            f"the demo needs {' and '.join(missing)}: pip install 'triton-governor[demo]'"
        )
        return output.PROBLEM
    for path in (args.json, args.details, None if args.no_plot else args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            output.print_error(f"{path}: there is no folder {path.absolute().parent}")
            return output.PROBLEM
    from controller.demo.governed import GovernorError
    from controller.demo.load import LoadError
    from controller.demo.neighbour import DeviceError
    from controller.embedded.install import InstallError
    from controller.embedded.ladder import LadderError
    from controller.embedded.server import ServerError
    from controller.embedded.support import UnsupportedPlatformError

    try:
        return _relief(args) if args.relief else _demo(args)
    except (
        DeviceError,
        GovernorError,
        InstallError,
        LadderError,
        LoadError,
        OSError,
        ServerError,
        UnsupportedPlatformError,
        ValueError,
    ) as error:
        output.print_error(str(error))
        return output.PROBLEM


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    from controller.demo import report, report_batch, session
    from controller.demo.live import arms_table

    console = Console()
    options = session.Options(_length_s(args), args.seed, args.arms, args.quiet, args.scenario)
    outcome = session.run(options, console)
    more = {} if outcome.plan is None else report_batch.summary(outcome)
    if args.json is not None:
        report.write(args.json, {**report.summary(outcome), **more})
    if args.details is not None:
        report.write(args.details, {**report.details(outcome), **more})
    if not args.no_plot:
        from controller.demo import plot

        plot.draw(
            args.plot, outcome.results, outcome.schedule, outcome.served, outcome.objective_ms
        )
    for warning in (*report.warnings(outcome), *report_batch.doubts(outcome)):
        output.print_error(warning)
    if not args.quiet:
        console.print(arms_table(list(outcome.results)))
        print()
        for line in report.findings(outcome):
            print(line)
        for line in report_batch.findings(outcome):
            print("\n".join(textwrap.wrap(line, _WIDTH, break_on_hyphens=False)))
        if not args.no_plot:
            print(f"The picture is {args.plot}.")
        print()
        print(report.NEXT)
    return output.OK


def _relief(args: argparse.Namespace) -> int:
    from rich.console import Console

    from controller.demo import report, session

    options = session.Options(_length_s(args), args.seed, None, args.quiet)
    found = session.measure_relief(options, args.relief, Console())
    if args.json is not None:
        report.write(args.json, found)
    if not args.quiet:
        print(json.dumps(found, indent=1))
    return output.OK


def _length_s(args: argparse.Namespace) -> float:
    given: float | None = args.seconds
    return _DEFAULT_SECONDS[args.scenario] if given is None else given


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not _MIN_SECONDS <= value <= _MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {_MIN_SECONDS:g} to {_MAX_SECONDS:g}"
        )
    return value
