"""`governor top`: its command line. Where there is no terminal to draw on, `status --watch`."""

from __future__ import annotations

import argparse
import os
import sys

from controller.cli.client import (
    add_socket,
    frame,
    interval,
    paper_of_stdout,
    socket_of,
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "top",
        help="watch it work: every model, live",
        description="The live view of a running governor; ? shows its keys. In a pipe, and on a "
        "terminal that cannot move its cursor (TERM=dumb), it is `governor status --watch`.",
        allow_abbrev=False,
    )
    add_socket(parser)
    parser.add_argument(
        "--interval",
        type=interval,
        default=1.0,
        metavar="S",
        help="ask every S seconds, 0.1 to 3600 (1)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the live view, or plain tables where it cannot be."""
    path = socket_of(args)
    cursor = os.environ.get("TERM", "dumb") not in {"", "dumb"}
    if not (cursor and sys.stdin.isatty() and sys.stdout.isatty()):
        from controller.cli.watch import watch

        return watch(lambda: frame(path, as_json=False), args.interval)
    from controller.cli.top.loop import run as show

    return show(path, args.interval, colour=paper_of_stdout(tty=True).colour)
