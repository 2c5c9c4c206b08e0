"""From a policy's text to the frozen policy, or to everything that is wrong with it.

Owns the order of the steps and the wording of pydantic's errors. What values may be is the
schema's; where they stand is `controller.policy.positions`'.
"""

from __future__ import annotations

import difflib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controller.policy.checks import check_credentials, cross_check
from controller.policy.compose import Composed, HostPart, Seen, compose, mark_of, problem_in
from controller.policy.model import Policy
from controller.policy.positions import MAX_BYTES, Document, position_at
from controller.policy.problems import (
    Path,
    PolicyError,
    Problem,
    format_path,
    printable,
    quoted,
)
from controller.policy.schedules import left_without
from controller.policy.schema import PolicySchema, section_at, to_policy
from controller.policy.sections import Section

__all__ = [
    "Policy",
    "PolicyError",
    "Problem",
    "check_hosts",
    "load_policy",
    "parse_policy",
    "parse_raw",
]

MAX_PROBLEMS: Final = 500  # more than anybody reads; bounds the time a hostile file takes
_LONGEST_KEY: Final = 64  # to look for a similar one

# Where pydantic's own sentence would speak of Python.
_EXPECTED: Final = {
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of names to values",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "finite_number": "a finite number",
}
_LIMITS: Final = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_MISSING: Final = "is missing"
_RATIOS: Final = ("quality", "min_quality")
_BOOLEANS: Final = {"yes": "true", "on": "true", "no": "false", "off": "false"}


Environment = Mapping[str, str] | None  # of a process; None: not known


def load_policy(
    path: str | os.PathLike[str],
    *,
    host: str | None = None,
    seen: Seen | None = None,
    environment: Environment = None,
) -> Policy:
    """Read a policy file, and all that it includes.

    Args:
        path: of the file.
        host: whose policy it is; None: this machine's.
        seen: takes note of every file that was looked for, also of a policy that is refused.
        environment: of the process that will need the credentials which the policy names, so that
            one that it was not given is a problem; None: somebody else will need them.

    Raises:
        PolicyError: with all problems, an unreadable file included.
    """
    return _policy(_read(path, seen), host, environment)[0]


def load_placed(
    path: str | os.PathLike[str], *, host: str | None = None
) -> tuple[Policy, Document]:
    """Return a file's policy, and where everything of it stands. Raises PolicyError."""
    return _policy(_read(path, None), host)


def parse_raw(
    raw: bytes, filename: str, *, host: str | None = None, environment: Environment = None
) -> Policy:
    """Return the policy that bytes say. Raises PolicyError; a byte over the limit is enough."""
    return parse_policy(_text(raw, filename), filename, host=host, environment=environment)


def parse_placed(raw: bytes, filename: str, *, host: str | None = None) -> tuple[Policy, Document]:
    """Return the policy that bytes say, and where everything of it stands. Raises PolicyError."""
    return _policy(compose(_text(raw, filename), filename, folder=None), host)


def parse_policy(
    text: str, filename: str, *, host: str | None = None, environment: Environment = None
) -> Policy:
    """Return the policy that a text says, which is in no folder and so includes nothing.

    Raises PolicyError with all problems and positions.
    """
    return _policy(compose(text, filename, folder=None), host, environment)[0]


def check_hosts(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], list[Problem]]:
    """Return a file's entries for hosts, this machine's or not, and what is wrong with them.

    Entries that name a host are checked as that host's policy. Of a pattern only what is wrong by
    itself is told: another one may add what it lacks. Raises PolicyError: it is not to be read.
    """
    composed = _read(path, None)
    found: dict[Problem, None] = {}
    for part in composed.parts:
        for problem in _problems_of(composed, part):
            found.setdefault(problem)
    patterns = tuple(dict.fromkeys(part.pattern for part in composed.parts))
    return patterns, _in_order(list(found), composed.files)


def _problems_of(composed: Composed, part: HostPart) -> Iterator[Problem]:
    if part.is_name:
        yield from _validate(composed.of(part.pattern))[1]
        return
    for problem in _validate(composed.of_part(part))[1]:
        if problem_in(problem, part) and not problem.message.startswith(_MISSING):
            yield problem


