"""`governor report`: what a day came to, as one HTML page or as JSON, from the journal alone.

Owns the command line and the file that is written. It must not compute or draw anything, and never
asks the daemon: it answers when that is down, too.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from controller.cli import output
from controller.cli.arguments import checked
from controller.cli.client import parse_duration
from controller.cli.journals import add_journal, journal_named

if TYPE_CHECKING:
    from controller.report import Recorded

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it

_TABLES: Final[tuple[Literal["actions", "events", "minutes"], ...]] = (
    "actions",
    "events",
    "minutes",
)
_BEGINNING: Final = 2048  # characters of a file that tell whether it is a report


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the report."""
    summary = "Write what a day came to as one HTML page, from the journal."
    parser = subparsers.add_parser(
        "report",
        help=summary,
        description=f"{summary} The page needs no network and nothing beside it; the daemon may be"
        " down.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--since",
        type=checked(parse_duration),
        default=86_400.0,
        metavar="24h",
        help="how far back (24h)",
    )
    parser.add_argument("--model", metavar="MODEL", help="of one model alone")
    add_journal(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the page (report.html); - prints it"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the numbers as JSON; a page only with -o"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report; return 1 where there is nothing to tell of, or no place to write to."""
    from controller.journal.reader import JournalUnreadableError
    from controller.report import summary

    if args.json and args.output == "-":
        output.print_error("--json and -o - both want stdout", advice="name a file: -o report.html")
        return output.USAGE
    try:
        recorded = _read(args)
    except JournalUnreadableError as error:
        advice = "name the daemon's: --journal PATH (journal.path in the policy)"
        output.print_error(str(error), advice=advice)
        return output.PROBLEM
    if isinstance(recorded, str):
        output.print_error(recorded)
        return output.PROBLEM
    document = summary(recorded)
    target = args.output or (None if args.json else "report.html")
    if target is not None and not _write(target, recorded, document):
        return output.PROBLEM
    if args.json:
        output.print_json(document)
    return output.OK


def _read(args: argparse.Namespace) -> Recorded | str:
    """Return what there is to tell of, or why there is nothing. Raises JournalUnreadableError."""
    from controller.journal.reader import JournalReader
    from controller.report import Recorded

    path = journal_named(args)
    until = time.time()
    since = until - args.since
    with JournalReader(path) as reader:
        has_minutes = reader.has_minutes()
        models, machine = reader.minutes(since, until) if has_minutes else ([], [])
        dropped: dict[str, float] = {
            table: before
            for table in _TABLES
            if (table != "minutes" or has_minutes)
            and (before := reader.dropped_before(table)) is not None
        }
        recorded = Recorded(
            since,
            until,
            str(path),
            models,
            machine,
            reader.between("actions", since, until),
            reader.between("events", since, until),
            dropped,
            has_minutes,
            _qualities([decision for _, decision in reader.last_decisions()]),
            reader.minutes_since() if has_minutes else None,
        )
        newest = reader.newest_unix_s()
    if args.model is not None:
        if args.model not in recorded.names:
            return _unknown(args.model, recorded.names)
        recorded = recorded.of(args.model)
    if not (recorded.models or recorded.machine or recorded.actions or recorded.events):
        return _nothing(path, newest, until)
    return recorded


def _qualities(decisions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what each variant's quality is, as the newest decisions have it."""
    found: dict[str, dict[str, float]] = {}
    for decision in decisions:
        candidates = decision.get("candidates")
        for one in candidates if isinstance(candidates, list) else ():
            quality = one.get("quality") if isinstance(one, dict) else None
            if isinstance(quality, (int, float)):
                found.setdefault(str(decision.get("model")), {})[str(one.get("variant"))] = quality
    return found


def _unknown(model: str, names: list[str]) -> str:
    from controller.cli.table import clean

    near = difflib.get_close_matches(model, names, n=1)
    if near:
        return f"nothing is recorded of {clean(model)} (did you mean {clean(near[0])}?)"
    known = clean(", ".join(names)) or "no model"
    return f"nothing is recorded of {clean(model)} in this time; there is {known}"


def _nothing(path: Path, newest_unix_s: float | None, now_unix_s: float) -> str:
    from controller.cli.table import duration

    if newest_unix_s is None:
        return f"{path} holds nothing yet"
    age_s = now_unix_s - newest_unix_s
    return (
        f"{path} holds nothing of this time; its newest record is {duration(age_s)} old:"
        f" ask for more, such as --since {int(age_s // 3600) + 24}h"
    )


def _write(target: str, recorded: Recorded, document: dict[str, Any]) -> bool:
    """Write the page, whole or not at all; return whether it could be."""
    from controller.report import page

    if target == "-":
        sys.stdout.write(page(recorded, document))
        return True
    path = Path(target)
    beside = path.parent / f".{path.name}.{os.getpid()}"
    try:
        problem = _in_the_way(path)
        if problem is not None:
            output.print_error(problem, advice="name another file with -o, or remove this one")
            return False
        with beside.open("x", encoding="utf-8") as file:  # never through a link that is there
            file.write(page(recorded, document))
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        output.print_error(f"cannot write {path}: {error.strerror or error}")
        return False
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB", file=sys.stderr)
    for note in document["notes"]:
        from controller.cli.table import clean

        print(f"  {clean(note)}", file=sys.stderr)
    return True


def _in_the_way(path: Path) -> str | None:
    """Return what would be lost, if anything: an earlier report may be, a policy or journal not."""
    from controller.report import is_report

    if not path.exists():
        return None
    if not path.is_file():
        return f"{path} is there and is no file"
    with path.open(encoding="utf-8", errors="replace") as file:
        beginning = file.read(_BEGINNING)
    if not beginning or is_report(beginning):
        return None
    return f"{path} is there and is no report"
