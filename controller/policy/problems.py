"""What is wrong with a policy, and where.

Owns the one-line spelling of a problem. It must not find problems: reading, schema and checks do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]  # keys and list indices from the root of the document

_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct. Line and column count from 1; line 0: the file as a whole."""

    file: str
    line: int
    column: int
    path: str  # `models.digits.objective`; empty: the document
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        """Return `file:line:column: path: what is wrong (did you mean ...?)`, one line."""
        where = printable(self.file)
        if self.line > 0:
            where = f"{where}:{self.line}:{self.column}"
        path = f"{self.path}: " if self.path else ""
        hint = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        return f"{where}: {path}{printable(self.message)}{hint}"


class PolicyError(ValueError):
    """A policy that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Return one line for each problem."""
        return "\n".join(str(problem) for problem in self.problems)


def format_path(path: Path) -> str:
    """Return a path as operators write it; a key that is no plain word is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _SIMPLE_KEY.fullmatch(part) else quoted(part)
            text += f".{key}" if text else key
    return text


def quoted(value: object) -> str:
    """Return a value of the operator's, quoted, escaped and shortened for a message."""
    text = str(value)
    return repr(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "...")


def printable(text: str) -> str:
    """Return the text with everything that is not printable escaped, so that it stays one line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
