"""`governor policy`: check policies, show and compare what they mean, explain their keys.

Owns the wording of these answers. It must not decide what a valid policy is.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controller.cli import output

if TYPE_CHECKING:
    from controller.policy.load import Policy, Problem


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
    check.set_defaults(run=run_check)
    show = commands.add_parser(
        "show",
        help="show every effective value of a policy, defaults included",
        description="Write a policy out in full, defaults and units included, as a policy.",
    )
    show.add_argument("file", metavar="FILE", help="a policy; - is standard input")
    show.add_argument("--json", action="store_true", help="print it as JSON")
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
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema (draft 7), for editors",
        description="Print the JSON Schema (draft 7) of a policy, for editors.",
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


def run_check(args: argparse.Namespace) -> int:
    """Print all problems of all files; return whether there were any."""
    from controller.policy.load import PolicyError

    problems: list[Problem] = []
    warnings: list[Problem] = []
    for name in args.files:
        try:
            policy, found = _check(name)
            warnings += found
        except PolicyError as error:
            problems += error.problems
            if not args.json:
                print(error)
        else:
            if not args.json:
                shown = "<stdin>" if name == "-" else name
                for one in found:
                    print(f"{one} (warning)")
                print(f"{shown}: fine, {_summary(policy)}")
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


def run_show(args: argparse.Namespace) -> int:
    """Print the effective policy."""
    from controller.policy.load import PolicyError
    from controller.policy.render import policy_to_dict, policy_to_yaml

    try:
        policy = _load(args.file)
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
        found = changes(_load(args.before), _load(args.after))
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


def run_schema(_args: argparse.Namespace) -> int:
    """Print the JSON Schema."""
    from controller.policy.json_schema import schema_text

    print(schema_text(), end="")
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


def _load(name: str) -> Policy:
    from controller.policy.load import parse_raw

    return parse_raw(*_read(name))


def _check(name: str) -> tuple[Policy, list[Problem]]:
    """Return the policy and what is less safe in it than it looks."""
    from controller.policy.cautions import located
    from controller.policy.load import parse_raw

    raw, shown = _read(name)
    policy = parse_raw(raw, shown)
    return policy, located(policy, raw.decode("utf-8"), shown)


def _read(name: str) -> tuple[bytes, str]:
    from controller.policy.load import read_raw

    if name != "-":
        return read_raw(name), name
    from controller.policy.positions import MAX_BYTES

    return sys.stdin.buffer.read(MAX_BYTES + 1), "<stdin>"


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
