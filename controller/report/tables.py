"""The tables of a report, and how its numbers are spelled.

Owns the rows and their words. Pure: it must not compute a number that is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from controller.report.html import Markup, element, joined
from controller.report.zone import local

NONE: Final = "unknown"
_THIN: Final = "\N{NARROW NO-BREAK SPACE}"
_GIB: Final = 2**30
Json = Mapping[str, Any]
Cell = tuple[str, Callable[[Json], object], bool]  # header, what is in it, whether it is a number


def percent(ratio: float | None, digits: int = 2) -> str:
    """Return a ratio as percent; what is short of everything is not rounded up to it."""
    if ratio is None:
        return NONE
    value = 100.0 * ratio
    highest = 100.0 - 10.0**-digits
    if highest < value < 100.0:
        value = highest
    return f"{value:.{digits}f}{_THIN}%"


def count(number: float | None) -> str:
    """Return a count with its thousands apart."""
    return NONE if number is None else f"{number:,.0f}".replace(",", _THIN)


def milliseconds(value_ms: float | None) -> str:
    """Return milliseconds with the digits that matter; long ones as seconds."""
    if value_ms is None:
        return NONE
    if value_ms >= 999.5:
        return f"{value_ms / 1e3:.{1 if value_ms >= 9_950.0 else 2}f}{_THIN}s"
    return f"{value_ms:.{1 if value_ms < 99.5 else 0}f}{_THIN}ms"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or parts:
            parts.append((number, unit))
    told = [f"{number}{_THIN}{unit}" for number, unit in parts[:2] if number]
    return " ".join(told) or f"0{_THIN}s"


def quality(value: float | None) -> str:
    """Return a quality."""
    return NONE if value is None else f"{value:.4f}"


def overview(models: Sequence[Json]) -> Markup:
    """Return one line a model."""
    names = {model["name"]: f"#model-{i}" for i, model in enumerate(models)}
    rows: list[Cell] = [
        ("model", lambda m: element("a", m["name"], href=names[m["name"]]), False),
        ("objective", lambda m: objective(m["objective"]), False),
        ("requests", lambda m: count(m["requests"]["arrived"]), True),
        ("in time", lambda m: percent(m["attainment"]), True),
        ("budget used", lambda m: percent(m["budget_used"], 0), True),
        ("effective quality", lambda m: quality(m["effective_quality"]), True),
        ("failed", lambda m: count(m["requests"]["failed"]), True),
        ("switches", lambda m: count(m["switches"]), True),
    ]
    return element("section", element("h2", "All models"), table(rows, models))


def objective(of: Json) -> str:
    """Return an objective as a phrase."""
    if of["latency_ms"] is None:
        return NONE
    return f"{of['percentile']:g}{_THIN}% within {milliseconds(of['latency_ms'])}"


def headline(model: Json) -> Markup:
    """Return the numbers of a model that one looks at first."""
    requests, latency, traced = model["requests"], model["latency_ms"], model["traced"]
    wanted = model["objective"]["percentile"] / 100.0
    met = model["attainment"]
    singles = traced["in_time"] + traced["late"]
    budget = model["budget_used"]
    told = model["told_ms"]
    cards = [
        (
            "in time",
            percent(met),
            f"{'met' if met >= wanted else 'missed'}: {objective(model['objective'])}"
            if met is not None
            else f"no traces; {objective(model['objective'])}",
            None if met is None else "good" if met >= wanted else "bad",
        ),
        (
            "error budget used",
            percent(budget, 0),
            NONE if budget is None else f"{count(model['late_or_failed'])} late or failed",
            None if budget is None else "good" if budget <= 1.0 else "bad",
        ),
        (
            "effective quality",
            quality(model["effective_quality"]),
            f"of answers, late or not: {quality(model['mean_quality'])}",
            None,
        ),
        (
            f"p{model['objective']['percentile']:g}",
            milliseconds(latency["at_objective"]),
            f"p50 {milliseconds(latency['p50'])}, mean {milliseconds(latency['mean'])}"
            if latency["p50"] is not None
            else f"mean {milliseconds(latency['mean'])}",
            None,
        ),
        (
            "requests",
            count(requests["arrived"]),
            f"{requests['mean_rps']:.3g}/s, most {requests['peak_rps']:.3g}/s",
            None,
        ),
        (
            "failed",
            count(requests["failed"]),
            f"{count(requests['most_waiting'])} waited at most",
            "bad" if requests["failed"] else None,
        ),
        (
            "told and kept",
            percent(model["told_kept"], 1),
            f"on average {milliseconds(told)} was told",
            None,
        ),
        (
            "switches",
            count(model["switches"]),
            f"{count(model['failed_actions'])} failed actions; {count(singles)} requests traced",
            None,
        ),
    ]
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value, cls="unknown" if value == NONE else mark),
                element("dd", more, cls="more"),
            )
            for name, value, more, mark in cards
        ),
        cls="cards",
    )


def variants(model: Json) -> Markup:
    """Return who served, and for how long."""
    rows: list[Cell] = [
        ("variant", lambda v: v["name"], False),
        ("quality", lambda v: "" if v["quality"] is None else f"{v['quality']:.3f}", True),
        ("served for", lambda v: duration(v["seconds"]), True),
        ("of time", lambda v: percent(v["share"], 1), True),
        ("of requests", lambda v: percent(v["requests_share"], 1), True),
    ]
    return element("div", element("h3", "Variants"), table(rows, model["variants"]))


def reasons(model: Json) -> Markup:
    """Return why, by the time that each reason held."""
    rows: list[Cell] = [
        ("reason", lambda r: r["means"], False),
        ("of time", lambda r: percent(r["share"], 2), True),
    ]
    return element("div", element("h3", "Why"), table(rows, model["reasons"]))


def actions(groups: Sequence[Json]) -> Markup:
    """Return what was done to the server, and what it cost."""
    rows: list[Cell] = [
        ("model", lambda a: a["model"], False),
        ("action", lambda a: a["kind"], False),
        ("count", lambda a: count(a["count"]), True),
        ("failed", lambda a: element("b", count(a["failed"])) if a["failed"] else "0", True),
        ("refused", lambda a: count(a["refused"]), True),
        ("took, median", lambda a: _took(a["took_s"]["median"]), True),
        ("p99", lambda a: _took(a["took_s"]["p99"]), True),
        ("the switch alone", lambda a: _took(a["switch_s"]["median"]), True),
        ("its p99", lambda a: _took(a["switch_s"]["p99"]), True),
        ("last error", lambda a: a["last_error"] or "", False),
    ]
    found = table(rows, groups) if groups else element("p", "Nothing was done.", cls="dim")
    text = (
        "What was done to the server, and what it took: checks and proof included, and of a switch"
        " also from sending it until the alias had changed. Times are of what succeeded."
    )
    return element("section", element("h2", "Actions"), element("p", text, cls="dim"), found)


def _took(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(1e3 * seconds)


def events(found: Sequence[Json], *, numbered: bool) -> Markup:
    """Return what happened, newest first; the numbers are those at the plots."""
    numbers = {id(event): number for number, event in enumerate(found, 1)}
    rows: list[Cell] = [
        *([("no.", lambda e: str(numbers[id(e)]), True)] if numbered else []),
        ("time", lambda e: local(e["time_unix_s"], "%m-%d %H:%M:%S"), False),
        ("kind", lambda e: e["kind"], False),
        ("model", lambda e: e["model"] or "", False),
        ("what", _told, False),
    ]
    newest = list(reversed(found))
    shown = table(rows, newest) if newest else element("p", "Nothing happened.", cls="dim")
    return element("section", element("h2", "Events"), shown)


def _told(event: Json) -> str:
    data = event.get("data")
    more = [
        f"{key}: {value}"
        for key, value in (data.items() if isinstance(data, Mapping) else ())
        if value is not None and key in {"error", "why", "who", "version"}
    ]
    return "; ".join([str(event.get("message")), *more])


def machine(of: Json) -> Markup:
    """Return how the daemon, Triton and the GPUs did."""
    gaps = [f"{local(a, '%m-%d %H:%M')} to {local(b, '%H:%M')}" for a, b in of["not_watched"]]
    lines = [
        ("the governor watched", f"{duration(of['watched_s'])} of {duration(of['span_s'])}"),
        ("nobody watched", ", ".join(gaps) or "never"),
        ("Triton did not answer", duration(of["triton_gone_s"])),
        (
            "a tick took",
            (
                f"{milliseconds(of['tick_ms'])} on average,"
                f" the slowest {milliseconds(of['slowest_tick_ms'])}"
            ),
        ),
        ("host's processors", f"{percent(of['host_cpu_ratio'], 0)} busy"),
    ]
    for gpu in of["gpus"]:
        memory, heat = gpu["memory_most_bytes"], gpu["hottest_celsius"]
        lines.append(
            (
                f"GPU {gpu['index']}",
                ", ".join(
                    [
                        f"{percent(gpu['utilization_ratio'], 0)} busy",
                        *([f"at most {memory / _GIB:.1f} GiB"] if memory else []),
                        *([f"at most {heat:.0f} °C"] if heat else []),
                        f"clocks held down for {duration(gpu['throttled_s'])}",
                    ]
                ),
            )
        )
    body = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in lines
    ]
    return element("div", element("table", element("tbody", joined(body))), cls="wide")


def table(cells: Sequence[Cell], rows: Sequence[Json]) -> Markup:
    """Return a table that scrolls by itself where a screen is too narrow."""
    head = [
        element("th", name, scope="col", cls="number" if number else None)
        for name, _, number in cells
    ]
    body = [
        element(
            "tr",
            *(element("td", of(row), cls="number" if number else None) for _, of, number in cells),
        )
        for row in rows
    ]
    return element(
        "div",
        element(
            "table", element("thead", element("tr", joined(head))), element("tbody", joined(body))
        ),
        cls="wide",
    )
