"""Values of options that several commands read alike.

Owns how a wrong one reaches argparse, which prints it with the usage. It must not import anything
heavy: parsers are built at every start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable


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
