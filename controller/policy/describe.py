"""What a key of a policy means, from the same schema that checks it and that editors read.

Owns finding a key and what is told of it. It must not say what the schema does not.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controller.policy.json_schema import build_schema

_SUGGESTED = 3


class UnknownKeyError(Exception):
    """No key of a policy has this name; the text says which are near."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key that a policy may have."""

    path: str  # such as models.NAME.objective.latency
    meaning: str
    values: str  # what may stand there, in words
    default: Any  # None: it has none
    required: bool


def keys() -> tuple[Key, ...]:
    """Return every key of a policy, in the schema's order."""
    schema = build_schema()
    return tuple(_walk(schema, schema["definitions"], ""))


def find(name: str) -> tuple[Key, ...]:
    """Return the keys whose path is this, or ends with it, with all that is under them.

    Raises:
        UnknownKeyError: there is none.
    """
    every = keys()
    wanted = name.strip(".").split(".")
    found = [key for key in every if _fits(key.path.split("."), wanted)]
    if not found:
        last = {key.path.rsplit(".", 1)[-1] for key in every}
        near = difflib.get_close_matches(wanted[-1], sorted(last), n=_SUGGESTED)
        hint = f": perhaps {' or '.join(near)}" if near else ""
        raise UnknownKeyError(f"no key of a policy is called {name}{hint}")
    under = [key for key in every if any(key.path.startswith(f"{top.path}.") for top in found)]
    return tuple({key.path: key for key in (*found, *under)}.values())


def _fits(path: list[str], wanted: list[str]) -> bool:
    """Return whether a path ends with what is wanted; an operator's own name fits NAME."""
    tail = path[-len(wanted) :]
    if len(tail) != len(wanted):
        return False
    # Alone, or where a key would stand, a word is a key's name and none of the operator's.
    named = [
        part == "NAME" and len(wanted) > 1 and (i > 0 or want not in _words())
        for i, (part, want) in enumerate(zip(tail, wanted, strict=True))
    ]
    return all(
        part == want or is_name for part, want, is_name in zip(tail, wanted, named, strict=True)
    )


@functools.cache
def _words() -> frozenset[str]:
    return frozenset(word for key in keys() for word in key.path.split("."))


def _walk(node: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[Key]:
    required = set(node.get("required", ()))
    named = [(key, child, key in required) for key, child in node.get("properties", {}).items()]
    named += [("NAME", child, False) for child in node.get("patternProperties", {}).values()]
    for key, child, is_required in named:
        here = f"{path}.{key}" if path else key
        section = _section(child, definitions)
        meaning = child.get("description") or section.get("description", "")
        yield Key(here, meaning, _values(child, section), child.get("default"), is_required)
        yield from _walk(section, definitions, here)


def _section(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return what a node refers to, itself where it refers to nothing."""
    for option in (node, *node.get("allOf", ()), *node.get("anyOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = definitions[option["$ref"].rsplit("/", 1)[-1]]
            return found
        if "patternProperties" in option:
            named: dict[str, Any] = option
            return named
    return node


def _values(node: dict[str, Any], section: dict[str, Any]) -> str:
    """Return in words what may stand at a key."""
    if section.get("properties") or section.get("patternProperties"):
        return "a section"
    options = [one for one in node.get("anyOf", [node]) if one.get("type") != "null"]
    return " or ".join(dict.fromkeys(_one(option) for option in options))


def _one(node: dict[str, Any]) -> str:
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return " or ".join(map(str, node["enum"]))
    integer = node.get("type") == "integer"
    kinds = {
        "string": "text",
        "array": "a list",
        "boolean": "true or false",
        "object": "a section",
    }
    kind = kinds.get(node.get("type", ""), f"{'an' if integer else 'a'} {node.get('type')}")
    kind = node.get("x-quantity", kind) + _limits(node)
    examples = ", ".join(map(str, node.get("examples", ())))
    return f"{kind}, such as {examples}" if examples else kind


def _limits(node: dict[str, Any]) -> str:
    """Return between what a number or a quantity must be, "" where nothing bounds it."""
    if "x-minimum" in node:
        return f" from {node['x-minimum']} to {node['x-maximum']}"
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = {
        "at least": low,
        "more than": node.get("exclusiveMinimum"),
        "at most": high,
        "less than": node.get("exclusiveMaximum"),
    }
    told = [f"{word} {limit:g}" for word, limit in words.items() if limit is not None]
    return f" of {' and '.join(told)}" if told else ""
