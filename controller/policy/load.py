"""From a policy's text to the frozen policy, or to everything that is wrong with it.

Owns the order of the steps and the wording of pydantic's errors. What values may be is the
schema's; where they stand is `controller.policy.positions`'.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controller.policy.checks import check_credentials, cross_check
from controller.policy.model import Policy
from controller.policy.positions import MAX_BYTES, Document, position_at, read_yaml
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

__all__ = ["Policy", "PolicyError", "Problem", "load_policy", "parse_policy", "parse_raw"]

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
_RATIOS: Final = ("quality", "min_quality")
_BOOLEANS: Final = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def load_policy(
    path: str | os.PathLike[str], *, environment: Mapping[str, str] | None = None
) -> Policy:
    """Read a policy file. Raises PolicyError with all problems, an unreadable file included.

    Args:
        path: the file.
        environment: of the process that will need the credentials which the policy names, so that
            one that it was not given is a problem; None: somebody else will need them.
    """
    name = os.fspath(path)
    return parse_raw(read_raw(name), name, environment=environment)


def read_raw(name: str) -> bytes:
    """Return the bytes of a policy file, one over the limit at most. Raises PolicyError."""
    try:
        with open(name, "rb") as stream:  # noqa: PTH123 - a name as given, for the messages
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PolicyError([Problem(name, 0, 0, "", f"cannot be read: {reason}")]) from error


def parse_raw(raw: bytes, filename: str, *, environment: Mapping[str, str] | None = None) -> Policy:
    """Return the policy that bytes say. Raises PolicyError; a byte over the limit is enough."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(raw) <= MAX_BYTES:  # else the cut may have split a character
            raise PolicyError([_encoding_problem(raw, error, filename)]) from error
        text = raw.decode("utf-8", "replace")
    return parse_policy(text, filename, environment=environment)


def parse_policy(
    text: str, filename: str, *, environment: Mapping[str, str] | None = None
) -> Policy:
    """Return the policy that a text says. Raises PolicyError with all problems and positions."""
    document = read_yaml(text, filename)
    problems = list(document.problems)
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
        raise PolicyError(_in_order(problems, filename))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    policy = _placed(to_policy(schema, sha256=digest), document)
    problems = [
        document.problem(("schedules", schedule, "models", model), message, at_key=True)
        for schedule, model, message in left_without(policy)
    ]
    if problems:
        raise PolicyError(_in_order(problems, filename))
    return policy


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
        found.append((key, f"{printable(document.file)}:{place.line}:{place.column}"))
    return tuple(found)


def _in_order(problems: list[Problem], filename: str) -> list[Problem]:
    ordered = sorted(problems, key=lambda problem: (problem.line, problem.column))
    rest = len(ordered) - MAX_PROBLEMS
    if rest > 0:
        last = ordered[MAX_PROBLEMS - 1]
        more = Problem(filename, last.line, last.column, "", f"and {rest} more problems after this")
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
        return f"is missing: {_explain(path)}", None, True
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
