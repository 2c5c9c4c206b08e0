"""Values of options that several commands read alike.

Owns how a wrong one reaches argparse, which prints it with the usage. It must not import anything
heavy: parsers are built at every start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def checked(parse: Callable[[str], float]) -> Callable[[str], float]:
    """Return a parser whose ValueError is a wrong command line."""

    def convert(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


@checked
def duration(text: str) -> float:
    """Return seconds from a duration as a policy writes it, more than none. Raises ValueError."""
    from controller.policy.units import parse_duration

    duration_s = parse_duration(text)
    if duration_s <= 0.0:
        raise ValueError("must be longer than 0")
    return duration_s


def into_repository(parser: argparse.ArgumentParser) -> None:
    """Add what commands share that write a policy's folders into a model repository."""
    parser.add_argument("policy", type=Path, metavar="POLICY", help="the policy that names them")
    parser.add_argument(
        "--repository",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="Triton's model repository, as it is on this machine",
    )
    parser.add_argument("--host", metavar="NAME", help="whose policy; default: this machine's")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
