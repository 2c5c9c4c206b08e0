"""`governor quality`: how good the answers of each variant are, on your data.

Owns the command line, the report and the lines for the policy. It must not measure anything itself.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.cli.client import add_socket

if TYPE_CHECKING:
    from controller.cli.table import Json
    from controller.policy.model import Policy
    from controller.quality.data import Rows
    from controller.quality.measure import Measured

_COARSE: Final = 0.01  # an interval of more makes a fourth digit noise
_METRICS: Final = ("top1", "agreement", "cosine", "error", "exact")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    summary = "Measure the quality of each variant of a model on your data."
    parser = subparsers.add_parser(
        "quality",
        help=summary,
        description=f"{summary} Sends rows to every variant by its own name, gently, and prints"
        " quality with its 95 % interval, as lines for the policy. docs/quality.md is the recipe.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="of the policy")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=".npz with an array for each input, or JSON lines",
    )
    parser.add_argument(
        "--policy", metavar="FILE", help="the policy (default: that of the running governor)"
    )
    parser.add_argument(
        "--host", metavar="NAME", help="whose policy; default: that governor's, or this machine's"
    )
    add_socket(parser)
    parser.add_argument(
        "--metric",
        choices=_METRICS,
        help="top1: the label has the greatest score (the default with labels); agreement: the"
        " greatest score is where the reference has it (the default with --reference); cosine;"
        " error: 1 - distance / length; exact: the same text",
    )
    parser.add_argument(
        "--reference", metavar="VARIANT", help="compare with this variant's answers"
    )
    parser.add_argument("--variants", metavar="A,B", help="only these (default: all)")
    what = parser.add_argument_group("what of the data")
    what.add_argument("--labels", metavar="KEY", help="the labels (default: `labels` or `label`)")
    what.add_argument(
        "--group", metavar="KEY", help="what rows were made from, where several are alike"
    )
    what.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=KEY",
        help="the data's key of an input, where it is not the input's name",
    )
    what.add_argument("--output", metavar="NAME", help="the output (default: the first)")
    what.add_argument("--samples", type=_count, metavar="N", help="so many rows, at random")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of that choice (0)")
    how = parser.add_argument_group("how gently")
    how.add_argument("--rows", type=_count, default=8, metavar="N", help="rows a request (8)")
    how.add_argument(
        "--max-rate", type=_rate, default=20.0, metavar="R", help="requests a second (20)"
    )
    how.add_argument(
        "--concurrency", type=_count, default=1, metavar="N", help="requests at once (1)"
    )
    how.add_argument("--when-idle", action="store_true", help="wait while clients call the model")
    how.add_argument(
        "--load", action="store_true", help="load variants that are not loaded, and unload them"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure; return 1 where a variant was not."""
    import asyncio
    from pathlib import Path

    from controller.cli.table import clean
    from controller.quality.data import DataError, read_rows
    from controller.quality.measure import QualityError

    policy = _policy(args)
    if policy is None:
        return output.PROBLEM
    try:
        model = policy.model(args.model)
    except KeyError:
        names = ", ".join(one.name for one in policy.models)
        output.print_error(f"the policy has no model {args.model!r}; it has {names}")
        return output.PROBLEM
    try:
        rows = read_rows(Path(args.data), labels=args.labels, group=args.group)
        found, metric = asyncio.run(_measure(args, policy, model, rows))
    except (DataError, QualityError) as error:
        output.print_error(clean(error))
        return output.PROBLEM
    if args.json:
        output.print_json(_document(args, metric, found))
    else:
        print(_report(args, metric, found))
    return output.OK if all(one.quality is not None for one in found) else output.PROBLEM


async def _measure(
    args: argparse.Namespace, policy: Policy, model: Any, rows: Rows
) -> tuple[list[Measured], str]:
    from controller.quality.ask import Asker, Manner
    from controller.quality.measure import QualityError, Wanted, measure
    from controller.quality.metrics import Metric
    from controller.telemetry.channel import open_client
    from controller.telemetry.tls import CredentialsError

    default = Metric.TOP1
    if args.reference is not None:
        default = Metric.AGREEMENT
    elif rows.labels is None and rows.expected is not None:
        default = Metric.EXACT if rows.expected.dtype.kind in "OSU" else Metric.COSINE
    metric = default if args.metric is None else Metric(args.metric)
    wanted = Wanted(
        model=model,
        metric=metric,
        rows=rows,
        reference=args.reference,
        variants=None if args.variants is None else tuple(args.variants.split(",")),
        output=args.output,
        inputs=_inputs(args.input),
        load=args.load,
        samples=args.samples,
        seed=args.seed,
    )
    manner = Manner(args.rows, args.concurrency, args.max_rate, args.when_idle)
    try:
        client, headers = open_client(policy.triton)
    except CredentialsError as error:
        raise QualityError(str(error)) from error
    async with client:
        found = await measure(Asker(client, headers, model.name, manner), wanted, _progress())
    return found, metric.value


