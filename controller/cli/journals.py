"""Which journal a command reads that answers without a daemon.

Owns the options that name one. It must not open it.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_journal(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a journal."""
    parser.add_argument("--journal", metavar="FILE", help="the journal (default: the daemon's)")
    parser.add_argument(
        "--instance",
        metavar="NAME",
        help="the server's name where services govern several (default: $TRITON_GOVERNOR_INSTANCE)",
    )


def journal_named(args: argparse.Namespace) -> Path:
    """Return the journal that the options name, or the usual one. Raises ValueError."""
    if args.journal:
        return Path(args.journal)
    return journal_of(args.instance)


def journal_of(instance: str | None) -> Path:
    """Return the journal to read of a service, or of who asks. Raises ValueError."""
    from controller.interfaces.paths import named_instance, service_name
    from controller.journal.paths import find_journal

    instance = instance or named_instance()
    return find_journal(service_name(instance), only=instance is not None)
