"""`governor profiles`: the same weights under several largest batches, as Triton models on disk.

Owns the command line and what is printed. It must not know how a folder is made.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controller.cli import output
from controller.cli.arguments import into_repository

if TYPE_CHECKING:
    from controller.actuation.profiles import Profile


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `profiles` and its subcommand."""
    parser = subparsers.add_parser(
        "profiles",
        help="put a policy's batch profiles into the model repository",
        description="Batch profiles: the same weights under several largest batches.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    make = commands.add_parser(
        "materialise",
        help="make a folder of links for each profile of a policy",
        description="Makes, for each profile of a policy, a folder in the model repository: links "
        "to the variant's files, and its config.pbtxt with the profile's max_batch_size. What is "
        "right already stays; a folder that this command did not make is never touched. Triton "
        "loads them when the governor asks for them.",
        allow_abbrev=False,
    )
    into_repository(make)
    make.set_defaults(run=run_materialise)


def run_materialise(args: argparse.Namespace) -> int:
    """Make the folders; return 1 where one cannot be made."""
    from controller.actuation.profiles import ProfileError, materialise
    from controller.policy.load import PolicyError, load_policy

    found: list[dict[str, Any]] = []
    failed = False
    try:
        policy = load_policy(args.policy, host=args.host)
        # Relative, links between two folders would depend on where the command was started.
        repository = args.repository.absolute()
        for one in materialise(policy.models, repository, dry_run=args.dry_run):
            found.append({**asdict(one), "folder": str(one.folder)})
            if not args.json:
                print(_line(one, dry_run=args.dry_run))
    except (PolicyError, ProfileError, OSError) as error:
        output.print_error(str(error))
        failed = True
    if args.json:
        output.print_json({"dry_run": args.dry_run, "ok": not failed, "profiles": found})
    elif not found and not failed:
        print(f"{args.policy}: no variant has profiles")
    return output.PROBLEM if failed else output.OK


def _line(one: Profile, *, dry_run: bool) -> str:
    if one.made == "theirs":
        return f"{one.name}: {one.folder} was not made by this command and stays as it is"
    would = "would be " if dry_run and one.made != "unchanged" else ""
    return f"{one.name}: {one.folder} {would}{one.made} (max_batch_size {one.max_batch})"
