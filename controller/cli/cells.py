"""How much of a terminal's line a text takes, and cutting, padding and wrapping by that.

Owns the difference between characters and cells: most of the world's names are not ASCII. It must
not know colours or tables, and imports its library only for a text that is not ASCII.
"""

from __future__ import annotations

import textwrap

_MORE = ".."


def width_of(text: str) -> int:
    """Return how many cells a printable text takes."""
    if text.isascii():
        return len(text)
    from wcwidth import width

    return int(width(text))


def clipped(text: str, cells: int) -> str:
    """Return the text in at most so many cells; what was cut ends in two dots."""
    if width_of(text) <= cells:
        return text
    more = _MORE[: max(cells, 0)]
    return _first(text, cells - len(more)) + more


def padded(text: str, cells: int, *, right: bool) -> str:
    """Return the text with blanks before it (`right`) or after it."""
    blanks = " " * (cells - width_of(text))
    return blanks + text if right else text + blanks


def wrapped(text: str, cells: int, *, first: str = "", rest: str = "") -> list[str]:
    """Return the text in lines of at most so many cells, with these indents."""
    room = max(cells, 1)
    if text.isascii():
        return textwrap.wrap(text, room, initial_indent=first, subsequent_indent=rest)
    from wcwidth import wrap

    return list(wrap(text, room, initial_indent=first, subsequent_indent=rest))


def _first(text: str, cells: int) -> str:
    if text.isascii():
        return text[: max(cells, 0)]
    from wcwidth import clip

    return str(clip(text, 0, max(cells, 0)))