def _inputs(pairs: list[str]) -> dict[str, str]:
    from controller.quality.measure import QualityError

    found = {}
    for pair in pairs:
        name, separator, key = pair.partition("=")
        if not (name and separator and key):
            raise QualityError(f"--input {pair}: say NAME=KEY")
        found[name] = key
    return found


def _policy(args: argparse.Namespace) -> Policy | None:
    from pathlib import Path

    from controller.cli.client import DaemonDownError, RefusedError, ask, socket_of
    from controller.policy.load import PolicyError, load_policy

    named, host = args.policy, args.host
    try:
        if named is None:
            status = ask(socket_of(args), "GET", "/v1/status")
            daemon = status.get("daemon") or {}
            named, host = daemon.get("policy_file"), host or daemon.get("host")
        return load_policy(Path(str(named)), host=host)
    except (DaemonDownError, RefusedError) as error:
        output.print_error(str(error), advice="name the policy: governor quality --policy FILE")
    except (PolicyError, OSError) as error:
        output.print_error(str(error))
    return None


def _progress() -> Any:
    if not sys.stderr.isatty():
        return lambda *_: None

    def show(variant: str, done: int, rows: int) -> None:
        end = "\n" if done >= rows else ""
        print(f"\r{variant}: {done} of {rows} rows", end=end, file=sys.stderr, flush=True)

    return show


def _document(args: argparse.Namespace, metric: str, found: list[Measured]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": args.model,
        "data": args.data,
        "metric": metric,
        "reference": args.reference,
        "variants": [asdict(one) for one in found],
    }


def _report(args: argparse.Namespace, metric: str, found: list[Measured]) -> str:
    from controller.cli.client import paper_of_stdout
    from controller.cli.table import clean, table

    paper = paper_of_stdout(sys.stdout.isatty())
    compared = f" with {args.reference}" if args.reference else ""
    lines = [paper.ink(f"{args.model}: {metric}{compared}, {args.data}", "bold"), ""]
    rows = [{"measured": one} for one in found if one.quality is not None]
    lines += table(_columns(), rows, paper, lambda _: []) if rows else ["nothing was measured"]
    skipped: dict[str, list[str]] = {}
    for one in found:
        if one.skipped is not None:
            skipped.setdefault(clean(one.skipped), []).append(one.variant)
    lines += [
        paper.ink(piece, "warn")
        for why, names in skipped.items()
        for piece in textwrap.wrap(f"not measured: {', '.join(names)}: {why}", paper.width)
    ]
    if rows:
        lines += ["", *_yaml(args, metric, found)]
    if metric != "top1" and args.reference and rows:
        note = (
            f"This is likeness to {args.reference}, which is 1 beside itself, not how often an"
            " answer is right; do not mix it with accuracies (docs/quality.md)."
        )
        lines += ["", *textwrap.wrap(note, paper.width)]
    return "\n".join(lines)


def _columns() -> tuple[Any, ...]:
    from controller.cli.table import NONE, Column, clean

    def of(row: Json) -> Measured:
        one: Measured = row["measured"]
        return one

    def interval(row: Json) -> tuple[str, str]:
        quality = of(row).quality
        return ("" if quality is None else f"{quality.low:.4f} to {quality.high:.4f}"), ""

    def mean(row: Json) -> tuple[str, str]:
        quality = of(row).quality
        return ("" if quality is None else f"{quality.mean:.4f}"), "bold"

    def below(row: Json) -> tuple[str, str]:
        apart = of(row).below_best
        if apart is None:
            return "best", "good"
        return f"{apart.mean:+.4f} ({apart.low:+.4f} to {apart.high:+.4f})", ""

    def counted(row: Json) -> tuple[str, str]:
        quality = of(row).quality
        if quality is None:
            return NONE, ""
        each = f"{quality.rows}"
        return (each if quality.groups == quality.rows else f"{each} in {quality.groups}"), ""

    def stated(row: Json) -> tuple[str, str]:
        one = of(row)
        off = one.quality is not None and not one.quality.low <= one.stated <= one.quality.high
        return f"{one.stated:.4f}", "warn" if off else ""

    return (
        Column("VARIANT", 0, lambda row: (clean(of(row).variant), "bold"), right=False),
        Column("QUALITY", 1, mean),
        Column("95 %", 2, interval),
        Column("POLICY SAYS", 4, stated),
        Column("ROWS", 5, counted),
        Column("BESIDE THE BEST", 3, below, right=False),
    )


def _yaml(args: argparse.Namespace, metric: str, found: list[Measured]) -> list[str]:
    from pathlib import Path

    lines = ["for the policy:", f"  {args.model}:", "    variants:"]
    for one in found:
        if one.quality is None:
            continue
        name = Path(args.data).name
        low, high, rows = one.quality.low, one.quality.high, one.quality.rows
        said = f"{metric}, {low:.4f} to {high:.4f} at 95 %, {rows} rows of {name}"
        digits = 3 if one.quality.high - one.quality.low > _COARSE else 4
        lines.append(f"      {one.variant}:")
        lines.append(f"        quality: {one.quality.mean:.{digits}f}  # {said}")
    return lines


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100_000.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0.01 to 100000 a second")
    return value
