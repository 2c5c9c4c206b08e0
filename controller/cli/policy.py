"""`governor policy`: check policies, show and compare what they mean, explain their keys.

Owns the wording of these answers. It must not decide what a valid policy is.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.cli.arguments import duration
from controller.cli.journals import add_journal

if TYPE_CHECKING:
    from controller.policy.load import Policy, Problem
    from controller.policy.positions import Document


_HOST: Final = "whose policy, where it has `hosts`; default: this machine's"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `policy` and its subcommands."""
    parser = subparsers.add_parser(
        "policy",
        help="check a policy, show what it means, compare two, explain a key",
        description="Everything about policy files that needs no daemon.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="say all that is wrong with policy files",
        description="Say all that is wrong, one problem a line: file:line:column: path: problem. "
        "Exit code 1 if there is any. Lines that end with (warning) tell what is allowed and less "
        "safe than it looks; they do not count.",
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="a policy; - is standard input")
    check.add_argument("--json", action="store_true", help="print the problems as JSON")
    check.add_argument("--host", metavar="NAME", help=_HOST)
    check.set_defaults(run=run_check)
    show = commands.add_parser(
        "show",
        help="show every effective value of a policy, defaults included",
        description="Write a policy out in full, defaults and units included, as a policy.",
    )
    show.add_argument("file", metavar="FILE", help="a policy; - is standard input")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.add_argument("--host", metavar="NAME", help=_HOST)
    show.set_defaults(run=run_show)
    diff = commands.add_parser(
        "diff",
        help="show what differs between two policies in effect",
        description="Show every key whose effective value differs, defaults included. "
        "Exit code 1 if there is any.",
    )
    diff.add_argument("before", metavar="OLD", help="a policy; - is standard input")
    diff.add_argument("after", metavar="NEW", help="a policy; - is standard input")
    diff.add_argument("--json", action="store_true", help="print the differences as JSON")
    diff.add_argument("--host", metavar="NAME", help=_HOST)
    diff.set_defaults(run=run_diff)
    explain = commands.add_parser(
        "explain",
        help="say what a key means, and what may stand there",
        description="Say what a key of a policy means, and all that is under it.",
    )
    explain.add_argument(
        "key",
        nargs="?",
        metavar="KEY",
        help="such as objective.latency or models.qa.min_quality; omitted: every key",
    )
    explain.add_argument("--json", action="store_true", help="print it as JSON")
    explain.set_defaults(run=run_explain)
    _add_test(commands)
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema (draft 7), for editors",
        description="Print the JSON Schema (draft 7) of a policy, for editors.",
    )
    schema.add_argument(
        "--part", action="store_true", help="of a file that includes others or is included"
    )
    schema.set_defaults(run=run_schema)
    example = commands.add_parser(
        "example",
        help="print a policy to start from",
        description="Print one of the example policies that come with the governor; "
        "without a name, what there is.",
    )
    example.add_argument("name", nargs="?", metavar="NAME", help="such as example, or vision")
    example.set_defaults(run=run_example)


