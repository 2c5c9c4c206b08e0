"""What a request to the admin socket may contain.

Owns the checking of names, durations, texts and whole JSON bodies. Pure: it must not know of
sockets, and every refusal is one sentence that says what would be right.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 500
MAX_FOR_S = 366 * 86400.0
MAX_LIMIT = 1000
DEFAULT_LIMIT = 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)


class RequestError(ValueError):
    """A request that is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a request: how it is checked and whether it must be there."""

    check: Callable[[str, Any], Any]
    required: bool = False


def check_name(key: str, value: Any) -> str:
    """Return a model's or variant's name."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise RequestError(f"{key} must be a name of letters, digits, '_', '.' and '-'")
    return value


def check_duration(key: str, value: Any) -> float | None:
    """Return a duration in seconds; null means no end."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{key} must be a number of seconds")
    if not 0 < value <= MAX_FOR_S or not math.isfinite(value):
        raise RequestError(f"{key} must be more than 0 and at most {MAX_FOR_S:.0f} seconds")
    return float(value)


def check_text(key: str, value: Any) -> str | None:
    """Return a short text of one line."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"{key} must be text")
    if len(value) > MAX_TEXT:
        raise RequestError(f"{key} has {len(value)} characters; {MAX_TEXT} are allowed")
    if not value.isprintable():  # it ends up in terminals and logs
        raise RequestError(f"{key} must be one line without control characters")
    return value.strip() or None


def check_limit(key: str, value: Any) -> int:
    """Return how many rows are wanted; the value is the text of a query."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII):
        raise RequestError(f"{key} must be a whole number")
    if not 1 <= int(value) <= MAX_LIMIT:
        raise RequestError(f"{key} must be from 1 to {MAX_LIMIT}")
    return int(value)


NAME = Field(check_name)
REQUIRED_NAME = Field(check_name, required=True)
FOR_S = Field(check_duration)
WHY = Field(check_text)
LIMIT = Field(check_limit)


def check_fields(given: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the checked values of a request; absent ones are None. Raises RequestError."""
    for key in given:
        if key not in fields:
            raise RequestError(_unknown(key, list(fields)))
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key in given:
            values[key] = field.check(key, given[key])
        elif field.required:
            raise RequestError(f"{key} is missing")
        else:
            values[key] = None
    return values


def parse_body(body: bytes) -> dict[str, Any]:
    """Return a request's body, a JSON object; nothing at all counts as an empty one."""
    if not body.strip():
        return {}
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
    except RequestError:
        raise
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise RequestError("the body has a key twice")
    return value


def _constant(name: str) -> Any:
    raise RequestError(f"{name} is not a number of JSON")


def _unknown(key: str, known: list[str]) -> str:
    shown = repr(key[:40])
    if not known:
        return f"{shown} is unknown: this request takes nothing"
    near = difflib.get_close_matches(key[:40], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{shown} is unknown; {hint}"
