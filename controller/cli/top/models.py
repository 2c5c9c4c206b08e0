"""The table of the models in `governor top`.

Owns its columns, the word for a model's state, and which rows are on the screen. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from controller.cli.table import (
    NONE,
    Column,
    Json,
    Paper,
    clean,
    duration,
    milliseconds,
    number_cell,
    number_of,
    part_of,
    percent,
    table,
    text_cell,
)
from controller.cli.top.series import LATE, Memory, bars, bars_to_goal
from controller.cli.top.state import name_of

_BARS: Final = 12
_BAR_S: Final = 10
_STATES: Final = {  # the reasons that are a state rather than a choice
    "fallback": "fallback",
    "stale_data": "stale data",
    "ignorance": "unknown",
    "recovery": "overloaded",
    "no_choice": "no choice",
    "yields": "yields",
}


def model_rows(
    models: Sequence[Json],
    at: int,
    memory: Memory,
    paper: Paper,
    unicode: bool,
    now_s: float,
    room: int,
) -> list[str]:
    """Return the header and the rows around the chosen one, in at most `room` lines."""
    shown = max(room - 1, 1)
    first = 0
    if len(models) > shown:
        shown = max(shown - 1, 1)  # a line says how many there are
        first = min(max(at - shown // 2, 0), len(models) - shown)
    part = models[first : first + shown]
    rows = [
        {**model, "chosen": index == at, **_remembered(model, memory, unicode, now_s)}
        for index, model in enumerate(part, first)
    ]
    lines = table(_COLUMNS, rows, paper, lambda _: [])
    if len(models) > len(part):
        lines.append(
            paper.ink(f"  {first + 1} to {first + len(part)} of {len(models)} models", "dim")
        )
    return lines[:room]


def state_of(model: Json) -> tuple[str, str]:
    """Return what an operator should know of a model in a word or two, and a style."""
    words: list[str] = []
    if model.get("serving") is None:
        words.append("not served")
    words += [word for word in ("held", "paused", "pinned") if model.get(word)]
    word = _STATES.get(str(model.get("reason")))
    if word is not None:
        words.append(word)
    if words:
        return ", ".join(words), "bad" if words[0] in {"not served", "overloaded"} else "warn"
    if _is_late(model, "measured_p99_ms"):
        return "late", "bad"
    return "ok", "good"


def against_goal(key: str, goal_of: Callable[[Json], Json] = lambda row: row) -> Any:
    """Return a cell of a time that carries a sign where it is above the objective."""

    def cell(row: Json) -> tuple[str, str]:
        late = _is_late(row, key, goal_of)
        text = milliseconds(number_of(row, key))
        return (f"{text}{LATE}", "bad") if late else (text, "")

    return cell


def _is_late(row: Json, key: str, goal_of: Callable[[Json], Json] = lambda row: row) -> bool:
    value = number_of(row, key)
    goal = number_of(part_of(goal_of(row), "objective"), "latency_ms")
    return value is not None and goal is not None and value > goal


def _remembered(model: Json, memory: Memory, unicode: bool, now_s: float) -> dict[str, Any]:
    name = name_of(model)
    return {
        "rates": bars(memory.rates(name).columns(now_s, _BARS, _BAR_S), unicode=unicode),
        "pressures": bars_to_goal(
            memory.pressures(name).columns(now_s, _BARS, _BAR_S), unicode=unicode
        ),
        "switches_a_minute": memory.switches(name),
    }


def _name(row: Json) -> tuple[str, str]:
    name = clean(row.get("name") or NONE)
    return (f"> {name}", "bold") if row.get("chosen") else (f"  {name}", "")


def _goal(row: Json) -> tuple[str, str]:
    return milliseconds(number_of(part_of(row, "objective"), "latency_ms")), ""


def _in_time(row: Json) -> tuple[str, str]:
    value = number_of(row, "attainment")
    goal = number_of(part_of(row, "objective"), "percentile")
    if value is None or goal is None or 100.0 * value >= goal:
        return percent(value, 2), ""
    return f"{percent(value, 2)}{LATE}", "bad"


def _burn(row: Json) -> tuple[str, str]:
    value = number_of(row, "burn_rate")
    if value is None:
        return NONE, ""
    return (f"{value:.1f}{LATE}", "bad") if value > 1.0 else (f"{value:.1f}", "")


def _reason(row: Json) -> tuple[str, str]:
    return clean(row.get("reason") or NONE).replace("_", " "), ""


def _since(row: Json) -> tuple[str, str]:
    return duration(number_of(row, "serving_for_s")), ""


_COLUMNS: Final = (
    Column("  MODEL", 0, _name, right=False),
    Column("SERVING", 1, text_cell("serving"), right=False),
    Column("FOR", 15, _since),
    Column("STATE", 2, state_of, right=False),
    Column("RATE/S", 3, number_cell("rate_rps", 0)),
    Column("LOAD, 2 MIN", 12, text_cell("rates"), right=False),
    Column("QUEUE", 9, number_cell("queue", 0)),
    Column("PRED MS", 6, against_goal("predicted_p99_ms")),
    Column("P99 MS", 4, against_goal("measured_p99_ms")),
    Column("GOAL MS", 5, _goal),
    Column("P99/GOAL", 11, text_cell("pressures"), right=False),
    Column("IN TIME %", 7, _in_time),
    Column("BURN", 8, _burn),
    Column("EFF.Q", 16, number_cell("effective_quality", 3)),
    Column("SW/MIN", 10, number_cell("switches_a_minute", 0)),
    Column("WHY", 13, _reason, right=False),
)
