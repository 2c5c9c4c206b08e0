"""What `status`, `explain` and `history` look like."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.cli.client import parse_duration
from controller.cli.render import (
    render_explanation,
    render_history,
    render_last,
    render_status,
)
from controller.cli.table import Paper, clean, duration, milliseconds, percent

STATUS: dict[str, Any] = {
    "version": 1,
    "time_unix_s": 1000.0,
    "daemon": {
        "version": "0.1.0",
        "uptime_s": 11_520.0,
        "mode": "act",
        "tick_s": 0.02,
        "paused": None,
        "advice": None,
    },
    "triton": {"grpc": "127.0.0.1:8001", "version": "2.51.0", "up": True, "capability": None},
    "gpu": [],
    "host": {"cpu_ratio": 0.34, "load_1m": 1.2, "memory_used_bytes": 3 * 2**30},
    "sources": [{"name": "traces", "up": True, "error": None}],
    "models": [
        {
            "name": "digits",
            "serving": "wide",
            "serving_for_s": 73.0,
            "reason": "steady",
            "quality": 0.927,
            "pinned": None,
            "paused": False,
            "held": None,
            "objective": {"latency_ms": 60.0, "percentile": 99.0},
            "rate_rps": 211.7,
            "queue": 4,
            "predicted_p99_ms": 41.0,
            "measured_p99_ms": 38.6,
            "attainment": 0.9941,
            "burn_rate": 0.59,
            "effective_quality": 0.921,
            "switches": 17,
            "failed_actions": 0,
        }
    ],
    "actions": {"switch_ms": {"count": 17, "p50": 2.1, "p99": 6.0}},
    "tick_ms": {"count": 10, "p50": 1.2, "p99": 3.4},
    "process": {"cpu_ratio": 0.03, "rss_bytes": 180 * 2**20},
    "journal": {"up": True, "error": None, "dropped": 0},
    "mqtt": None,
}

GOLDEN = """\
governor  0.1.0   act   up 3h 12m   tick 20 ms (takes 3.4)   3 % of a core
          180 MiB
triton    2.51.0   up   127.0.0.1:8001   17 switches, 2.1 ms median, 6.0 ms p99
host      34 % busy   load 1.2   3.0 GiB   gpu: none

