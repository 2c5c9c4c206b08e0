"""The report: its numbers, and a page that nothing recorded can break out of."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.journal.minutes import MachineMinute, ModelMinute, bucket_of
from controller.planning.decision import Reason
from controller.report import Recorded, is_report, page, summary
from controller.report.html import Markup, data, element, escaped, inline, visible
from controller.report.series import Steps, gather, model_columns, step_s
from controller.report.tables import count, duration, milliseconds, percent
from controller.report.words import REASONS
from controller.report.zone import offsets, zone_of

SINCE = 1_700_000_040 // 60 * 60  # a full minute
VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x00\x1b[31m\u202e"


def a_minute(
    *, completed: int = 600, late: int = 0, traced: int = 200, latency_s: float = 0.03
) -> ModelMinute:
    each = completed / traced if traced else 0.0
    return ModelMinute(
        latency_s=0.080,
        percentile=99.0,
        seconds=60.0,
        arrived=float(completed),
        completed=completed,
        in_time=traced - late,
        late=late,
        known=float(completed) if traced else 0.0,
        known_late=each * late,
        known_quality=0.9 * each * (traced - late),
        unknown=0.0 if traced else float(completed),
        allowed=0.01 * completed if traced else 0.0,
        compute_s=latency_s * completed,
        quality=0.9 * completed,
        told_s=0.06 * completed,
        told_of=float(completed),
        singles=traced,
        singles_kept=traced,
        variants={"full": [45.0, completed * 0.75], "int8": [15.0, completed * 0.25]},
        reasons={"steady": 59.0, "escape": 1.0},
        latencies={bucket_of(latency_s): float(completed)} if traced else {},
        peak_rps=20.0,
    )


def recorded(
    minutes: list[tuple[int, str, ModelMinute]], *, count_of: int = 60, **more: Any
) -> Recorded:
    begins = sorted({SINCE + 60 * i for i in range(count_of)} - set(more.pop("down", ())))
    machine = [(at, MachineMinute(60.0, 60.0, 600, 1.2, 0.05, 6.0)) for at in begins]
    return Recorded(
        SINCE, SINCE + 60 * count_of, "/var/lib/journal.sqlite3", minutes, machine, **more
    )


def an_hour(name: str = "chat", **how: Any) -> list[tuple[int, str, ModelMinute]]:
    return [(SINCE + 60 * i, name, a_minute(**how)) for i in range(60)]


class Tree(HTMLParser):
    """Reads a page as a browser does, and notes what it would do."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def test_numbers_are_those_of_the_minutes() -> None:
    # 6000 requests in time, and a minute of a hundred of which every second one was late.
    minutes = an_hour()
    minutes[30] = (minutes[30][0], "chat", a_minute(completed=6000, late=100))
    model = summary(recorded(minutes))["models"][0]
    total = 59 * 600 + 6000
    assert model["requests"]["completed"] == total
    assert model["attainment"] == pytest.approx(1.0 - 3000 / total, abs=1e-6)
    assert model["budget_used"] == pytest.approx(3000 / (0.01 * total), rel=1e-4)
    assert model["effective_quality"] == pytest.approx(0.9 * (total - 3000) / total, rel=1e-4)
    assert model["mean_quality"] == pytest.approx(0.9)
    assert model["latency_ms"]["p99"] == pytest.approx(30.0, rel=0.1)
    assert model["told_ms"] == pytest.approx(60.0)
    assert model["told_kept"] == 1.0
    assert [(v["name"], v["share"]) for v in model["variants"]] == [("full", 0.75), ("int8", 0.25)]
    assert [r["reason"] for r in model["reasons"]] == ["steady", "escape"]
    assert model["known_share"] == 1.0


def test_without_traces_what_nobody_knows_is_unknown_and_said_to_be() -> None:
    document = summary(recorded(an_hour(traced=0)))
    model = document["models"][0]
    for unknown in ("attainment", "budget_used", "effective_quality", "told_kept"):
        assert model[unknown] is None
    assert model["latency_ms"]["p99"] is None
    assert model["latency_ms"]["mean"] == pytest.approx(30.0)
    assert model["mean_quality"] == pytest.approx(0.9)
    assert any("no request was traced" in note for note in document["notes"])
    text = " ".join(Tree(page(recorded(an_hour(traced=0)), document)).text)
    assert "unknown" in text
    assert "100.00" not in text


def test_requests_that_no_trace_speaks_for_are_told_of() -> None:
    minutes = an_hour()
    minutes[10:40] = [(at, name, a_minute(traced=0)) for at, name, _ in minutes[10:40]]
    document = summary(recorded(minutes))
    assert document["models"][0]["known_share"] == 0.5
    assert any("for 50 % of its requests" in note for note in document["notes"])


