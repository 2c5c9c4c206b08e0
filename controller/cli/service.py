"""`governor install-service` and `uninstall-service`: the governor in systemd's hands.

Owns the command lines, what has to hold before anything is touched, and the text. What is done is
`controller.service`'s.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from controller.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller.policy.compose import Seen
    from controller.policy.model import Policy
    from controller.service.layout import Layout
    from controller.service.policies import Files
    from controller.service.steps import Step

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


class RefusedError(Exception):
    """Nothing was touched; the text says why, and the advice what to do."""

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.advice = advice


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add install-service and uninstall-service."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--instance", metavar="NAME", help="the server's name, where there are several here"
    )
    common.add_argument(
        "--prefix", default="/", metavar="DIR", help="an image's root instead of this machine's"
    )
    common.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )
    parser = subparsers.add_parser(
        "install-service",
        help="put the governor into systemd's hands",
        description="Puts the unit, its user, its folders and the policy in place and enables the"
        " service. Can be run again, after an upgrade too: what is as it should be stays, and a"
        " policy that is there is never overwritten.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="copied to /etc/triton-governor with all that it includes, if there is none yet",
    )
    parser.add_argument(
        "--host",
        metavar="NAME",
        help="whose policy is checked, where it has `hosts`, for an image; default: this machine's",
    )
    parser.add_argument("--start", action="store_true", help="start it at once")
    parser.set_defaults(run=_install)
    parser = subparsers.add_parser(
        "uninstall-service",
        help="take it out of systemd's hands",
        description="Stops the service and removes what install-service put in place. The policy"
        " and the journal stay.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--purge", action="store_true", help="remove policy, journal, drop-ins and user too"
    )
    parser.set_defaults(run=_uninstall)


def _install(args: argparse.Namespace) -> int:
    from controller.service.install import install, notes
    from controller.service.packaged import PackagedError, check_install
    from controller.service.program import ProgramError, check_program, running_program

    try:
        layout = _layout(args)
        check_install(layout)
        program = running_program()
        check_program(program, layout.root)
        policy, files, said = _policy(args, layout)
    except (PackagedError, ProgramError, RefusedError) as error:
        output.print_error(str(error), advice=error.advice)
        return output.PROBLEM
    for note in (*said, *notes(layout, policy)):
        print(f"note      {note}")
    code = _carry_out(install(layout, program, files, start=args.start), dry=args.dry_run)
    if code == output.OK and not args.start and not args.dry_run and layout.live:
        print(f"next      systemctl start {layout.unit}; then `governor status`")
    return code


def _uninstall(args: argparse.Namespace) -> int:
    from controller.service.packaged import PackagedError, check_uninstall
    from controller.service.uninstall import left, uninstall

    try:
        layout = _layout(args)
        check_uninstall(layout, purge=args.purge)
    except (PackagedError, RefusedError) as error:
        output.print_error(str(error), advice=error.advice)
        return output.PROBLEM
    code = _carry_out(uninstall(layout, purge=args.purge), dry=args.dry_run)
    if code == output.OK:
        for thing in left(layout, purge=args.purge):
            print(f"stays     {thing}")
    return code


def _layout(args: argparse.Namespace) -> Layout:
    """Return where everything goes.

    Raises:
        RefusedError: nothing can be done here.
        UsageError: no instance can have such a name.
    """
    import os
    import shlex
    import sys
    from pathlib import Path

    from controller.interfaces.paths import service_name
    from controller.service.layout import Layout

    try:
        service_name(args.instance)
    except ValueError as error:
        raise output.UsageError(str(error)) from None
    root = Path(args.prefix).resolve()
    if not root.is_dir():
        raise RefusedError(f"there is no folder {root}")
    layout = Layout(root, args.instance)
    if "start" in args and args.start and not layout.live:
        raise RefusedError("--start is for this machine, not for an image")
    if layout.live and not Path("/run/systemd/system").is_dir():
        raise RefusedError(
            "systemd does not run here, so that there is nobody to give the service to",
            "give `governor run --policy FILE` to whatever runs services here (docs/service.md)",
        )
    if os.geteuid() != 0 and not args.dry_run:
        program = Path(sys.prefix) / "bin" / "governor"
        words = [str(program if program.is_file() else sys.argv[0]), *sys.argv[1:]]
        raise RefusedError(
            "this writes below /etc and needs root", f"run: sudo {shlex.join(words)}"
        )
    return layout


def _policy(args: argparse.Namespace, layout: Layout) -> tuple[Policy, Files, list[str]]:
    """Return the policy that will hold, its files and what is to be told of them."""
    from pathlib import Path

    from controller.policy.load import PolicyError, load_policy, parse_raw
    from controller.service.policies import PlaceError, outside, placed, there

    seen: Seen = {}
    try:
        given = None if args.policy is None else Path(args.policy).read_bytes()
        if layout.policy.exists():
            policy = load_policy(layout.policy, host=args.host, seen=seen)
            said = list(outside(layout, seen))
            if given is not None and given != layout.policy.read_bytes():
                said.append(
                    f"{layout.policy} is there, differs from {args.policy} and stays; to take that"
                    f" one: cp {args.policy} {layout.policy}"
                )
            return policy, there(layout, seen), said
        if given is not None and not Path(args.policy).is_file():  # a pipe: no folder, no includes
            return parse_raw(given, args.policy, host=args.host), {layout.policy: given}, []
        if given is not None:
            policy = load_policy(args.policy, host=args.host, seen=seen)
            return policy, placed(layout, Path(args.policy), seen), []
    except PlaceError as error:
        raise RefusedError(f"{args.policy} cannot be copied: {error}") from None
    except PolicyError as error:
        raise RefusedError(f"the policy is bad, so nothing was done\n{error}") from None
    except OSError as error:
        raise RefusedError(f"{error.filename}: cannot be read: {error.strerror}") from None
    raise RefusedError(
        f"there is no policy {layout.policy} yet",
        "name the one to put there: --policy FILE; policies/example.yaml has every setting",
    )


def _carry_out(steps: Sequence[Step], *, dry: bool) -> int:
    from controller.service.steps import StepError, carry_out

    try:
        for line in carry_out(steps, dry=dry):
            print(line, flush=True)
    except StepError as error:
        output.print_error(str(error), advice="mend that and run the same again")
        return output.PROBLEM
    return output.OK
