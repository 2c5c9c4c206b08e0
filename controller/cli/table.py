"""Tables and quantities as plain text, in as much width as there is.

Owns alignment, colours and the spelling of numbers. Pure: it must not know what it shows, nor
read a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.cli.cells import clipped, padded, width_of, wrapped

NONE: Final = "-"
GAP: Final = "  "
_ANSI: Final = {"good": "32", "warn": "33", "bad": "31", "dim": "2", "bold": "1"}
_LONGEST_CELL: Final = 28

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Paper:
    """What is drawn on: how wide, and whether with colours."""

    width: int = 80
    colour: bool = False

    def ink(self, text: str, style: str) -> str:
        """Return text in a style, where there are styles."""
        code = _ANSI.get(style, "")
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table; a lower rank stays longer when there is little room."""

    header: str
    rank: int
    cell: Callable[[Json], tuple[str, str]]  # text and style
    right: bool = True


def clean(value: Any) -> str:
    """Return text without anything that a terminal would act on."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def duration(value_s: float | None) -> str:
    """Return a duration in its two largest units."""
    if value_s is None:
        return NONE
    seconds = max(value_s, 0.0)
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)


def milliseconds(value_ms: float | None) -> str:
    """Return milliseconds with the digits that matter."""
    if value_ms is None:
        return NONE
    return f"{value_ms:.1f}" if value_ms < 9.95 else f"{value_ms:.0f}"


def percent(value: float | None, digits: int = 0) -> str:
    """Return a ratio as percent, without the sign."""
    return NONE if value is None else f"{100.0 * value:.{digits}f}"


def table(
    columns: Sequence[Column],
    rows: Sequence[Json],
    paper: Paper,
    notes: Callable[[Json], list[str]],
) -> list[str]:
    """Return aligned lines; columns of the highest rank give way to a narrow paper."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    widths = [
        max([len(column.header), *(width_of(_short(row[i][0])) for row in cells)])
        for i, column in enumerate(columns)
    ]
    shown: list[int] = []
    room = paper.width
    for i in sorted(range(len(columns)), key=lambda i: columns[i].rank):
        needed = widths[i] + (len(GAP) if shown else 0)
        # A column that nobody has a value for tells nothing.
        told = not cells or columns[i].rank == 0 or any(row[i][0] != NONE for row in cells)
        if needed <= room and told:
            shown.append(i)
            room -= needed
    shown.sort()

    def line(parts: Sequence[tuple[str, str]]) -> str:
        texts = []
        for i in shown:
            text, style = parts[i]
            text = _short(text)
            if i != shown[-1] or columns[i].right:
                text = padded(text, widths[i], right=columns[i].right)
            texts.append(paper.ink(text, style))
        return GAP.join(texts)

    lines = [line([(column.header, "dim") for column in columns])]
    for row, parts in zip(rows, cells, strict=True):
        lines.append(line(parts))
        lines += [
            paper.ink(piece, "warn")
            for note in notes(row)
            for piece in wrapped(note, paper.width, first="  ", rest="    ")
        ]
    return lines


def _short(text: str) -> str:
    return clipped(text, _LONGEST_CELL)


def part_of(value: Json, key: str) -> Json:
    """Return an object inside an object, an empty one where there is none."""
    part = value.get(key)
    return part if isinstance(part, Mapping) else {}


def list_of(value: Json, key: str) -> list[Json]:
    """Return the objects of a list, none where there is no list."""
    part = value.get(key)
    return [item for item in part if isinstance(item, Mapping)] if isinstance(part, list) else []


def number_of(value: Json, key: str) -> float | None:
    """Return a finite number, None where there is none."""
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    try:
        plain = float(number)
    except OverflowError:
        return None
    return plain if math.isfinite(plain) else None


def text_cell(key: str, style: str = "") -> Callable[[Json], tuple[str, str]]:
    """Return a column's cell that shows a text of the row."""
    return lambda row: (clean(row.get(key) or NONE), style)


def ms_cell(key: str) -> Callable[[Json], tuple[str, str]]:
    """Return a column's cell that shows milliseconds."""
    return lambda row: (milliseconds(number_of(row, key)), "")


def share_cell(key: str, digits: int = 0) -> Callable[[Json], tuple[str, str]]:
    """Return a column's cell that shows a ratio as percent."""
    return lambda row: (percent(number_of(row, key), digits), "")


def number_cell(key: str, digits: int) -> Callable[[Json], tuple[str, str]]:
    """Return a column's cell that shows a number."""

    def cell(row: Json) -> tuple[str, str]:
        value = number_of(row, key)
        return (NONE if value is None else f"{value:.{digits}f}"), ""

    return cell


def verdict(row: Json) -> tuple[str, str]:
    """Return whether a candidate may serve and would be in time, and its style."""
    if row.get("excluded"):
        return clean(row["excluded"]).replace("_", " "), "dim"
    if not row.get("known"):
        return "not measured", "dim"
    return ("meets it", "good") if row.get("feasible") else ("would miss", "bad")
