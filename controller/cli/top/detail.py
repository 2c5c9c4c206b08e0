"""The chosen model in `governor top`: its last minutes, its candidates, actions and explanation.

Owns what of it is shown in how many lines. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controller.cli.cells import clipped, wrapped
from controller.cli.render import local_time, model_notes, render_history
from controller.cli.table import (
    NONE,
    Column,
    Json,
    Paper,
    clean,
    duration,
    list_of,
    milliseconds,
    ms_cell,
    number_cell,
    number_of,
    part_of,
    percent,
    share_cell,
    table,
    verdict,
)
from controller.cli.top.feed import Shown
from controller.cli.top.series import KEPT_S, Memory, bars, bars_to_goal, pressure
from controller.cli.top.state import State, name_of

_LABEL: Final = 11
_TEXT: Final = 28
_LEAST_ACTIONS: Final = 3
_LEAST_ROOM: Final = 12  # for charts beside the explanation that was asked for
_WIDEST_TEXT: Final = 120


def detail(
    shown: Shown,
    state: State,
    model: Json,
    memory: Memory,
    paper: Paper,
    unicode: bool,
    now_s: float,
    room: int,
) -> list[str]:
    """Return the lines of the chosen model, in at most `room`."""
    status = shown.status or {}
    name = name_of(model)
    lines = [paper.ink(clipped(_title(model), paper.width), "bold")]
    for note in model_notes(model, number_of(status, "time_unix_s")):
        lines += [
            paper.ink(line, "warn")
            for line in wrapped(f"! {note}", paper.width, first="  ", rest="    ")
        ]
    if room >= _LEAST_ROOM or not state.explained:
        lines += _charts(model, name, memory, paper, unicode, now_s)
    if state.explained:
        lines += ["", *_explanation(shown, state, name, paper)]
    rows = _candidates(status, model)
    if rows:
        lines += ["", *table(_CANDIDATE_COLUMNS, rows, paper, lambda _: [])]
    left = room - len(lines) - 1
    actions = _actions(shown, name, paper)
    if left >= min(len(actions), _LEAST_ACTIONS):
        lines += ["", *actions[:left]]
    return lines[:room]


def asking(state: State) -> str:
    """Return what stands where an answer is not there yet."""
    return "not asked for: space ends the freeze" if state.frozen else "asking ..."


def _title(model: Json) -> str:
    serving = model.get("serving")
    text = f"{clean(model.get('name') or NONE)}: "
    text += "nothing serves it" if serving is None else clean(serving)
    since_s = number_of(model, "serving_for_s")
    if since_s is not None:
        text += f" for {duration(since_s)}"
    desired = model.get("desired")
    if desired is not None and desired != serving:
        text += f", would rather be {clean(desired)}"
    if model.get("reason"):
        text += f" ({clean(model['reason']).replace('_', ' ')})"
    return text


def _charts(
    model: Json, name: str, memory: Memory, paper: Paper, unicode: bool, now_s: float
) -> list[str]:
    """Return the load and the percentile over the last minutes, as wide as there is room."""
    count = min(max(paper.width - _LABEL - _TEXT - 2, 10), KEPT_S)
    step_s = -(-KEPT_S // count)
    count = KEPT_S // step_s
    found: list[str] = []
    rate, goal_ms = (
        number_of(model, "rate_rps"),
        number_of(part_of(model, "objective"), "latency_ms"),
    )
    rates = memory.rates(name).columns(now_s, count, step_s)
    most = max((value for value in rates if value is not None), default=None)
    text = NONE if rate is None else f"{rate:.0f}/s"
    if most is not None:
        text += f", at most {most:.0f} in 5 min"
    found.append(_chart("load", bars(rates, unicode=unicode), count, text, paper))
    pressures = memory.pressures(name).columns(now_s, count, step_s)
    share = pressure(model)
    text = NONE if share is None else f"{percent(share)} % of {milliseconds(goal_ms)} ms"
    drawn = bars_to_goal(pressures, unicode=unicode)
    found.append(_chart("p99/goal", drawn, count, text, paper))
    return found


def _chart(label: str, drawn: str, count: int, text: str, paper: Paper) -> str:
    line = f"  {label:<{_LABEL - 2}}{drawn:>{count}}  {text}"
    return clipped(line, paper.width)


def _explanation(shown: Shown, state: State, name: str, paper: Paper) -> list[str]:
    about = shown.question
    if about.model != name or not about.explain:
        return [f"  {asking(state)}"]
    if shown.explanation is None:
        return ["  there is no explanation of this model"]
    text = clean(shown.explanation.get("text") or NONE)
    return wrapped(text, min(paper.width, _WIDEST_TEXT), first="  ", rest="  ")


def _candidates(status: Json, model: Json) -> list[Json]:
    variants = part_of(part_of(status, "triton"), "variants")
    return [
        {
            **row,
            "chosen": row.get("variant") == model.get("serving"),
            "wanted": row.get("variant") == model.get("desired"),
            "objective": model.get("objective"),
            "loaded": _loaded(variants.get(str(row.get("model")))),
        }
        for row in list_of(model, "candidates")
    ]


def _loaded(variant: Any) -> str | None:
    if not isinstance(variant, Mapping):
        return None
    if variant.get("operation"):
        return clean(variant["operation"])
    if not variant.get("ready"):
        return "failed" if variant.get("error") else "not loaded"
    return "warm" if variant.get("warm") else "loaded"


def _actions(shown: Shown, name: str, paper: Paper) -> list[str]:
    if shown.question.model != name or not shown.actions:
        return []
    return render_history(shown.actions, paper, local_time).split("\n")


def _variant(row: Json) -> tuple[str, str]:
    name = clean(row.get("variant") or NONE)
    sign = ">" if row.get("chosen") else "+" if row.get("wanted") else " "
    return f"{sign} {name}", "bold" if row.get("chosen") else ""


def _told(row: Json) -> tuple[str, str]:
    value = number_of(row, "told_p99_ms")
    if value is None:  # a daemon older than the promise
        value = number_of(row, "p99_ms")
    goal = number_of(part_of(row, "objective"), "latency_ms")
    text = milliseconds(value)
    late = value is not None and goal is not None and value > goal
    return (f"{text}!", "bad") if late else (text, "")


def _where(row: Json) -> tuple[str, str]:
    text = clean(row.get("loaded") or NONE)
    return text, {"warm": "", "loaded": "", NONE: "", "failed": "bad"}.get(text, "warn")


_CANDIDATE_COLUMNS: Final = (
    Column("  VARIANT", 0, _variant, right=False),
    Column("QUALITY", 1, number_cell("quality", 3)),
    Column("TOLD P99 MS", 2, _told),
    Column("P99 MS", 8, ms_cell("p99_ms")),
    Column("P50 MS", 7, ms_cell("p50_ms")),
    Column("SERVICE MS", 9, ms_cell("service_ms")),
    Column("LOAD %", 6, share_cell("utilization_ratio")),
    Column("LATE %", 5, share_cell("miss_ratio", 2)),
    Column("VALUE", 10, number_cell("value", 3)),
    Column("SERVER", 4, _where, right=False),
    Column("VERDICT", 3, verdict, right=False),
)