MODEL   SERVING  QUALITY  RATE/S  QUEUE  PRED MS  P99 MS  GOAL MS  MET %  WHY
digits  wide       0.927     212      4       41      39       60  99.41  steady"""


def model(**changes: Any) -> dict[str, Any]:
    return {**STATUS, "models": [{**STATUS["models"][0], **changes}]}


def test_status_is_a_table_that_fits_80_columns() -> None:
    assert render_status(STATUS, Paper(80)) == GOLDEN


def test_a_wide_terminal_shows_more_columns() -> None:
    text = render_status(STATUS, Paper(140))
    for header in ("FOR", "EFF.Q", "BURN", "SWITCHES"):
        assert header in text
        assert header not in GOLDEN


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_table_line_is_wider_than_the_terminal(width: int) -> None:
    status = model(name="n" * 60, serving="s" * 60, reason="best_feasible", held="h " * 200)
    table = render_status(status, Paper(width)).split("\n\n", 1)[1]
    assert max(map(len, table.split("\n"))) <= max(width, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pinned": {"variant": "wide", "who": "ada", "why": "exam", "until_unix_s": 1540.0}},
            "pinned to wide by ada for another 9m: exam",
        ),
        ({"paused": True}, "paused"),
        ({"held": "foreign change"}, "held: foreign change; `governor resume` ends it"),
        ({"failed_actions": 2}, "2 actions failed"),
        (
            {"dispatcher": {"healthy": False, "error": "Deadline Exceeded"}},
            "its dispatcher is not well: Deadline Exceeded",
        ),
        (
            {"dispatcher": {"healthy": True, "served": {"a": 3, "b": 1}, "left_alone": {}}},
            "late binding: of 4 requests a 75 %, b 25 %",
        ),
        (
            {"dispatcher": {"healthy": True, "left_for_s": 24.6, "served": {"a": 3}}},
            "its dispatcher was late and a variant is not: tried again in 25 s",
        ),
        (
            {"dispatcher": {"healthy": True, "left_alone": {"a": "CUDA\nerror"}}},
            "late binding: none so far; a left alone: CUDA",
        ),
    ],
)
def test_what_an_operator_must_know_of_a_model_is_under_its_row(
    changes: dict[str, Any], words: str
) -> None:
    assert f"\n  {words}" in render_status(model(**changes), Paper(80))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"journal": {"up": False, "error": "disk full"}}, "journal is down: disk full"),
        ({"journal": {"up": True, "dropped": 7}}, "journal: 7 records dropped"),
        ({"mqtt": {"up": False, "error": "no broker"}}, "mqtt is down: no broker"),
        (
            {"sources": [{"name": "traces", "up": False, "error": "refused"}]},
            "source traces is down: refused",
        ),
        (
            {"sources": [{"name": "triton", "up": True, "error": "p.yaml:3:9: no key"}]},
            "source triton: p.yaml:3:9: no key",
        ),
        ({"gpu": [{"index": 0, "error": "GPU is lost"}]}, "gpu 0: GPU is lost"),
        ({"triton": {"up": True, "capability": "advise only: polling"}}, "advise only: polling"),
        ({"triton": {"up": False}}, "does not answer"),
        (
            {"daemon": {"paused": {"who": "ada", "why": "a test", "until_unix_s": None}}},
            "paused by ada: a test",
        ),
        ({"daemon": {"advice": "shorten the tick"}}, "shorten the tick"),
        (
            {"daemon": {"policy_error": "refused: p.yaml:3:1: bad"}},
            "the changed policy was refused: p.yaml:3:1: bad",
        ),
        (
            {"daemon": {"policy_error": "taken, but mqtt changed: restart the daemon for that"}},
            "the changed policy was taken, but mqtt changed",
        ),
    ],
)
def test_everything_that_is_not_well_is_said(changes: dict[str, Any], words: str) -> None:
    assert words not in GOLDEN
    assert words in render_status({**STATUS, **changes}, Paper(80))


def test_one_limit_is_not_said_twice() -> None:
    limit = "advise only: polling"
    status = {**STATUS, "daemon": {"advice": limit}, "triton": {"up": True, "capability": limit}}
    assert render_status(status, Paper(80)).count(limit) == 1


def test_a_gpu_is_shown_with_what_it_can_tell() -> None:
    gpu = {
        "index": 0,
        "name": "NVIDIA H200",
        "utilization_ratio": 0.43,
        "memory_used_bytes": 12 * 2**30,
        "memory_total_bytes": 139 * 2**30,
        "temperature_celsius": 61.0,
        "power_watts": None,
        "throttle_reasons": ["sw_power_cap"],
        "error": None,
    }
    text = render_status({**STATUS, "gpu": [gpu]}, Paper(120))
    assert "NVIDIA H200   43 % busy   12.0 of 139.0 GiB   61 C   throttled: sw_power_cap" in text
    assert "gpu: none" not in text


def test_the_warm_pool_is_shown_where_there_is_a_budget() -> None:
    pool = {
        "gpu": {"limit_bytes": 20 * 2**30, "held_bytes": 12 * 2**30},
        "host": None,
        "held": ["fast", "good"],
        "loading": ["best"],
        "unloading": None,
        "variants": {"fast": {}, "good": {}, "best": {}},
    }
    assert "pool" not in render_status(STATUS, Paper())
    text = render_status({**STATUS, "memory": pool}, Paper(width=100))
    told = "gpu 12.0 of 20.0 GiB   2 of 3 variants loaded   loads best"
    assert [line for line in text.splitlines() if line.startswith("pool")] == [f"pool      {told}"]
    several = {"0": pool["gpu"], "3": {"limit_bytes": 10 * 2**30, "held_bytes": 1 * 2**30}}
    text = render_status({**STATUS, "memory": {**pool, "gpus": several}}, Paper(width=140))
    assert "pool      gpu 0 12.0 of 20.0 GiB   gpu 3 1.0 of 10.0 GiB   2 of 3 variants" in text


def test_colours_only_where_wanted_and_they_change_no_letter() -> None:
    late = model(measured_p99_ms=80.0, attainment=0.9)
    coloured = render_status(late, Paper(80, colour=True))
    assert "\x1b[31m     80\x1b[0m" in coloured or "\x1b[31m    80\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == render_status(late, Paper(80))


def test_a_text_from_elsewhere_cannot_drive_the_terminal() -> None:
    nasty = "\x1b]0;owned\x07\r\n"
    text = render_status(
        model(name=nasty, held=nasty, pinned={"variant": nasty, "why": nasty}), Paper(80)
    )
    assert "\x1b" not in text
    assert "\x07" not in text
    assert clean("a\x1bb\u202ec") == "a?b?c"


def all_keys(value: Any) -> set[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {
        *(value if isinstance(value, dict) else ()),
        *(k for part in parts for k in all_keys(part)),
    }


KEYS = sorted(all_keys(STATUS) | {"who", "why", "until_unix_s", "throttle_reasons", "power_watts"})
SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@example({"gpu": [{"throttle_reasons": True}]})
@given(st.dictionaries(st.sampled_from([*STATUS]), SCRAPS))
def test_status_of_another_version_is_shown_as_far_as_it_goes(changes: dict[str, Any]) -> None:
    assert render_status({**STATUS, **changes}, Paper(80)).startswith("governor")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["daemon", "triton", "host", "actions", "process"]), st.data())
def test_one_odd_value_anywhere_does_not_stop_the_table(part: str, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(STATUS[part])))
    odd = {**STATUS, part: {**STATUS[part], key: data.draw(SCRAPS)}}
    assert "digits" in render_status(odd, Paper(80))
    key = data.draw(st.sampled_from(sorted(STATUS["models"][0])))
    assert "MODEL" in render_status(model(**{key: data.draw(SCRAPS)}), Paper(140))


def test_an_explanation_has_its_paragraph_and_marks_what_was_chosen() -> None:
    candidates = [
        {
            "variant": "wide",
            "quality": 0.927,
            "known": True,
            "feasible": False,
            "p99_ms": 184.0,
            "miss_ratio": 0.31,
        },
        {
            "variant": "narrow",
            "quality": 0.884,
            "known": True,
            "feasible": True,
            "p99_ms": 12.0,
            "miss_ratio": 0.0,
        },
        {"variant": "odd", "quality": 0.9, "excluded": "not_ready", "known": False},
        {"variant": "new", "quality": 0.9, "excluded": None, "known": False},
    ]
    entry = {
        "name": "digits",
        "text": "digits: it switches. " * 8,
        "decision": {"target": "narrow", "candidates": candidates},
    }
    lines = render_explanation(entry, Paper(80)).split("\n")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  wide") and line.endswith("would miss") for line in lines)
    assert any(line.startswith("> narrow") and line.endswith("meets it") for line in lines)
    assert any(line.endswith("not ready") for line in lines)
    assert any(line.endswith("not measured") for line in lines)


def test_history_has_one_line_an_action_and_its_error_below() -> None:
    action = {
        "time_unix_s": 5.0,
        "kind": "switch",
        "model": "digits",
        "source": "digits_wide",
        "target": "digits_narrow",
        "outcome": "rolled_back",
        "switch_s": 0.0021,
        "transaction_s": 0.014,
        "reason": "escape",
        "error": "the probe got no answer",
    }
    text = render_history([action], Paper(120), lambda t: f"at {t:.0f}")
    assert text.split("\n")[1].split() == [
        *("at", "5", "digits", "switch", "digits_wide", "digits_narrow"),
        *("rolled", "back", "2.1", "14", "escape"),
    ]
    assert text.endswith("\n  the probe got no answer")
    assert render_history([], Paper(), str) == "no actions yet"


def test_old_state_is_marked_old_with_its_age() -> None:
    text = render_last(
        [{"name": "digits", "serving": "wide", "age_s": 7300.0, "reason": "steady"}],
        7300.0,
        Paper(80),
    )
    assert text.startswith("OLD: the last state in the journal, 2h 1m ago")
    assert "digits  wide    2h 1m  steady" in text


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (None, "-"),
        (0.04, "0.0s"),
        (9.9, "9.9s"),
        (59.0, "59s"),
        (73.0, "1m 13s"),
        (3600.0, "1h"),
        (11_520.0, "3h 12m"),
        (200_000.0, "2d 7h"),
    ],
)
def test_durations_are_told_in_two_units(value_s: float | None, text: str) -> None:
    assert duration(value_s) == text


def test_numbers_have_the_digits_that_matter() -> None:
    assert [milliseconds(v) for v in (None, 0.44, 9.94, 9.96, 41.2)] == [
        *("-", "0.4", "9.9", "10", "41"),
    ]
    assert [percent(v, 2) for v in (None, 0.99414, 1.0)] == ["-", "99.41", "100.00"]


@pytest.mark.parametrize(
    ("text", "value_s"),
    [("90s", 90.0), ("10m", 600.0), ("1h", 3600.0), ("1h30m", 5400.0), ("0.5d", 43_200.0)],
)
def test_durations_are_understood_as_people_write_them(text: str, value_s: float) -> None:
    assert parse_duration(text) == value_s


@pytest.mark.parametrize("text", ["", "10", "m", "0s", "-1s", "1w", "1 h", "\u0661s", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)
