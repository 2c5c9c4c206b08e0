"""`governor doctor`: what stands in the way here, and what to change.

Owns the command line and the text of the report. It must not check anything itself.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from controller.cli import output

if TYPE_CHECKING:
    from pathlib import Path

    from controller.policy.model import Policy

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the doctor."""
    summary = "Check Triton, its models and this machine; say what to change."
    parser = subparsers.add_parser("doctor", help=summary, description=summary, allow_abbrev=False)
    parser.add_argument(
        "--policy", metavar="FILE", help="the policy (default: that of the running governor)"
    )
    parser.add_argument(
        "--host", metavar="NAME", help="whose policy; default: that governor's, or this machine's"
    )
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket")
    parser.add_argument("--instance", metavar="NAME", help="the server's name, of several")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all checks; return 1 when one failed."""
    import asyncio

    from controller.cli.client import socket_of
    from controller.doctor.examine import examine
    from controller.doctor.finding import Finding, Level, fail, ok, report, warn

    socket = socket_of(args)
    status = _status(socket)
    policy: Policy | None = None
    findings: list[Finding] = []
    daemon = (status or {}).get("daemon") or {}
    named = args.policy or daemon.get("policy_file")
    host = args.host or (None if args.policy else daemon.get("host"))
    if named:
        policy, problems = _load(named, host)
        if problems:
            findings = [fail("policy", text, "see `governor policy check`") for text in problems]
        else:
            findings = [ok("policy", f"{named} is sound")]
    else:
        findings = [
            warn(
                "policy",
                "none was named: no model is checked, and Triton is looked for at its usual ports",
                "governor doctor --policy FILE",
            )
        ]
    if policy is not None or not any(finding.level is Level.FAIL for finding in findings):
        findings += asyncio.run(
            examine(
                policy,
                socket,
                governor_runs=status is not None,
                fresh_age_s=_fresh_age_s(status, policy),
            )
        )
    from controller.doctor.steps import next_steps

    result = report(findings)
    result["next"] = next_steps(policy, _for_host(named, host), status, failed=not result["ok"])
    if args.json:
        output.print_json(result)
    else:
        print(_text(result))
    return output.OK if result["ok"] else output.PROBLEM


def _for_host(named: str | None, host: str | None) -> str | None:
    return named if named is None or host is None else f"{named} --host {host}"


def _status(socket: Path) -> dict[str, Any] | None:
    from controller.cli.client import DaemonDownError, RefusedError, ask

    try:
        return ask(socket, "GET", "/v1/status")
    except (DaemonDownError, RefusedError):
        return None


def _fresh_age_s(status: dict[str, Any] | None, policy: Policy | None) -> dict[str, float]:
    """Return how long ago the daemon found each variant fresh, if it governs the same server."""
    triton = (status or {}).get("triton") or {}
    if policy is None or triton.get("grpc") != policy.triton.grpc:
        return {}
    found = triton.get("variants") or {}
    ages = {name: variant.get("fresh_age_s") for name, variant in found.items()}
    return {name: float(age_s) for name, age_s in ages.items() if age_s is not None}


def _load(name: str, host: str | None) -> tuple[Policy | None, list[str]]:
    from controller.policy.load import PolicyError, load_policy

    try:
        return load_policy(name, host=host), []
    except PolicyError as error:
        return None, str(error).splitlines()


def _text(result: dict[str, Any]) -> str:
    import sys
    import textwrap

    from controller.cli.client import paper_of_stdout
    from controller.cli.table import clean

    paper = paper_of_stdout(sys.stdout.isatty())
    styles = {"ok": "good", "warn": "warn", "fail": "bad"}
    indent = " " * 6
    lines = []
    for check in result["checks"]:
        label = paper.ink(f"{check['level']:<4}", styles[check["level"]])
        text = textwrap.fill(
            f"{clean(check['name'])}: {clean(check['message'])}",
            paper.width - len(indent),
            subsequent_indent=indent,
        )
        lines.append(f"{label}  {text}")
        if check["advice"]:
            lines.append(
                textwrap.fill(
                    clean(check["advice"]),
                    paper.width,
                    initial_indent=f"{indent}-> ",
                    subsequent_indent=f"{indent}   ",
                )
            )
    counts = dict.fromkeys(styles, 0)
    for check in result["checks"]:
        counts[check["level"]] += 1
    lines.append(f"\n{counts['ok']} ok, {counts['warn']} to improve, {counts['fail']} to mend")
    if result["next"]:
        lines.append("\nnext:")
    for number, step in enumerate(result["next"], start=1):
        head = f"  {number}. "
        lines += textwrap.wrap(
            clean(step), paper.width, initial_indent=head, subsequent_indent=" " * len(head)
        )
    return "\n".join(lines)
