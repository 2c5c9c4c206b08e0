"""Which journal a command reads that answers without a daemon.

Owns the options that name one. It must not open it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from controller.cli import output

Options = argparse.ArgumentParser | argparse._ArgumentGroup  # noqa: SLF001 - has no public name


def add_journal(parser: Options, *, default: str = "the daemon's") -> None:
    """Add the options that name a journal."""
    parser.add_argument("--journal", metavar="FILE", help=f"the journal (default: {default})")
    parser.add_argument(
        "--instance",
        metavar="NAME",
        help="the server's name where services govern several (default: $TRITON_GOVERNOR_INSTANCE)",
    )


def journal_named(args: argparse.Namespace, of_policy: str | None = None) -> Path:
    """Return the journal that the options name, else a policy's, else the usual one.

    Raises UsageError: no instance can have such a name.
    """
    if args.journal:
        return Path(args.journal)
    if of_policy is not None and not args.instance:
        return Path(of_policy)
    return journal_of(args.instance)


def journal_of(instance: str | None) -> Path:
    """Return the journal to read of a service, or of who asks. Raises UsageError."""
    from controller.interfaces.paths import named_instance, service_name
    from controller.journal.paths import find_journal

    instance = instance or named_instance()
    try:
        service = service_name(instance)
    except ValueError as error:
        raise output.UsageError(str(error)) from None
    return find_journal(service, only=instance is not None)
