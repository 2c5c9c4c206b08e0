"""What every subcommand prints with: exit codes, errors and JSON.

Owns the spelling of answers on a terminal. It must not know any subcommand, and must stay cheap
to import: `status` and `--help` answer in under 200 ms.
"""

from __future__ import annotations

import sys
from typing import Any, Final

OK: Final = 0
PROBLEM: Final = 1  # the answer is no, or a problem was found
USAGE: Final = 2  # argparse's own code for a wrong command line
UNREACHABLE: Final = 3  # the daemon does not answer
BAD_POLICY: Final = 78  # sysexits' EX_CONFIG: the file must be mended
INTERRUPTED: Final = 130  # as a shell reports SIGINT
READER_GONE: Final = 141  # as a shell reports SIGPIPE


class UsageError(Exception):
    """The command line, or a variable that stands for a part of it, is wrong; the text says how."""


def print_json(value: Any) -> None:
    """Print a value as indented JSON, keys in the order they were given."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_error(message: str, *, advice: str | None = None) -> None:
    """Print what is wrong to stderr and, on a second line, what to do about it."""
    print(f"governor: {message}", file=sys.stderr)
    if advice is not None:
        print(f"  {advice}", file=sys.stderr)
