"""A YAML document as plain data, with the line and column of every key and value.

Owns reading YAML from a stranger: bounded in size, depth and nodes, without anchors, aliases, tags
and duplicate keys, and without YAML 1.1's surprises (`on` and `12:30` are text here, every key is
text). It must not know what a policy is.

It works on the parser's events: the composer of PyYAML recurses, and its C twin overflows the
stack, before anybody could say that a document is nested too deeply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml
from yaml.reader import Reader

from controller.policy.problems import Path, Problem, format_path

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 16  # a policy needs six
MAX_NODES: Final = 50_000  # 200 models of 8 variants need 15,000

# The same events and marks from both; the C parser is ten times faster.
LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Data: TypeAlias = "dict[str, Data] | list[Data] | str | int | float | bool | None"

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?")
_CONSTANTS: Final[dict[str, bool | float | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text, counted from 1."""

    line: int
    column: int
    file: str = ""  # empty: the document's own


@dataclass(slots=True)
class Document:
    """What was read, where everything stands, and what was wrong on the way."""

    file: str
    data: Data = None
    complete: bool = False  # False: the text ended, or was given up, before its end
    values: dict[Path, Position] = field(default_factory=dict)
    keys: dict[Path, Position] = field(default_factory=dict)
    opaque: set[Path] = field(default_factory=set)  # values refused while reading
    problems: list[Problem] = field(default_factory=list)

    def problem(
        self, path: Path, message: str, suggestion: str | None = None, *, at_key: bool = False
    ) -> Problem:
        """Return a problem that points at a value, or at its key."""
        position = self.locate(path, at_key=at_key)
        file = position.file or self.file
        return Problem(file, position.line, position.column, format_path(path), message, suggestion)

    def locate(self, path: Path, *, at_key: bool = False) -> Position:
        """Return the position of a path or, where it is not in the text, of what encloses it."""
        for end in range(len(path), 0, -1):
            part = path[:end]
            missing = end < len(path)  # then its key says more than where its value starts
            first, second = (
                (self.keys, self.values) if at_key or missing else (self.values, self.keys)
            )
            position = first.get(part) or second.get(part)
            if position is not None:
                return position
        return Position(1, 1)

    def is_opaque(self, path: Path) -> bool:
        """Return whether the value was refused while reading, so that its type says nothing."""
        return any(path[:end] in self.opaque for end in range(len(path) + 1))


@dataclass(slots=True)
class _Frame:
    """A collection that is being read."""

    container: dict[str, Data] | list[Data]
    path: Path
    kept: bool  # False: under a duplicate key, read only to get past it
    key: str | None = None  # of a mapping: the key whose value comes next
    keep_value: bool = True


def read_yaml(text: str, file: str) -> Document:
    """Read one YAML document; never raises, all problems are in the document."""
    document = Document(file)
    text = text.removeprefix("\ufeff")
    if _refuse_text(text, document):
        return document
    reading = _Reading(document)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            if not reading.take(event):
                return document
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(error, text, file))
        return document
    if not reading.documents:
        document.problems.append(Problem(file, 1, 1, "", "the file is empty"))
        return document
    document.complete = True
    return document