def test_time_in_which_nobody_watched_is_a_gap_not_a_zero() -> None:
    down = [SINCE + 60 * i for i in range(20, 31)]
    minutes = [one for one in an_hour() if one[0] not in down]
    seen = recorded(minutes, down=down)
    document = summary(seen)
    assert document["machine"]["not_watched"] == [[down[0], down[-1] + 60]]
    assert document["machine"]["watched_s"] == 49 * 60
    steps = Steps(SINCE, SINCE + 3600)
    fine = gather(steps, [(at, minute) for at, _, minute in minutes], ModelMinute)
    columns = model_columns(fine, fine, [False] * steps.count, ["full", "int8"])
    for name in ("rps", "p50", "px", "told", "objective", "mean"):
        gaps = [i for i, value in enumerate(columns[name]) if value is None]
        assert gaps == list(range(20, 31)), name
    assert columns["shares"][0][25] is None
    assert columns["shares"][0][5] == 0.75
    assert columns["blocks"]["used"][25] is None


def test_of_requests_to_a_triton_that_is_gone_nothing_is_drawn() -> None:
    columns = model_columns([a_minute(completed=0)] * 3, [None], [False, True, False], ["full"])
    assert columns["rps"] == [0.0, None, 0.0]


def test_a_high_percentile_is_of_as_many_minutes_as_it_takes() -> None:
    few = [a_minute(traced=30) for _ in range(6)]
    columns = model_columns(few, few, [False] * 6, [])
    assert columns["px"][:3] == [None, None, None]
    assert columns["px"][3] == pytest.approx(30.0, rel=0.1)
    few[2] = None
    assert model_columns(few, few, [False] * 6, [])["px"][3:] == [None] * 3


def test_actions_are_counted_by_kind_and_their_times_are_of_what_succeeded() -> None:
    def action(kind: str, outcome: str, took_s: float | None, **more: Any) -> dict[str, Any]:
        whole = {"switch_s": None, "transaction_s": took_s, "error": None}
        return (
            {"time_unix_s": SINCE, "kind": kind, "model": "chat", "outcome": outcome} | whole | more
        )

    actions = [action("switch", "done", 0.02, switch_s=0.003) for _ in range(99)]
    actions += [action("switch", "done", 1.0, switch_s=0.5), action("load", "refused", 9.0)]
    actions += [action("load", "failed", 60.0, error="out of memory"), action("load", "done", 8.0)]
    loads, switches = summary(recorded([], actions=actions))["actions"]
    assert (loads["count"], loads["failed"], loads["refused"], loads["done"]) == (3, 1, 1, 1)
    assert (loads["took_s"]["p99"], loads["last_error"]) == (8.0, "out of memory")
    assert switches["switch_s"] == {"median": 0.003, "p99": 0.5}
    assert switches["took_s"] == {"median": 0.02, "p99": 1.0}


def test_what_was_dropped_to_make_room_is_told() -> None:
    document = summary(recorded(an_hour(), dropped_before={"actions": SINCE + 600.0}))
    assert any("The actions before" in note for note in document["notes"])
    earlier = summary(recorded(an_hour(), dropped_before={"actions": SINCE - 600.0}))
    assert earlier["notes"] == []


def test_a_journal_without_minutes_is_told_of_what_it_has() -> None:
    seen = recorded([], has_minutes=False)
    document = summary(seen)
    assert "schema version 1" in document["notes"][0]
    assert document["machine"]["not_watched"] == []
    Tree(page(seen, document))


def hostile() -> Recorded:
    action = {
        "time_unix_s": SINCE, "kind": HOSTILE, "model": HOSTILE, "outcome": "failed",
        "switch_s": None, "transaction_s": 1.0, "error": HOSTILE,
    }  # fmt: skip
    event = {
        "time_unix_s": SINCE, "monotonic_s": 1.0, "kind": HOSTILE, "model": HOSTILE,
        "message": HOSTILE, "data": {"error": HOSTILE, HOSTILE: HOSTILE},
    }  # fmt: skip
    minute = a_minute()
    minute.variants = {HOSTILE: [60.0, 600.0], "]]>": [1.0, 1.0]}
    minute.reasons = {HOSTILE: 60.0}
    seen = recorded(
        [(SINCE, HOSTILE, minute)],
        actions=[action],
        events=[event],
        qualities={HOSTILE: {HOSTILE: 0.9}},
    )
    seen.machine[0][1].gpus[HOSTILE] = [60.0, 30.0, 0.0, 1e9, 60.0]
    return seen


def test_hostile_names_and_messages_stay_text() -> None:
    seen = hostile()
    text = page(seen, summary(seen))
    tree = Tree(text)
    assert tree.open == []
    assert not any(tag == "img" for tag, _ in tree.tags)
    assert not any(name.startswith("on") for _, attributes in tree.tags for name in attributes)
    assert len(tree.scripts) == 2
    told = json.loads(tree.scripts[0])
    assert told["models"][0]["variants"][0] == visible(HOSTILE)
    shown = "".join(tree.text)
    assert "</script><img src=x onerror=alert(1)>" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]|u202e", text)


