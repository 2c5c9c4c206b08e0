"""The command line as data, from the parsers of `governor` themselves.

Owns the walk over argparse's parsers, and the spelling of a command and its arguments, which is
the same whatever Python runs it (argparse's own differs between versions and with the terminal).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from controller.cli.main import build_parser


@dataclass(frozen=True, slots=True)
class Argument:
    """An option or a positional argument."""

    spelling: str  # such as `--for TIME` or `MODEL`
    usage: str  # as it stands in a synopsis, in brackets where it may be left out
    meaning: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that can be run."""

    name: str  # such as `governor policy check`
    summary: str  # a line, "" where the parser has none
    description: str
    epilog: str
    arguments: tuple[Argument, ...]

    @property
    def synopsis(self) -> str:
        """Return how it is called."""
        return " ".join([self.name, *(argument.usage for argument in self.arguments)])


def program() -> Command:
    """Return the command without any subcommand: its description and what holds for all."""
    parser = build_parser()
    return _command(parser, parser.prog, "")


def commands() -> tuple[Command, ...]:
    """Return every command that can be run, in the order of --help."""
    parser = build_parser()
    return tuple(_walk(parser, parser.prog, ""))


def _walk(parser: argparse.ArgumentParser, name: str, summary: str) -> Iterator[Command]:
    groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not groups:
        yield _command(parser, name, summary)
    for group in groups:
        for told in group._choices_actions:
            child = group.choices[told.dest]
            yield from _walk(child, f"{name} {told.dest}", told.help or "")


def _command(parser: argparse.ArgumentParser, name: str, summary: str) -> Command:
    shown = [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not isinstance(action, (argparse._SubParsersAction, argparse._HelpAction))
    ]
    # Options first, as in the usage of argparse: what is named last is what is acted on.
    shown.sort(key=lambda action: not action.option_strings)
    formatter = parser._get_formatter()
    arguments = tuple(
        Argument(
            ", ".join(_with_value(action, word) for word in action.option_strings)
            or _value(action),
            _usage(action),
            formatter._expand_help(action) if action.help else "",
        )
        for action in shown
    )
    return Command(name, summary, parser.description or "", parser.epilog or "", arguments)


def _usage(action: argparse.Action) -> str:
    if action.option_strings:
        text = _with_value(action, action.option_strings[-1])
        return text if action.required else f"[{text}]"
    value = _value(action)
    return {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} [{value} ...]"}.get(
        str(action.nargs), value
    )


def _with_value(action: argparse.Action, word: str) -> str:
    if action.nargs == 0:
        return word
    return f"{word} [{_value(action)}]" if action.nargs == "?" else f"{word} {_value(action)}"


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper()
