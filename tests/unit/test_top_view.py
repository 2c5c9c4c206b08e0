"""The screen of `governor top`: it fits, it says everything in words, and nothing gets through."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import width as cells

from controller.cli.top.feed import Question, Shown
from controller.cli.top.models import state_of
from controller.cli.top.series import Memory
from controller.cli.top.state import Sort, State, ordered
from controller.cli.top.view import Look, screen

NOW_S = 5000.0
ADDRESS = "/run/triton-governor/governor.sock"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
ODD_NAMES = [
    "digits",
    "n" * 80,
    "模型翻译" * 10,
    "e\u0301" * 30,
    "\x1b[2J\x07evil\r\n",
    "👩‍👩‍👧 family",
    "",
]


def candidate(variant: str, **changes: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "model": f"digits_{variant}",
        "quality": 0.9,
        "excluded": None,
        "known": True,
        "service_ms": 4.2,
        "utilization_ratio": 0.4,
        "p50_ms": 9.0,
        "p99_ms": 41.0,
        "told_p99_ms": 44.0,
        "miss_ratio": 0.001,
        "value": 0.9,
        "feasible": True,
        **changes,
    }


def model(name: str = "digits", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "serving": "wide",
        "serving_for_s": 73.0,
        "desired": "wide",
        "reason": "steady",
        "pinned": None,
        "paused": False,
        "held": None,
        "objective": {"latency_ms": 60.0, "percentile": 99.0},
        "rate_rps": 211.7,
        "queue": 4,
        "predicted_p99_ms": 44.0,
        "measured_p99_ms": 38.6,
        "attainment": 0.9941,
        "burn_rate": 0.59,
        "effective_quality": 0.921,
        "switches": 17,
        "failed_actions": 0,
        "candidates": [candidate("wide"), candidate("narrow", feasible=False, told_p99_ms=88.0)],
        **changes,
    }


def status(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "time_unix_s": 1000.0,
        "daemon": {"version": "0.1.0", "pid": 7, "uptime_s": 11_520.0, "mode": "act"},
        "triton": {
            "grpc": "127.0.0.1:8001",
            "version": "2.51.0",
            "up": True,
            "variants": {
                "digits_wide": {"ready": True, "warm": True, "operation": None, "error": None},
                "digits_narrow": {"ready": False, "warm": False, "operation": None, "error": None},
            },
        },
        "gpu": [],
        "host": {"cpu_ratio": 0.34, "load_1m": 1.2, "memory_used_bytes": 3 * 2**30},
        "sources": [{"name": "traces", "up": True, "error": None}],
        "models": list(models) or [model()],
        "tick_ms": {"p99": 3.4},
        "journal": {"up": True, "dropped": 0},
        "mqtt": None,
        **changes,
    }


def action(**changes: Any) -> dict[str, Any]:
    return {
        "time_unix_s": 900.0,
        "kind": "switch",
        "model": "digits",
        "source": "digits_wide",
        "target": "digits_narrow",
        "outcome": "done",
        "switch_s": 0.002,
        "reason": "escape",
        **changes,
    }


def drawn(
    value: dict[str, Any],
    width: int = 100,
    height: int = 40,
    *,
    colour: bool = False,
    question: Question | None = None,
    explanation: dict[str, Any] | None = None,
    **state: Any,
) -> list[str]:
    memory = Memory()
    for second in range(5):
        memory.remember(value, NOW_S - 5.0 + second, 1.0)
    asked = Question("digits") if question is None else question
    shown = Shown(value, NOW_S, asked, (action(),), explanation)
    look = Look(width, height, colour=colour)
    return screen(shown, State(**state), memory, look, NOW_S, ADDRESS)


def text_of(*arguments: Any, **named: Any) -> str:
    return "\n".join(drawn(*arguments, **named))


def test_one_screen_shows_the_daemon_the_models_and_the_chosen_one() -> None:
    text = text_of(status())
    for words in (
        "live   every 1 s",
        "0.1.0   act   up 3h 12m",
        "gpu: none",
        "journal ok   prometheus none   mqtt none   traces ok",
        "digits: wide for 1m 13s (steady)",
        "at most 212 in 5 min",
        "64 % of 60 ms",
        "escape",
    ):
        assert words in text
    row = next(line for line in text.split("\n") if line.startswith("> digits"))
    assert re.findall(r"\S+", row)[2:5] == ["wide", "ok", "212"]
    candidates = text[text.index("VARIANT") :]
    assert re.search(r"> wide .* 44 .* warm +meets it", candidates)
    assert re.search(r"  narrow .* 88! .* not loaded +would miss", candidates)


@pytest.mark.parametrize("height", [6, 24, 60])
@pytest.mark.parametrize("width", [30, 60, 80, 140, 240])
@pytest.mark.parametrize("view", [{}, {"explained": True}, {"history": True}, {"helped": True}])
def test_it_fills_any_screen_and_never_more(width: int, height: int, view: dict[str, Any]) -> None:
    models = [model(name, held="hands off " * 9) for name in ODD_NAMES]
    models += [model(f"m{index:02}") for index in range(40)]
    gpus = [{"index": n, "name": "H100", "throttle_reasons": ["hot", "power"]} for n in range(8)]
    value = status(*models, gpu=gpus, mqtt={"up": False, "error": "no broker " * 20})
    question = Question("digits", explain=True, everything="history" in view)
    lines = drawn(value, width, height, question=question, explanation={"text": "so " * 99}, **view)
    assert len(lines) == height
    # The head is wrapped, not cut, down to what anybody uses; the terminal cuts what is narrower.
    if width >= 60:
        assert max(cells(line) for line in lines) <= width
    if "helped" not in view and height >= 24:
        assert any(line.startswith("> ") for line in lines)


def test_narrow_screens_drop_columns_and_keep_the_most_important() -> None:
    headers = {
        width: next(line for line in drawn(status(), width) if line.startswith("  MODEL"))
        for width in (60, 80, 140, 200)
    }
    for header in headers.values():
        for name in ("SERVING", "STATE", "RATE/S", "P99 MS", "GOAL MS"):
            assert name in header
    assert "IN TIME %" not in headers[60]
    assert "IN TIME %" in headers[80]
    assert "P99/GOAL" in headers[140]
    assert "WHY" in headers[200]


def test_many_models_scroll_with_the_chosen_one() -> None:
    value = status(*(model(f"m{index:02}") for index in range(40)))
    for chosen in ("m00", "m20", "m39"):
        text = text_of(value, 80, 24, selected=chosen)
        assert f"> {chosen}" in text
        assert re.search(r"\d+ to \d+ of 40 models", text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ok"),
        ({"measured_p99_ms": 72.0}, "late"),
        ({"held": "foreign change"}, "held"),
        ({"paused": {"who": "ada"}, "pinned": {"variant": "wide"}}, "paused, pinned"),
        ({"reason": "fallback"}, "fallback"),
        ({"reason": "stale_data"}, "stale data"),
        ({"reason": "recovery"}, "overloaded"),
        ({"serving": None, "reason": "ignorance"}, "not served, unknown"),
    ],
)
def test_a_state_is_a_word(changes: dict[str, Any], words: str) -> None:
    assert state_of(model(**changes))[0] == words


def test_what_is_outside_the_objective_has_a_sign_beside_its_colour() -> None:
    late = model(measured_p99_ms=72.0, predicted_p99_ms=90.0, attainment=0.91, burn_rate=9.0)
    text = text_of(status(late), 200)
    for words in ("72!", "90!", "91.00!", "9.0!", "!!!"):
        assert words in text
    assert "!" not in text_of(status(), 200).replace("88!", "")


def test_without_colour_nothing_is_styled_and_nothing_is_lost() -> None:
    coloured = drawn(status(), colour=True)
    assert any("\x1b[32m" in line for line in coloured)
    assert [STYLE.sub("", line) for line in coloured] == drawn(status())


def test_an_explanation_is_that_of_the_chosen_model_or_none() -> None:
    told = {"text": "digits is steady."}
    asked = Question("digits", explain=True)
    text = text_of(status(), question=asked, explanation=told, explained=True)
    assert "digits is steady." in text
    other = status(model(), model("words"))
    text = text_of(other, question=asked, explanation=told, explained=True, selected="words")
    assert "digits is steady." not in text
    assert "asking ..." in text
    text = text_of(status(), question=Question("digits"), explained=True, frozen=True)
    assert "not asked for: space ends the freeze" in text


def test_the_age_of_what_is_shown_and_why_there_is_nothing_newer_is_said() -> None:
    shown = Shown(status(), NOW_S - 12.0).after(Shown(error="the governor is gone"))
    text = "\n".join(screen(shown, State(), Memory(), Look(80, 24), NOW_S, ADDRESS))
    assert "NO ANSWER, shown is 12s old" in text
    assert "the governor is gone; asking again every 1 s" in text
    assert "> digits" in text
    hangs = Shown(status(), NOW_S - 12.0)
    assert (
        "WAITING, shown is 12s old" in screen(hangs, State(), Memory(), Look(80, 24), NOW_S, "")[0]
    )
    assert (
        "FROZEN, 12s old" in screen(hangs, State(frozen=True), Memory(), Look(80, 24), NOW_S, "")[0]
    )
    nothing = Shown().after(Shown(error="no governor runs here"))
    text = "\n".join(screen(nothing, State(), Memory(), Look(80, 24), NOW_S, ADDRESS))
    assert "no governor runs here" in text
    assert "governor run --policy FILE" in " ".join(text.split())


def test_more_is_wrong_than_there_is_room_for() -> None:
    sources = [{"name": f"s{index}", "up": False, "error": "refused"} for index in range(6)]
    text = text_of(status(sources=sources))
    assert "s0 DOWN" in text
    assert "source s1 is down: refused" in text
    assert "and 4 more, see `governor status`" in text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "x", "\x1b[31m", "\x9b2J", "\u202e", "名" * 50, "a\nb\rc\x00"])
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        found += [path for key in value for path in _paths(value[key], (*at, key))]
    elif isinstance(value, list):
        found += [
            path for index in range(len(value)) for path in _paths(value[index], (*at, index))
        ]
    return found


FULL = status(
    model(pinned={"variant": "wide", "who": "ada", "why": "x", "until_unix_s": 2000.0}, held="h"),
    gpu=[{"index": 0, "name": "H100", "throttle_reasons": ["hot"], "error": "lost"}],
    memory={
        "gpu": {"held_bytes": 1, "limit_bytes": 2},
        "held": ["a"],
        "loading": ["b"],
        "unloading": "c",
        "variants": {"a": {}},
    },
    actions={"switch_ms": {"count": 3, "p50": 1.0, "p99": 2.0}},
    process={"cpu_ratio": 0.1, "rss_bytes": 2**20},
    prometheus={"up": True, "dropped": 2},
)
PATHS = _paths(FULL)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(PATHS), JSON | st.just(...)), max_size=6),
    actions=st.lists(st.dictionaries(st.sampled_from(list(action())), JSON), max_size=2),
    explanation=JSON,
    width=st.integers(30, 240),
    height=st.integers(6, 60),
    sort=st.sampled_from(Sort),
    mode=st.sampled_from([{}, {"explained": True}, {"history": True}]),
)
def test_odd_and_hostile_json_is_survived_and_stays_off_the_terminal(
    changes: list[tuple[tuple[Any, ...], Any]],
    actions: list[dict[str, Any]],
    explanation: Any,
    width: int,
    height: int,
    sort: Sort,
    mode: dict[str, bool],
) -> None:
    value = copy.deepcopy(FULL)
    for path, new in changes:
        part: Any = value
        try:
            for key in path[:-1]:
                part = part[key]
            if new is ...:
                del part[path[-1]]
            else:
                part[path[-1]] = new
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    memory = Memory()
    memory.remember(value, NOW_S - 1.0, 1.0)
    memory.remember(value, NOW_S, 1.0)
    names = [str(one.get("name")) for one in ordered(value, sort)]
    asked = Question(names[0] if names else None, explain=True, everything="history" in mode)
    told = explanation if isinstance(explanation, dict) else None
    shown = Shown(value, NOW_S, asked, tuple(actions), told)
    look = Look(width, height, colour=True)
    lines = screen(shown, State(sort=sort, **mode), memory, look, NOW_S, ADDRESS)
    assert len(lines) == height
    for line in lines:
        assert STYLE.sub("", line).isprintable()
