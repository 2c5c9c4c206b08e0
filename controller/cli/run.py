"""`governor run`: the daemon in the foreground.

Owns the command line, the signals and the log of the process. It must not hold the loop.
"""

from __future__ import annotations

import argparse

from controller.cli import output


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="govern a Triton in the foreground",
        description="Observes a Triton Inference Server, predicts latency, switches variants."
        " A policy that is edited is read again within a second, and on SIGHUP."
        " SIGTERM and Ctrl-C stop in order, twice stops at once."
        " Exit code 78: the policy is bad.",
    )
    parser.add_argument("--policy", required=True, metavar="FILE", help="what is wanted (YAML)")
    parser.add_argument(
        "--host", metavar="NAME", help="whose policy, where it has `hosts`; default: this machine's"
    )
    parser.add_argument("--socket", metavar="PATH", help="where to listen for operators")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="from which on (info); what was done, and by whom, is always logged",
    )
    parser.add_argument(
        "--log-format",
        default="text",
        choices=("text", "json"),
        help="text, or a JSON object a line; with its priority where journald reads it",
    )
    parser.add_argument(
        "--ablate",
        choices=("frozen", "shuffled"),
        help="for experiments: a predictor that learns nothing, or mixes its variants up",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the daemon until a signal ends it."""
    import asyncio
    import os
    from pathlib import Path

    from controller.interfaces.paths import default_socket
    from controller.policy.load import PolicyError, load_policy

    # Absolute: who asks the daemon for its policy is in another folder.
    policy_file = Path(args.policy).absolute()
    try:
        policy = load_policy(policy_file, host=args.host, environment=os.environ)
    except PolicyError as error:
        _tell(str(error))
        return output.BAD_POLICY
    from controller.daemon.log import start_log
    from controller.daemon.loop import Options
    from controller.daemon.process import serve
    from controller.interfaces.admin import AdminSocketError

    start_log(args.log_level, args.log_format)
    socket = Path(args.socket) if args.socket else default_socket()
    try:
        options = Options(policy_file, socket, ablation=args.ablate, host=args.host)
        asyncio.run(serve(policy, options))
    except AdminSocketError as error:
        _tell(str(error))
        return output.PROBLEM
    return output.OK


def _tell(problem: str) -> None:
    """Say why the daemon ends, as an error to journald too."""
    import logging
    import sys

    from controller.daemon.log import is_journald, prioritised

    if is_journald(sys.stderr):
        print(prioritised(problem, logging.ERROR), file=sys.stderr)
    else:
        output.print_error(problem)
