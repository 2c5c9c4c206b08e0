"""`governor served`: which variant served a model at a moment.

Owns the command line, the ways to write a time, and the sentence. It must not know more than the
journal does.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controller.cli import output
from controller.cli.journals import add_journal, journal_named

if TYPE_CHECKING:
    from controller.journal.served import Served


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    summary = "Tell which variant served a model at a moment."
    parser = subparsers.add_parser(
        "served",
        help=summary,
        description=f"{summary} From the journal, so also without a daemon. Exit code 1: it cannot"
        " be told.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--at",
        type=_moment,
        metavar="TIME",
        help="2026-11-28T17:23:39.250 (local, or with an offset), 17:23:39 (today), or Unix"
        " seconds; default: now",
    )
    add_journal(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the answer; return 1 where there is none."""
    from controller.journal.reader import JournalReader, JournalUnreadableError
    from controller.journal.served import Certainty, served_at

    at_unix_s = time.time() if args.at is None else args.at
    try:
        with JournalReader(journal_named(args)) as reader:
            known = reader.models()
            if args.model not in known:
                told = f"it knows {', '.join(known)}" if known else "it knows none"
                output.print_error(f"no decision on {args.model} is in {reader.path}; {told}")
                return output.PROBLEM
            names = reader.variants(args.model)
            found = served_at(reader, args.model, at_unix_s)
    except JournalUnreadableError as error:
        output.print_error(str(error))
        return output.PROBLEM
    if args.json:
        variants = [names.get(one, one) for one in found.models]
        output.print_json(
            {"model": args.model, "at_unix_s": at_unix_s, "variants": variants, **asdict(found)}
        )
    else:
        print(_sentence(args.model, at_unix_s, found, names))
    return output.PROBLEM if found.certainty is Certainty.UNKNOWN else output.OK


def _sentence(model: str, at_unix_s: float, found: Served, names: dict[str, str]) -> str:
    from controller.cli.table import clean

    called = [clean(f"{names.get(one, one)} ({one})") for one in found.models]
    since, until = _clock(found.from_unix_s), _clock(found.to_unix_s)
    head = f"{clean(model)} at {_clock(at_unix_s)}: "
    if found.certainty == "certain":
        end = "the newest record" if found.to_unix_s is None else until
        return f"{head}{called[0]}, as recorded from {since} to {end}."
    if found.certainty == "switching":
        return (
            f"{head}{' or '.join(called)}: it was changed between {since} and {until}. Requests"
            " that came before the change were answered by the variant of before."
        )
    if found.certainty == "unwatched":
        if found.to_unix_s is None:
            return (
                f"{head}probably {called[0]}, which served at {since}; nothing was recorded since"
                " then."
            )
        return (
            f"{head}probably {called[0]}, which served before and after; but nobody looked between"
            f" {since} and {until}."
        )
    return f"{head}not known: the journal has nothing of that time."


def _clock(unix_s: float | None) -> str:
    if unix_s is None:
        return "now"
    whole = int(unix_s // 1)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole))
    return f"{stamp}.{int((unix_s - whole) * 1000):03d}"


def _moment(text: str) -> float:
    """Return Unix seconds."""
    import datetime as dt

    try:
        return float(text)
    except ValueError:
        pass
    today: Any = dt.datetime.now().astimezone()
    for parse in (dt.datetime.fromisoformat, lambda t: _today(t, today)):
        try:
            return float(parse(text).timestamp())
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(
        f"{text!r} is no time such as 2026-11-28T17:23:39, 17:23:39 or 1795886619.25"
    )


def _today(text: str, today: Any) -> Any:
    import datetime as dt

    return dt.datetime.combine(today.date(), dt.time.fromisoformat(text))
