"""HTML that no name or message can break out of.

Owns escaping. Everything that becomes a page goes through here: names of models, variants and
GPUs, messages and errors are whatever somebody typed. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

_ODD = "\N{REPLACEMENT CHARACTER}"
_SPACES = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"  # the only unprintable ones that we write


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def visible(text: object) -> str:
    """Return text in which what cannot be seen (controls, marks of direction) is replaced."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(
        c if c.isprintable() or c in _SPACES else " " if c in "\n\t" else _ODD for c in plain
    )


def escaped(text: object) -> Markup:
    """Return any text as HTML."""
    return Markup(html.escape(visible(text)))


def element(tag: str, *children: object, **attributes: str | bool | None) -> Markup:
    """Return an element; children that are no `Markup` are escaped, None is nothing.

    Attributes: `cls` is `class`, `_` in a name is `-`; True has no value, False and None none.
    """
    inner = "".join(
        child if isinstance(child, Markup) else escaped(child)
        for child in children
        if child is not None
    )
    return Markup(f"<{tag}{_attributes(attributes)}>{inner}</{tag}>")


def lone(tag: str, **attributes: str | bool | None) -> Markup:
    """Return an element that has no content and no end."""
    return Markup(f"<{tag}{_attributes(attributes)}>")


def joined(parts: list[Markup]) -> Markup:
    """Return one piece of HTML after the other."""
    return Markup("".join(parts))


def data(value: Any, name: str) -> Markup:
    """Return data for scripts: nothing in it is markup, whatever it says."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{escaped(name)}">{text}</script>')


def inline(tag: str, source: str) -> tuple[Markup, str]:
    """Return a script or style as HTML, and what a content security policy knows it by.

    Raises ValueError for a source that would end its own element.
    """
    if f"</{tag}" in source.lower() or "<!--" in source:
        raise ValueError(f"this source cannot be inlined: it holds </{tag} or <!--")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return Markup(f"<{tag}>{source}</{tag}>"), f"'sha256-{digest}'"


def _attributes(attributes: dict[str, str | bool | None]) -> str:
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = "class" if name == "cls" else name.strip("_").replace("_", "-")
        parts.append(f" {spelled}" if value is True else f' {spelled}="{escaped(value)}"')
    return "".join(parts)
