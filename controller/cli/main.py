"""The `governor` command: finds the subcommand asked for, runs it, returns its exit code.

Owns the list of subcommands, the exit codes and what happens on Ctrl-C and on a closed pipe. It
must not import a subcommand that nobody asked for: a shell waits for every import.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from controller import __version__
from controller.cli import output

COMMANDS: Final[Mapping[str, str]] = {  # in the order of --help
    "run": "controller.cli.run",
    "status": "controller.cli.client",
    "top": "controller.cli.top.command",
    "explain": "controller.cli.client",
    "history": "controller.cli.client",
    "served": "controller.cli.served",
    "advice": "controller.cli.advice",
    "report": "controller.cli.report",
    "pin": "controller.cli.client",
    "unpin": "controller.cli.client",
    "pause": "controller.cli.client",
    "resume": "controller.cli.client",
    "release": "controller.cli.release",
    "adopt": "controller.cli.release",
    "alias": "controller.cli.release",
    "policy": "controller.cli.policy",
    "profiles": "controller.cli.profiles",
    "dispatcher": "controller.cli.dispatcher",
    "replay": "controller.cli.replay",
    "doctor": "controller.cli.doctor",
    "install-service": "controller.cli.service",
    "uninstall-service": "controller.cli.service",
    "quality": "controller.cli.quality",
    "triton": "controller.cli.triton",
    "demo": "controller.cli.demo",
    "completion": "controller.cli.completion",
}

EPILOG: Final = """\
exit codes:
  0    fine
  1    the answer is no, or a problem was found
  2    the command line is wrong
  3    the daemon does not answer
  78   `run`: the policy is bad; mend the file
  130  interrupted (Ctrl-C)
  141  whoever read the output went away

`governor COMMAND --help` tells more about each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a C locale must not end in a traceback
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail again when Python closes stdout.
        _discard_stdout()
        return output.READER_GONE
    except KeyboardInterrupt:
        return output.INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line: for completion and the reference."""
    return _build_parser(COMMANDS.values())


def _run(arguments: Sequence[str]) -> int:
    asked = _first_word(arguments)
    known = asked in COMMANDS
    parser = _build_parser([COMMANDS[asked]] if asked is not None and known else COMMANDS.values())
    if asked is not None and not known:
        near = difflib.get_close_matches(asked, COMMANDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ", see governor --help"
        output.print_error(f"there is no command {asked!r}{hint}")
        return output.USAGE
    try:
        args = parser.parse_args(arguments)
    except SystemExit as end:  # argparse's way to end: --help, --version, a usage error
        return end.code if isinstance(end.code, int) else output.USAGE
    if "run" not in args:  # no command at all
        parser.print_help(sys.stderr)
        return output.USAGE
    try:
        code: int = args.run(args)
    except output.UsageError as error:
        output.print_error(str(error))
        return output.USAGE
    return code


def _build_parser(modules: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="governor",
        description="Keeps a Triton Inference Server on the best operating point "
        "that still meets the latency objective.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in dict.fromkeys(modules):
        module = importlib.import_module(name)
        register = getattr(module, "add_parsers", None) or module.add_parser
        register(subparsers)
    return parser


def _first_word(arguments: Sequence[str]) -> str | None:
    # The top level has only options without a value, so the first other word is the command.
    return next((word for word in arguments if not word.startswith("-")), None)


def _discard_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real stream: nothing is flushed at exit
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


if __name__ == "__main__":
    sys.exit(main())