@given(st.text())
def test_any_text_is_one_text_node(text: str) -> None:
    tree = Tree(element("p", text, title=text))
    assert [tag for tag, _ in tree.tags] == ["p"]
    assert "".join(tree.text).replace(" ", "") == "".join(
        c if c.isprintable() or c in "\xa0\u202f" else "" if c in "\n\t" else "\ufffd"
        for c in text.replace(" ", "")
    )


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_data_is_read_back_as_it_was(value: Any) -> None:
    tree = Tree(data(value, "data"))
    assert [tag for tag, _ in tree.tags] == ["script"]
    assert json.loads(tree.scripts[0]) == value


def test_the_page_needs_nothing_but_itself_and_lets_nothing_else_run() -> None:
    import base64
    import hashlib

    seen = recorded(an_hour(), events=[])
    text = page(seen, summary(seen))
    tree = Tree(text)
    assert text.startswith("<!doctype html>\n<html")
    assert not {tag for tag, _ in tree.tags} & {"link", "iframe", "object", "base", "form"}
    for _, attributes in tree.tags:
        assert "src" not in attributes
        assert "style" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] or "" for _, a in tree.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    digest = base64.b64encode(hashlib.sha256(tree.scripts[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "The MIT License" in tree.scripts[1]


def test_every_model_has_its_plots_and_its_tables() -> None:
    seen = recorded([*an_hour("a"), *an_hour("b", traced=0)])
    tree = Tree(page(seen, summary(seen)))
    plots = [(a["data-plot"], a.get("data-model")) for _, a in tree.tags if "data-plot" in a]
    assert plots == [
        *((name, "0") for name in ("load", "variants", "latency", "budget", "told")),
        *((name, "1") for name in ("load", "variants", "latency")),
        ("machine", None),
    ]
    headers = [a for tag, a in tree.tags if tag == "th"]
    assert headers
    assert all(a.get("scope") in {"col", "row"} for a in headers)


@pytest.mark.parametrize(("events", "marked"), [(3, 3), (60, 60), (120, 120), (121, 0), (280, 0)])
def test_so_many_events_that_their_marks_would_hide_the_plots_are_in_the_table_alone(
    events: int, marked: int
) -> None:
    told = [
        {
            "time_unix_s": SINCE + 10.0 * i,
            "kind": "policy",
            "model": None,
            "message": "taken",
            "data": None,
        }
        for i in range(events)
    ]
    seen = recorded(an_hour(), events=told)
    text = page(seen, summary(seen))
    assert text.count(">taken<") >= events
    found = json.loads(next(s for s in Tree(text).scripts if '"marks"' in s))
    assert len(found["marks"]) == marked


def test_a_report_is_known_by_its_beginning() -> None:
    seen = recorded(an_hour())
    assert is_report(page(seen, summary(seen))[:2048])
    assert not is_report("<!doctype html><p>something else")
    assert not is_report("version: 1\n")


def test_a_script_that_would_end_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be inlined"):
        inline("script", "const a = '</SCRIPT>'")


def test_the_version_of_the_plots_is_the_one_written_down() -> None:
    folder = Path(__file__).parents[2] / "controller" / "report" / "assets" / "uplot"
    found = re.search(r"\(v([\d.]+)\)", (folder / "uPlot.iife.min.js").read_text()[:200])
    assert found is not None
    assert f"uPlot {found[1]}," in (folder / "README.md").read_text()


def test_every_reason_has_its_phrase() -> None:
    assert set(REASONS) == set(Reason)


@pytest.mark.parametrize(
    ("hours", "step"), [(0.1, 60), (24, 60), (24.1, 120), (24 * 7, 600), (24 * 90, 7200)]
)
def test_a_longer_time_has_longer_steps(hours: float, step: int) -> None:
    assert step_s(SINCE, SINCE + hours * 3600.0, 1440) == step
    assert Steps(SINCE, SINCE + hours * 3600.0).count <= 1441


def test_a_zone_that_changes_its_clocks_has_both_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        autumn = 1_792_890_000  # 2026-10-25 01:00 UTC, when clocks go back
        assert offsets(autumn - 7200, autumn + 7200) == [(autumn - 7200, 7200), (autumn, 3600)]
        assert zone_of(autumn) == "CET (UTC+01:00)"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_numbers_are_spelled_so_that_none_looks_better_than_it_is() -> None:
    assert percent(0.99999) == "99.99\u202f%"
    assert percent(1.0) == "100.00\u202f%"
    assert percent(None) == milliseconds(None) == count(None) == "unknown"
    assert count(1_234_567) == "1\u202f234\u202f567"
    assert milliseconds(7_900.0) == "7.90\u202fs"
    assert duration(86_400) == "1\u202fd"
    assert duration(3_661) == "1\u202fh 1\u202fmin"
    assert escaped("a\u202fb") == "a\u202fb"
    assert isinstance(escaped("<"), Markup)