def _add_test(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    test = commands.add_parser(
        "test",
        help="try a policy on a simulated server before it goes live",
        description="Run every model of a policy on a simulated server, under the load and with "
        "the service times that a governor's journal has, or those of traces and ladders. "
        "Exit code 1 where an objective is missed or a model cannot be tested.",
        allow_abbrev=False,
    )
    test.add_argument("file", metavar="POLICY", help="the policy to try; - is standard input")
    test.add_argument("--against", metavar="POLICY", help="another one, such as that in force")
    recorded = test.add_argument_group("what a governor recorded (the usual)")
    add_journal(recorded, default="the policy's, or that of this machine's daemon")
    recorded.add_argument(
        "--since",
        type=duration,
        metavar="24h",
        help="how far back from its newest record; default: everything",
    )
    given = test.add_argument_group("or traces on ladders (docs/replay.md has the formats)")
    for name, what in (("trace", "CSV"), ("ladder", "YAML")):
        given.add_argument(
            f"--{name}",
            action="append",
            metavar=f"[MODEL=]{what}",
            help="of one model, or of all; may be repeated",
        )
    given.add_argument(
        "--peak",
        type=float,
        metavar="RPS",
        help="scale each trace: 99th percentile of its rate, in requests/s; default: as it is",
    )
    test.add_argument("--model", action="append", help="only this one; may be repeated")
    test.add_argument(
        "--busiest", type=duration, metavar="10m", help="only the stretch with the most work"
    )
    test.add_argument(
        "--schedule",
        action="append",
        metavar="NAME",
        help="put this schedule in force all the time; default: by the recorded time of day",
    )
    test.add_argument(
        "--require",
        action="append",
        metavar="[MODEL.]KEY>=NUMBER",
        help="more to demand: attainment (%%), effective_quality, mean_quality, p99 (ms), switches",
    )
    test.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    test.add_argument("--jobs", type=int, default=-1, metavar="N", help="default: all cores")
    test.add_argument("--json", action="store_true", help="print the numbers as JSON")
    test.add_argument("--host", metavar="NAME", help=_HOST)
    test.set_defaults(run=run_test)


def run_test(args: argparse.Namespace) -> int:
    """Try a policy on a simulated server."""
    from controller.cli.policy_test import run

    return run(args, functools.partial(_load, host=args.host))


def run_check(args: argparse.Namespace) -> int:
    """Print all problems of all files; return whether there were any."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for name in args.files:
        policy, found, hosts, cautioned = _checked(name, args.host)
        problems += found
        warnings += cautioned
        if args.json:
            continue
        for problem in found:
            print(problem)
        for one in cautioned:
            print(f"{one} (warning)")
        if policy is not None and not found:
            print(f"{_shown_name(name)}: fine, {_summary(policy)}{_for(hosts, args.host)}")
        elif advice := _advice(found, hosts, args.host):
            print(f"{_shown_name(name)}: {advice}", file=sys.stderr)
    if args.json:
        told = {
            "problems": list(map(_to_json, problems)),
            "warnings": list(map(_to_json, warnings)),
        }
        output.print_json({"ok": not problems, **told})
    elif problems:
        count = len(problems)
        print(f"{count} problem{'s' if count != 1 else ''}", file=sys.stderr)
    return output.PROBLEM if problems else output.OK


def _checked(
    name: str, host: str | None
) -> tuple[Policy | None, list[Problem], tuple[str, ...], list[Problem]]:
    """Return a file's policy, what is wrong with it, the entries of its `hosts`, and warnings."""
    from controller.policy.cautions import located
    from controller.policy.load import PolicyError, check_hosts

    policy: Policy | None = None
    problems: list[Problem] = []
    warnings: list[Problem] = []
    hosts: tuple[str, ...] = ()
    try:
        policy, document = _placed(name, host)
        warnings = located(policy, document)
    except PolicyError as error:
        problems = list(error.problems)
    if host is None and name != "-":
        try:
            hosts, more = check_hosts(name)
        except PolicyError:  # it cannot be read, as is said already
            more = []
        problems += [problem for problem in more if problem not in problems]
    return policy, problems, hosts, warnings


def _for(hosts: tuple[str, ...], host: str | None) -> str:
    if host is not None:
        return f", for host {host}"
    if not hosts:
        return ""
    return f", for this host; {len(hosts)} under hosts checked"


def _advice(problems: list[Problem], hosts: tuple[str, ...], host: str | None) -> str | None:
    """Return what may explain all problems at once."""
    if not all(problem.message.startswith("is missing") for problem in problems):
        return None
    advice = "where others include this file it is complete only there: check those"
    if hosts and host is None:
        return f"this is for this host, which hosts may not name (--host NAME); {advice}"
    return advice


def _shown_name(name: str) -> str:
    return "<stdin>" if name == "-" else name


def run_show(args: argparse.Namespace) -> int:
    """Print the effective policy."""
    from controller.policy.load import PolicyError
    from controller.policy.render import policy_to_dict, policy_to_yaml

    try:
        policy = _load(args.file, args.host)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return output.PROBLEM
    if args.json:
        output.print_json(policy_to_dict(policy))
    else:
        print(policy_to_yaml(policy), end="")
    return output.OK


def run_diff(args: argparse.Namespace) -> int:
    """Print what differs in effect; return whether anything does."""
    from controller.policy.compare import changes
    from controller.policy.load import PolicyError

    try:
        found = changes(_load(args.before, args.host), _load(args.after, args.host))
    except PolicyError as error:
        print(error, file=sys.stderr)
        return output.USAGE
    if args.json:
        output.print_json({"changes": [asdict(change) for change in found]})
    for change in () if args.json else found:
        print(f"{change.path}: {_shown(change.before)} -> {_shown(change.after)}")
    return output.PROBLEM if found else output.OK


def run_explain(args: argparse.Namespace) -> int:
    """Print what keys mean."""
    from controller.policy.describe import UnknownKeyError, find, keys

    try:
        found = keys() if args.key is None else find(args.key)
    except UnknownKeyError as error:
        print(f"{error}; `governor policy explain` lists them all", file=sys.stderr)
        return output.PROBLEM
    if args.json:
        output.print_json({"keys": [asdict(key) for key in found]})
    for key in () if args.json else found:
        default = "required" if key.required else f"default {_shown(key.default)}"
        told = key.values if key.values == "a section" else f"{key.values}; {default}"
        print(f"{key.path}  ({told})\n    {key.meaning}")
    return output.OK


def _shown(value: object) -> str:
    """Return a value on one line, as YAML's flow style."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def run_schema(args: argparse.Namespace) -> int:
    """Print the JSON Schema."""
    from controller.policy.json_schema import schema_text

    print(schema_text(part=args.part), end="")
    return output.OK


def run_example(args: argparse.Namespace) -> int:
    """Print an example, or the names of all."""
    from controller.policy.shipped import UnknownExampleError, example, examples, summary

    try:
        if args.name is not None:
            print(example(args.name), end="")
            return output.OK
        found = examples()
    except UnknownExampleError as error:
        output.print_error(str(error))
        return output.PROBLEM
    except OSError as error:
        output.print_error(f"the examples are missing: {error}", advice="install the wheel again")
        return output.PROBLEM
    width = max(map(len, found))
    for name, text in found.items():
        print(f"{name:<{width}}  {summary(text)}")
    return output.OK


def _load(name: str, host: str | None) -> Policy:
    return _placed(name, host)[0]


def _placed(name: str, host: str | None) -> tuple[Policy, Document]:
    from controller.policy.load import load_placed, parse_placed

    if name != "-":
        return load_placed(name, host=host)
    from controller.policy.positions import MAX_BYTES

    return parse_placed(sys.stdin.buffer.read(MAX_BYTES + 1), "<stdin>", host=host)


def _summary(policy: Policy) -> str:
    models = len(policy.models)
    variants = sum(len(model.variants) for model in policy.models)
    return (
        f"{models} model{'s' if models != 1 else ''} with "
        f"{variants} variant{'s' if variants != 1 else ''}, "
        f"a decision every {round(policy.tick_s * 1000, 1):g} ms, mode {policy.mode}"
    )


def _to_json(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.path,
        "message": problem.message,
        "suggestion": problem.suggestion,
    }
