"""`governor dispatcher`: the models inside Triton that bind requests late.

Owns the command line and what is printed. It must not know how a folder is made.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from controller.cli import output
from controller.cli.arguments import into_repository

if TYPE_CHECKING:
    from controller.actuation.dispatcher_folder import Written


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `dispatcher` and its subcommand."""
    parser = subparsers.add_parser(
        "dispatcher",
        help="put a policy's dispatchers into the model repository",
        description="Dispatchers: models inside Triton that give each batch the variant that fits.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    make = commands.add_parser(
        "write",
        help="write a folder for each dispatcher of a policy",
        description="Writes, for each model of a policy that has a dispatcher, the folder of that "
        "Triton model, and its key where there is none yet. What is right already stays; a folder "
        "that this command did not write is never touched. Triton loads it when the governor asks.",
        allow_abbrev=False,
    )
    into_repository(make)
    make.set_defaults(run=run_write)


def run_write(args: argparse.Namespace) -> int:
    """Write the folders; return 1 where one cannot be written."""
    from controller.actuation.dispatcher_folder import DispatcherError, write
    from controller.policy.load import PolicyError, load_policy

    found: list[dict[str, Any]] = []
    failed = False
    try:
        policy = load_policy(args.policy, host=args.host)
        for one in write(policy.models, args.repository.absolute(), dry_run=args.dry_run):
            found.append({"model": one.model, "folder": str(one.folder), "made": one.made.value})
            if not args.json:
                print(_line(one, dry_run=args.dry_run))
    except (PolicyError, DispatcherError, OSError) as error:
        output.print_error(str(error))
        failed = True
    if args.json:
        output.print_json({"dry_run": args.dry_run, "ok": not failed, "dispatchers": found})
    elif not found and not failed:
        print(f"{args.policy}: no model has a dispatcher")
    return output.PROBLEM if failed else output.OK


def _line(one: Written, *, dry_run: bool) -> str:
    if one.made == "theirs":
        return f"{one.model}: {one.folder} was not written by this command and stays as it is"
    would = "would be " if dry_run and one.made != "unchanged" else ""
    return f"{one.model}: {one.folder} {would}{one.made}"