class _Reading:
    """Builds a document from the parser's events."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.documents = 0
        self._stack: list[_Frame] = []
        self._nodes = 0

    def take(self, event: yaml.Event) -> bool:
        """Take one event; False: give the rest of the text up."""
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                return self._give_up(event, "a policy is one document: remove `---` and the rest")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            return self._take_node(event)
        return True

    def _take_node(self, event: yaml.NodeEvent) -> bool:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            return self._give_up(event, f"more than {MAX_NODES} keys and values")
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.container, dict) and frame.key is None:
            return self._take_key(frame, frame.container, event)
        return self._take_value(frame, event)

    def _take_key(self, frame: _Frame, mapping: dict[str, Data], event: yaml.NodeEvent) -> bool:
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor:
            return self._give_up(event, "a key must be plain text")
        key = frame.key = str(event.value)
        path = (*frame.path, key)
        frame.keep_value = frame.kept and key not in mapping
        if frame.keep_value:
            self.document.keys[path] = _position(event)
        elif frame.kept:
            first = self.document.keys[path]
            self._note(event, path, f"duplicate key, first used in line {first.line}")
        return True

    def _take_value(self, frame: _Frame | None, event: yaml.NodeEvent) -> bool:
        path, kept = self._place(frame)
        if kept:
            self.document.values[path] = _position(event)
        value: Data = None
        if isinstance(event, yaml.AliasEvent):
            self._note(event, path, f"alias `*{event.anchor}`: write the value out here")
            if kept:
                self.document.opaque.add(path)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            value = self._read_value(event, path)
        self._store(frame, value, kept=kept)
        if isinstance(value, (dict, list)):
            if len(self._stack) >= MAX_DEPTH:
                return self._give_up(event, f"nested deeper than {MAX_DEPTH} levels")
            self._stack.append(_Frame(value, path, kept))
        return True

    @staticmethod
    def _place(frame: _Frame | None) -> tuple[Path, bool]:
        if frame is None:
            return (), True
        if isinstance(frame.container, list):
            return (*frame.path, len(frame.container)), frame.kept
        return (*frame.path, frame.key or ""), frame.keep_value

    def _store(self, frame: _Frame | None, value: Data, *, kept: bool) -> None:
        if frame is None:
            self.document.data = value
        elif isinstance(frame.container, list):
            frame.container.append(value)
        else:
            if kept:
                frame.container[frame.key or ""] = value
            frame.key = None

    def _read_value(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, path: Path) -> Data:
        if event.anchor is not None:
            self._note(event, path, f"anchor `&{event.anchor}`: a policy has none, remove it")
        if event.tag is not None:
            self._note(event, path, f"tag `{event.tag}`: a policy has none, remove it")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0]
            return resolve_scalar(event.value) if plain else str(event.value)
        return {} if isinstance(event, yaml.MappingStartEvent) else []

    def _note(self, event: yaml.Event, path: Path, message: str) -> None:
        position = _position(event)
        self.document.problems.append(
            Problem(self.document.file, position.line, position.column, format_path(path), message)
        )

    def _give_up(self, event: yaml.Event, message: str) -> bool:
        path = self._stack[-1].path if self._stack else ()
        self._note(event, path, message)
        return False


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted scalar means, by the core schema of YAML 1.2 in decimal."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _refuse_text(text: str, document: Document) -> bool:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        message = f"larger than {MAX_BYTES // 1024} KiB, which no policy needs"
        document.problems.append(Problem(document.file, 1, 1, "", message))
        return True
    match = Reader.NON_PRINTABLE.search(text)
    if match is None:
        return False
    position = position_at(text, match.start())
    message = f"character U+{ord(match.group()):04X} is not allowed in YAML"
    document.problems.append(Problem(document.file, position.line, position.column, "", message))
    return True


def position_at(text: str, index: int) -> Position:
    """Return line and column of a character."""
    line_start = max(text.rfind("\n", 0, index), text.rfind("\r", 0, index)) + 1
    before = text[:line_start].replace("\r\n", "\n").replace("\r", "\n")
    return Position(before.count("\n") + 1, index - line_start + 1)


def _position(event: yaml.Event) -> Position:
    mark: Any = event.start_mark  # the parsers always set it
    return Position(mark.line + 1, mark.column + 1)


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return Problem(file, 1, 1, "", f"not YAML: {error}")
    said = (getattr(error, "context", None), getattr(error, "problem", None))
    message = "not YAML: " + ", ".join(part for part in said if part)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: mark.column + 1]:
        message += " (a tab cannot indent YAML: use spaces)"
    return Problem(file, mark.line + 1, mark.column + 1, "", message)