def _read(path: str | os.PathLike[str], seen: Seen | None) -> Composed:
    name = os.fspath(path)
    seen = {} if seen is None else seen
    try:
        seen[name] = None
        with open(name, "rb") as stream:  # noqa: PTH123 - a name as given, for the messages
            seen[name] = mark_of(os.fstat(stream.fileno()))
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PolicyError([Problem(name, 0, 0, "", f"cannot be read: {reason}")]) from error
    return compose(_text(raw, name), name, folder=str(pathlib.Path(name).parent), seen=seen)


def _text(raw: bytes, filename: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(raw) <= MAX_BYTES:  # else the cut may have split a character
            raise PolicyError([_encoding_problem(raw, error, filename)]) from error
        return raw.decode("utf-8", "replace")


def _policy(
    composed: Composed, host: str | None, environment: Environment = None
) -> tuple[Policy, Document]:
    name = os.uname().nodename if host is None else host
    document = composed.of(name)
    policy, problems = _validate(document, environment)
    # A file that is included twice has its problems twice.
    problems = list(dict.fromkeys([*composed.document.problems, *problems]))
    if policy is None or problems:
        raise PolicyError(_in_order(problems, composed.files))
    return replace(policy, sha256=composed.sha256(name)), document


def _validate(
    document: Document, environment: Environment = None
) -> tuple[Policy | None, list[Problem]]:
    """Return the policy that a document says, and what is wrong with it."""
    problems: list[Problem] = []
    schema: PolicySchema | None = None
    if document.complete:
        try:
            schema = PolicySchema.model_validate(document.data)
        except ValidationError as error:
            problems += _describe(document, error)
        problems += [
            document.problem(finding.path, finding.message, at_key=finding.at_key)
            for finding in chain(
                cross_check(document.data),
                () if environment is None else check_credentials(document.data, environment),
            )
        ]
    if schema is None or problems:
        return None, problems
    policy = _placed(to_policy(schema, sha256=""), document)
    problems = [
        document.problem(("schedules", schedule, "models", model), message, at_key=True)
        for schedule, model, message in left_without(policy)
    ]
    return policy, problems


def _placed(policy: Policy, document: Document) -> Policy:
    """Return the policy that knows where it names the files of TLS."""
    triton, mqtt = policy.triton, policy.mqtt
    tls, page = triton.tls, triton.metrics_tls
    if tls is not None:
        tls = replace(tls, places=_places(document, ("triton", "tls"), ""))
    if page is not None:
        page = replace(page, places=_places(document, ("triton", "metrics_tls"), ""))
    if mqtt is not None:
        mqtt = replace(mqtt, places=_places(document, ("mqtt",), "tls_"))
    return replace(policy, triton=replace(triton, tls=tls, metrics_tls=page), mqtt=mqtt)


def _places(document: Document, path: Path, prefix: str) -> tuple[tuple[str, str], ...]:
    found = []
    for key in ("ca_file", "cert_file", "key_file", "server_name"):
        place = document.locate((*path, f"{prefix}{key}"))
        file = printable(place.file or document.file)
        found.append((key, f"{file}:{place.line}:{place.column}"))
    return tuple(found)


def _in_order(problems: list[Problem], files: Sequence[str]) -> list[Problem]:
    order = {file: at for at, file in reversed(list(enumerate(files)))}
    ordered = sorted(problems, key=lambda p: (order.get(p.file, 0), p.line, p.column))
    rest = len(ordered) - MAX_PROBLEMS
    if rest > 0:
        last = ordered[MAX_PROBLEMS - 1]
        more = Problem(
            last.file, last.line, last.column, "", f"and {rest} more problems after this"
        )
        ordered = [*ordered[:MAX_PROBLEMS], more]
    return ordered


def _encoding_problem(raw: bytes, error: UnicodeDecodeError, name: str) -> Problem:
    before = raw[: error.start].decode("utf-8")
    position = position_at(before, len(before))
    message = f"byte 0x{raw[error.start]:02X} is not UTF-8: save the file as UTF-8"
    return Problem(name, position.line, position.column, "", message)


def _describe(document: Document, error: ValidationError) -> Iterator[Problem]:
    for count, details in enumerate(error.errors(include_url=False)):
        path: Path = details["loc"]
        bad_key = bool(path) and path[-1] == "[key]" and path not in document.keys
        if bad_key:
            path = path[:-1]
        if document.is_opaque(path):
            continue
        suggest = count < MAX_PROBLEMS
        message, suggestion, at_key = _word(path, details, suggest=suggest)
        # What is absent has no place of its own: the parsers disagree about it by a column.
        at_key = at_key or bad_key or details["input"] is None
        yield document.problem(path, message, suggestion, at_key=at_key)


def _word(path: Path, details: ErrorDetails, *, suggest: bool) -> tuple[str, str | None, bool]:
    """Return the sentence, a suggestion and whether the key is meant rather than its value."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key", _nearest_key(path) if suggest else None, True
    if kind == "missing":
        return f"{_MISSING}: {_explain(path)}", None, True
    if kind == "value_error":
        return str(context["error"]), None, False
    if kind == "too_short":
        return "needs at least one entry", None, True
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        near = _nearest(str(value), choices) if isinstance(value, str) else None
        return f"must be one of {', '.join(choices)}, not {_shown(value)}", near, False
    if kind in _LIMITS:
        relation, name = _LIMITS[kind]
        is_percentage = context[name] == 1 and 1 < value <= 100 and path[-1] in _RATIOS
        near = f"{value / 100:.6g}" if is_percentage else None
        return f"must be {relation} {context[name]:g}, not {_shown(value)}", near, False
    if kind in _EXPECTED:
        return _word_type(path, kind, value)
    return details["msg"], None, False


def _word_type(path: Path, kind: str, value: object) -> tuple[str, str | None, bool]:
    expected = _EXPECTED[kind]
    if value is None:
        default = _default(path)
        advice = f" or remove the key for the default, {default}" if default is not None else ""
        return f"has no value: write {expected}{advice}", None, True
    suggestion = None
    if kind == "bool_type" and isinstance(value, str):
        suggestion = _BOOLEANS.get(value.lower())
    elif kind in ("float_type", "int_type") and isinstance(value, str):
        bare = value.strip().removesuffix("%")
        suggestion = bare if bare.replace(".", "", 1).isdecimal() and bare.isascii() else None
    return f"must be {expected}, not {_shown(value)}", suggestion, False


def _explain(path: Path) -> str:
    section = section_at(path[:-1])
    field = None if section is None else section.model_fields.get(str(path[-1]))
    description = "required" if field is None or field.description is None else field.description
    return description[0].lower() + description[1:].rstrip(".")


def _default(path: Path) -> str | None:
    section = section_at(path[:-1])
    field = None if section is None or not path else section.model_fields.get(str(path[-1]))
    if field is None or field.is_required() or field.default is None:
        return None
    extra = field.json_schema_extra
    written: Any = extra.get("default") if isinstance(extra, dict) else None
    return str(written if written is not None else field.default).replace("True", "true")


def _nearest_key(path: Path) -> str | None:
    key = str(path[-1])
    section = section_at(path[:-1])
    siblings = [] if section is None else list(section.model_fields)
    near = _nearest(key, siblings)
    if near is not None:
        return near
    elsewhere = _paths_of_keys().get(key)
    return format_path(elsewhere) if elsewhere is not None else None


def _nearest(word: str, known: list[str]) -> str | None:
    if len(word) > _LONGEST_KEY:
        return None
    return next(iter(difflib.get_close_matches(word.replace("-", "_").lower(), known, n=1)), None)


@cache
def _paths_of_keys() -> dict[str, Path]:
    """Return where the keys of the optional sections belong."""
    found: dict[str, Path] = {}
    for name in PolicySchema.model_fields:
        section: type[Section] | None = section_at((name,))
        for key in () if section is None else section.model_fields:
            found.setdefault(key, (name, key))
    return found


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return quoted(value) if isinstance(value, str) else str(value).lower()[:40]
