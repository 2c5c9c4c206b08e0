"""What is made from the program itself: reference pages, manual pages, completion scripts.

    python packaging/reference.py           write them (`make reference`)
    python packaging/reference.py --check   say which are out of date

Owns which file holds what, and the pages in Markdown. It must not say what the parsers and the
schema do not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
import manual
from command_line import Command

from controller.cli import completion
from controller.policy import describe, shipped
from controller.policy.describe import Key

ROOT = Path(__file__).resolve().parents[1]
_MADE = "<!-- Made by `make reference` from the program itself; edit that. -->\n"


def documents() -> dict[str, str]:
    """Return the text of each file, by its path from the top of the repository."""
    program, commands, keys = command_line.program(), command_line.commands(), describe.keys()
    return {
        "docs/reference/cli.md": cli_page(program, commands),
        "docs/reference/policy.md": policy_page(keys),
        "packaging/man/governor.1": manual.governor(program, commands),
        "packaging/man/triton-governor-policy.5": manual.policy(keys, shipped.examples()),
        "packaging/completions/governor.bash": f"{completion.script('bash')}\n",
        "packaging/completions/_governor": f"{completion.script('zsh')}\n",
        "packaging/completions/governor.fish": f"{completion.script('fish')}\n",
    }


def stale() -> list[str]:
    """Return which of the files are not what they would be made to be."""
    return [
        name
        for name, text in documents().items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != text
    ]


def cli_page(program: Command, commands: Sequence[Command]) -> str:
    """Return the reference of the command line."""
    parts = [
        "# The command line\n",
        _MADE,
        (
            f"{program.description}\n\n`governor COMMAND --help` says the same in a terminal, and "
            f"`man governor` where the manual pages are installed.\n"
        ),
        "| command | what it does |\n| --- | --- |\n"
        + "\n".join(
            f"| [`{one.name}`](#{one.name.replace(' ', '-')}) | "
            f"{_cell(one.summary or one.description)} |"
            for one in commands
        )
        + "\n",
    ]
    for one in commands:
        parts.append(f"## {one.name}\n")
        parts.append(f"```\n{one.synopsis}\n```\n")
        if one.description or one.summary:
            parts.append(f"{_markdown(one.description or one.summary)}\n")
        if one.arguments:
            rows = (f"| `{_cell(a.spelling)}` | {_cell(a.meaning)} |" for a in one.arguments)
            parts.append("| | |\n| --- | --- |\n" + "\n".join(rows) + "\n")
        if one.epilog:
            parts.append(f"```\n{one.epilog}\n```\n")
    parts.append(f"## Exit codes\n\n```\n{program.epilog.partition(chr(10) * 2)[0]}\n```\n")
    return "\n".join(parts)


def policy_page(keys: Sequence[Key]) -> str:
    """Return the reference of a policy's keys: one table for each section at the top."""
    parts = [
        "# The keys of a policy\n",
        _MADE,
        (
            "A policy is a YAML file; unknown keys are errors. Durations, sizes and percentages "
            "have their unit written out (`60ms`, `2GiB`, `5%`). `NAME` stands for a name of your "
            "choice. `governor policy explain KEY` says the same in a terminal, `governor policy "
            "schema` for editors; `governor policy example` prints policies to start from.\n"
        ),
    ]
    for top in [key for key in keys if "." not in key.path]:
        under = [key for key in keys if key.path.startswith(f"{top.path}.")]
        parts.append(f"## {top.path}\n")
        if not under:
            parts.append(_table([top]))
            continue
        parts.append(f"{_markdown(top.meaning)}{' Required.' if top.required else ''}\n")
        parts.append(_table(under))
    return "\n".join(parts)


def _table(keys: Sequence[Key]) -> str:
    rows = []
    for key in keys:
        if key.required:
            default = "required"
        else:
            default = "-" if key.default is None else f"`{_cell(manual.default_text(key))}`"
        rows.append(f"| `{key.path}` | {_cell(key.values)} | {default} | {_cell(key.meaning)} |")
    head = "| key | what may stand there | default | what it means |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|").replace("\n", " ")


def _markdown(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def main() -> int:
    """Write the files, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is stale")
    found = stale()
    if parser.parse_args().check:
        for name in found:
            print(f"{name} is out of date: run `make reference`")
        return 1 if found else 0
    made = documents()
    for name in found:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(made[name], encoding="utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
