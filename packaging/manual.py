"""The manual pages governor(1) and triton-governor-policy(5).

Owns their text around what the parsers and the schema say. In the macros of man(7), which every
man reads.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from command_line import Command

from controller import __version__
from controller.policy.describe import Key

_DATE = "2026-11-28"
"""Of the version: that of the day on which the page is made would change it for nothing."""
_FILES = (
    ("/etc/triton-governor/policy.yaml", "The policy of the service."),
    ("/etc/triton-governor/NAME.yaml", "That of the instance NAME, where there are several."),
    ("/run/triton-governor/governor.sock", "The admin socket of the service."),
    ("/run/triton-governor-NAME/governor.sock", "That of the instance NAME."),
    ("/var/lib/triton-governor/journal.sqlite3", "Its journal, and what was learned."),
    ("/var/lib/triton-governor-NAME/journal.sqlite3", "That of the instance NAME."),
    ("~/.local/state/triton-governor/journal.sqlite3", "That of a user's own governor."),
    ("~/.cache/triton-governor", "The embedded Triton and its sample models."),
)
_ENVIRONMENT = (
    ("TRITON_GOVERNOR_SOCKET", "The daemon's socket, for every command that asks it."),
    ("TRITON_GOVERNOR_INSTANCE", "Which service is asked, of several, where no socket is named."),
    ("TRITON_GOVERNOR_CACHE", "Where the embedded Triton is installed."),
    ("NO_COLOR", "If set, output has no colours."),
)


def governor(program: Command, commands: Sequence[Command]) -> str:
    """Return the page of the command, of section 1."""
    lines = [
        _title("governor", 1),
        ".SH NAME",
        r"governor \- " + _text(_lower_first(program.description).rstrip(".")),
        ".SH SYNOPSIS",
        r".B governor",
        r"[\fB\-\-version\fR] [\fB\-\-help\fR] \fICOMMAND\fR ...",
        ".SH DESCRIPTION",
        _text(program.description),
        "One daemon beside each Triton: it watches the load and keeps each model on",
        "the best of its variants that meets the objective, as the policy says",
        r"(\fBtriton\-governor\-policy\fR(5)).",
        "If the governor dies, Triton serves on, unchanged.",
        ".PP",
        r"\fBgovernor\fR \fICOMMAND\fR \fB\-\-help\fR tells more about each command.",
        ".SH COMMANDS",
    ]
    for command in commands:
        lines += [f".SS {_text(command.name)}", _usage(command.synopsis)]
        lines += [".PP", _text(command.description or _sentence(command.summary))]
        for argument in command.arguments:
            lines += [".TP", _emphasised(argument.spelling), _text(argument.meaning) or r"\&"]
        if command.epilog:
            lines += [".PP", ".nf", *map(_text, command.epilog.splitlines()), ".fi"]
    lines.append(".SH EXIT STATUS")
    for line in program.epilog.splitlines():
        if found := re.fullmatch(r"  (\d+)\s+(.*)", line):
            lines += [".TP", rf".B {found[1]}", _text(_sentence(found[2]))]
    lines.append(".SH ENVIRONMENT")
    lines += _list(_ENVIRONMENT)
    lines.append(".SH FILES")
    lines += _list(_FILES)
    lines += [".SH SEE ALSO", r".BR triton\-governor\-policy (5)"]
    return _page(lines)


def policy(keys: Sequence[Key], examples: Iterable[str]) -> str:
    """Return the page of a policy's keys, of section 5."""
    lines = [
        _title("triton-governor-policy", 5),
        ".SH NAME",
        r"triton\-governor\-policy \- what Triton Governor is to keep",
        ".SH DESCRIPTION",
        "A policy is a YAML file. Unknown keys are errors, and nothing is guessed.",
        "Durations, sizes and percentages have their unit written out, as in 60ms, 2GiB or 5%.",
        r"\fBgovernor policy check\fR says all that is wrong with one,",
        r"\fBgovernor policy explain\fR \fIKEY\fR what is below,",
        r"\fBgovernor policy schema\fR prints it for editors, and",
        r"\fBgovernor policy example\fR \fINAME\fR a policy to start from:",
        f"{_text(', '.join(examples))}.",
        ".PP",
        "An edit of the file is in force within a second; a bad one changes nothing.",
        ".SH KEYS",
        r"\fBNAME\fR stands for a name of the operator's choice.",
    ]
    for key in keys:
        facts = [key.values]
        facts += ["required"] if key.required else []
        facts += [f"default: {default_text(key)}"] if key.default is not None else []
        lines += [".TP", _emphasised(key.path), f"({_text('; '.join(facts))})", ".br"]
        lines.append(_text(key.meaning))
    lines += [
        ".SH EXAMPLES",
        ".nf",
        *map(_text, _EXAMPLE.splitlines()),
        ".fi",
        ".SH SEE ALSO",
        r".BR governor (1)",
    ]
    return _page(lines)


_EXAMPLE = """\
version: 1
triton:
  grpc: 127.0.0.1:8001
  metrics: http://127.0.0.1:8002/metrics
  traces: {listen: 127.0.0.1:4318}
models:
  assistant:
    objective: {latency: 80ms, percentile: 99}
    client_max_batch: 4
    variants:
      full:  {model: assistant_fp16, quality: 0.942}
      small: {model: assistant_small, quality: 0.884}
mode: advise
"""


def default_text(key: Key) -> str:
    """Return a key's default as it would be written."""
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)


def _page(lines: Iterable[str]) -> str:
    note = '.\\" Made by `make reference` from the program itself; edit that.'
    return "\n".join([note, *_wrapped(lines)]) + "\n"


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Break what man fills anyway: short lines are what its linter and a diff want."""
    as_it_is = False
    for line in lines:
        as_it_is = line == ".nf" or (as_it_is and line != ".fi")
        if as_it_is or line.startswith("."):
            yield line
            continue
        # A sentence begins a line: what fills knows by it how much space goes before.
        for sentence in re.split(r"(?<=[a-z)][.]) (?=[A-Z\\])", line):
            for part in textwrap.wrap(sentence, 78, break_on_hyphens=False, break_long_words=False):
                yield rf"\&{part}" if part.startswith((".", "'")) else part


def _title(name: str, section: int) -> str:
    # No justified lines and no hyphens of man's own: options and keys are copied from here.
    head = f'.TH {_text(name.upper())} {section} "{_DATE}" "triton\\-governor {__version__}"'
    return f"{head}\n.nh\n.ad l"


def _list(entries: Iterable[tuple[str, str]]) -> list[str]:
    return [line for name, what in entries for line in (".TP", f".B {_text(name)}", _text(what))]


def _usage(synopsis: str) -> str:
    return re.sub(r"\b([A-Z]{1,}[A-Z_]*)\b(?![a-z])", r"\\fI\1\\fR", _text(synopsis))


def _emphasised(spelling: str) -> str:
    """Return an option or a key in bold, with its value in italics."""
    word, gap, value = spelling.partition(" ")
    return rf"\fB{_text(word)}\fR" + (rf"{gap}\fI{_text(value)}\fR" if value else "")


def _text(text: str) -> str:
    """Escape a line for roff: hyphens that are typed, backslashes, dots where lines begin."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and not text.endswith(".") else text


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
