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
        "--log-level", default="info", choices=("debug", "info", "warning", "error")
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
    from pathlib import Path

    from controller.interfaces.paths import default_socket
    from controller.policy.load import PolicyError, load_policy

    policy_file = Path(args.policy)
    try:
        policy = load_policy(policy_file, host=args.host)
    except PolicyError as error:
        output.print_error(str(error))
        return output.BAD_POLICY
    except OSError as error:
        output.print_error(f"{policy_file}: cannot be read: {error.strerror}")
        return output.BAD_POLICY
    from controller.daemon.loop import Options
    from controller.daemon.process import serve, start_log
    from controller.interfaces.admin import AdminSocketError

    start_log(args.log_level)
    socket = Path(args.socket) if args.socket else default_socket()
    try:
        options = Options(policy_file, socket, ablation=args.ablate, host=args.host)
        asyncio.run(serve(policy, options))
    except AdminSocketError as error:
        output.print_error(str(error))
        return output.PROBLEM
    return output.OK
