"""`governor advice`: what the governor would have done over a time.

Owns the command line and the text. It must not compute anything: `controller.journal.advice` does,
from the journal alone, so it answers with the daemon down.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.cli.arguments import checked
from controller.cli.client import parse_duration
from controller.cli.journals import add_journal, journal_named

if TYPE_CHECKING:
    from controller.cli.table import Json, Paper

_HOW: Final = (
    "Predicted: of the decisions recorded at least once a second, the share of requests that was"
    " predicted in time, weighted with the rate that was expected, for the variant that served and"
    " for the one that would have been chosen at that moment, from the queue that there really was."
    " Measured: traced requests of that time. Switches: changes of that choice that were recorded;"
    " a governor that acts starts from where its last switch left it, so its number differs."
)
_WHY: Final = {
    "not_ready": "not ready on Triton",
    "unusable": "not loaded, or no fit for the alias",
    "not_loaded": "not loaded, as the memory budget does not hold it",
    "min_quality": "under min_quality",
    "not_allowed": "not allowed by a schedule",
    "gpu_lost": "on a GPU that is lost",
}
_WORTH_SAYING: Final = 0.01


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    summary = "Tell what the governor would have done, beside what served."
    parser = subparsers.add_parser(
        "advice",
        help=summary,
        description=f"{summary} From the journal, so also without a daemon.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument(
        "--since",
        type=checked(parse_duration),
        default=3600.0,
        metavar="TIME",
        help="how long back: 10m, 1h, 2d",
    )
    add_journal(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 where there is nothing to tell."""
    import sys

    from controller.journal.advice import advice
    from controller.journal.reader import JournalReader, JournalUnreadableError

    now_unix_s = time.time()
    try:
        with JournalReader(journal_named(args)) as reader:
            found = advice(reader, now_unix_s - args.since, now_unix_s, args.model)
    except JournalUnreadableError as error:
        output.print_error(str(error), advice="start one with `governor run --policy FILE`")
        return output.PROBLEM
    if args.json:
        output.print_json({"since_unix_s": now_unix_s - args.since, "models": found, "how": _HOW})
    elif found:
        from controller.cli.client import paper_of_stdout

        paper = paper_of_stdout(sys.stdout.isatty())
        print("\n\n".join(render(model, paper) for model in found))
        print("\n" + textwrap.fill(_HOW, min(paper.width, 100)))
    if not found:
        what = f"on {args.model}" if args.model else "at all"
        output.print_error(f"no decisions {what} in that time; try a longer --since")
        return output.PROBLEM
    return output.OK


def render(model: Json, paper: Paper) -> str:
    """Return what one model's report says."""
    from controller.cli.table import clean, duration, list_of, number_of, percent, table

    watched_s = number_of(model, "watched_s") or 0.0
    asked_s, acted = number_of(model, "asked_s") or 0.0, number_of(model, "acted_ratio") or 0.0
    head = (
        f"{clean(model.get('name'))}: watched for {duration(watched_s)} of the last"
        f" {duration(asked_s)}, about {number_of(model, 'expected_requests') or 0.0:.0f} requests"
    )
    head += "; nothing was acted on" if acted == 0.0 else f"; acted on for {percent(acted)} % of it"
    lines = [paper.ink(head, "bold"), ""]
    lines += table(_columns(), list_of(model, "variants"), paper, lambda _: [])
    lines += ["", *table(_side_columns(), _sides(model), paper, lambda _: []), ""]
    lines += textwrap.wrap(_switches(model, acted), paper.width)
    for note in _notes(model):
        lines += [
            paper.ink(piece, "warn")
            for piece in textwrap.wrap(note, paper.width, subsequent_indent="  ")
        ]
    return "\n".join(lines)


def _switches(model: Json, acted: float) -> str:
    count, each = model.get("would_switch") or 0, model.get("would_switch_per_minute") or 0.0
    verb = "wanted" if acted == 1.0 else "would have made"
    return f"It {verb} at least {count} switch{'' if count == 1 else 'es'} ({each:.1f} a minute)."


def _sides(model: Json) -> list[dict[str, Any]]:
    from controller.cli.table import part_of

    objective = model.get("objective_ms")
    rows: list[dict[str, Any]] = []
    for name, key in (("as it was", "as_served"), ("as advised", "as_chosen")):
        side = part_of(model, key)
        rows.append(
            {
                "name": f"{name}, predicted",
                "attainment": side.get("predicted_attainment"),
                "quality": side.get("predicted_effective_quality"),
                "p50": part_of(side, "told_p99_ms").get("p50"),
                "p95": part_of(side, "told_p99_ms").get("p95"),
                "within": side.get("told_within_objective_ratio"),
                "objective": objective,
            }
        )
    measured = part_of(model, "measured")
    if measured:
        rows.append(
            {
                "name": f"measured, {measured.get('traced_requests')} traced",
                "attainment": measured.get("attainment"),
                "quality": measured.get("effective_quality"),
                "objective": objective,
            }
        )
    return rows


def _notes(model: Json) -> list[str]:
    from controller.cli.table import clean, list_of, number_of, part_of, percent

    notes = []
    unmeasured = []
    for variant in list_of(model, "variants"):
        name = clean(variant.get("variant"))
        ratio = number_of(variant, "not_measured_ratio") or 0.0
        if ratio > _WORTH_SAYING:
            unmeasured.append(f"{name} ({percent(ratio)} % of the time)")
        notes += [
            f"{name} was no choice for {percent(share)} % of the time: {_WHY.get(why, clean(why))}."
            for why, share in part_of(variant, "excluded_ratio").items()
            if share > _WORTH_SAYING
        ]
    if unmeasured:
        notes.insert(
            0,
            f"Not measured, so never advised: {', '.join(unmeasured)}. `probing: {{while_advising:"
            " true}` in the policy lets the governor send them a few synthetic requests.",
        )
    if not model.get("measured"):
        notes.append(
            "Nothing measured of that time: it is too short, as outcomes are recorded once a"
            " minute, or no traced requests come (`governor doctor` says why)."
        )
    return notes


def _columns() -> tuple[Any, ...]:
    from controller.cli.table import Column, clean, number_of, percent

    def share(key: str) -> Any:
        return lambda row: (percent(number_of(row, key), 1), "")

    return (
        Column("VARIANT", 0, lambda row: (clean(row.get("variant")), "bold"), right=False),
        Column("QUALITY", 3, lambda row: (f"{number_of(row, 'quality') or 0.0:.3f}", "")),
        Column("SERVED %", 1, share("served_ratio")),
        Column("WOULD HAVE SERVED %", 2, share("chosen_ratio")),
    )


def _side_columns() -> tuple[Any, ...]:
    from controller.cli.table import NONE, Column, clean, milliseconds, number_of, percent

    def share(key: str) -> Any:
        return lambda row: (percent(number_of(row, key), 2), "")

    def ms(key: str) -> Any:
        return lambda row: (milliseconds(number_of(row, key)), "")

    def quality(row: Json) -> tuple[str, str]:
        value = number_of(row, "quality")
        return (NONE if value is None else f"{value:.4f}"), ""

    return (
        Column("", 0, lambda row: (clean(row.get("name")), ""), right=False),
        Column("IN TIME %", 1, share("attainment")),
        Column("EFF.Q", 2, quality),
        Column("TOLD P99 MS", 4, ms("p50")),
        Column("ITS 95 %", 6, ms("p95")),
        Column("GOAL MS", 5, ms("objective")),
        Column("TOLD IN GOAL %", 3, share("within")),
    )
