"""Keys, what they do, and what `governor top` remembers of the last minutes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cli.cells import clipped, padded, width_of, wrapped
from controller.cli.top.keys import decode, flush
from controller.cli.top.series import Memory, Series, bars, bars_to_goal
from controller.cli.top.state import KEYS, Sort, State, ordered, press, selected_of

NAMES = ["a", "b", "c"]


def pressed(*keys: str, state: State | None = None) -> State:
    state = State() if state is None else state
    for key in keys:
        state = press(state, key, NAMES, page=2)
    return state


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"jq", ["j", "q"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["pageup", "pagedown", "home", "end"]),
        (b"\r\n\x0c", ["enter", "enter", "redraw"]),
        (b"\x1b\x1b[A", ["esc", "up"]),
        (b"\x1bq", []),  # Alt-q is not q
        (b"\x1b[1;5Aq", ["q"]),  # nor is Control-up up
        (b"\x1b]11;rgb:0/0/0\x07", list("11;rgb:0/0/0")),
        (b"\x00\x03\x7f\xff", []),
        ("é模".encode(), []),
    ],
)
def test_bytes_are_keys(data: bytes, keys: list[str]) -> None:
    assert decode(data) == (keys, b"")


def test_a_key_that_comes_in_pieces_is_one_key() -> None:
    keys, rest = decode(b"j\x1b[")
    assert (keys, rest) == (["j"], b"\x1b[")
    assert decode(rest + b"B") == (["down"], b"")
    assert flush(b"\x1b[") == []
    assert flush(decode(b"\x1b")[1]) == ["esc"]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_keys_and_what_is_kept_is_short(data: bytes) -> None:
    keys, rest = decode(data)
    assert all(keys)
    assert len(rest) < 40


def test_keys_choose_a_model_and_stay_within_the_list() -> None:
    assert pressed("j").selected == "b"
    assert pressed("down", "down", "down", "down").selected == "c"
    assert pressed("G", "k").selected == "b"
    assert pressed("pagedown", "home").selected == "a"
    assert press(State(), "j", []).selected is None


def test_a_chosen_model_that_is_gone_gives_way_to_the_first() -> None:
    assert selected_of(State(selected="gone"), NAMES) == 0
    assert selected_of(State(selected="c"), NAMES) == 2
    assert selected_of(State(), []) is None


def test_keys_toggle_what_is_shown() -> None:
    assert pressed("e").explained
    assert pressed("enter").explained
    assert not pressed("e", "e").explained
    assert pressed("h").history
    assert not pressed("h", "e").history
    assert not pressed("h", "esc").history
    assert pressed(" ").frozen
    assert not pressed(" ", " ").frozen
    assert pressed("q").over
    assert pressed("x", "up", "redraw") == State(selected="a")


def test_any_key_ends_the_help_and_does_nothing_else() -> None:
    assert pressed("?").helped
    assert pressed("?", " ") == State()
    assert pressed("?", "q").over


def test_the_interval_goes_in_steps_and_ends() -> None:
    assert pressed("+").interval_s == 2.0
    assert pressed("-", "-").interval_s == 0.2
    assert pressed(*"-" * 20).interval_s == 0.1
    assert pressed(*"+" * 20).interval_s == 60.0
    odd = State(interval_s=3.0)
    assert pressed("+", state=odd).interval_s == 5.0
    assert pressed("-", state=odd).interval_s == 2.0
    assert pressed("+", state=State(interval_s=3600.0)).interval_s == 3600.0


def test_the_help_has_every_key_that_does_something() -> None:
    told = {word for keys, _ in KEYS for word in keys.split()}
    assert {"up", "down", "k", "j", "enter", "e", "h", "s", "space", "+", "-", "?", "q"} == told


def test_sorting_puts_the_worst_first_and_the_unknown_last() -> None:
    models: list[dict[str, Any]] = [
        {"name": "b", "rate_rps": 1.0, "burn_rate": None},
        {"name": "c", "rate_rps": None, "burn_rate": 2.0},
        {"name": "a", "rate_rps": 9.0, "burn_rate": 7.0},
    ]

    def names(sort: Sort) -> list[str]:
        return [str(model["name"]) for model in ordered({"models": models}, sort)]

    assert names(Sort.POLICY) == ["b", "c", "a"]
    assert names(Sort.NAME) == ["a", "b", "c"]
    assert names(Sort.LOAD) == ["a", "b", "c"]
    assert names(Sort.BURN) == ["a", "c", "b"]
    assert pressed(*"s" * len(Sort)).sort is Sort.POLICY


def told(rate: float | None, p99: float | None, switches: int = 0, pid: int = 1) -> dict[str, Any]:
    model = {"name": "a", "rate_rps": rate, "measured_p99_ms": p99, "switches": switches}
    return {
        "daemon": {"pid": pid},
        "models": [{**model, "objective": {"latency_ms": 50.0}}],
    }


def test_the_last_minutes_are_kept_by_the_second_and_no_longer() -> None:
    memory = Memory()
    for second in range(1000):
        memory.remember(told(float(second), 25.0), second + 0.5, 1.0)
    rates = memory.rates("a")
    assert rates.columns(999.5, 3, 1) == [997.0, 998.0, 999.0]
    assert rates.columns(999.5, 2, 10) == [989.0, 999.0]
    assert len(rates.seconds) <= 301
    assert memory.pressures("a").columns(999.5, 1, 1) == [0.5]


def test_a_slow_interval_leaves_no_gaps_but_a_silence_does() -> None:
    series = Series()
    series.add(10.2, 1.0, reach_s=6.0)
    series.add(15.2, 2.0, reach_s=6.0)
    series.add(30.2, 3.0, reach_s=6.0)
    columns = series.columns(30.2, 21, 1)
    assert columns == [1.0, *[2.0] * 5, *[None] * 14, 3.0]


def test_switches_are_those_of_the_last_minute_and_of_one_daemon() -> None:
    memory = Memory()
    assert memory.switches("a") is None
    for second in range(0, 200, 10):
        memory.remember(told(1.0, 1.0, switches=second), float(second), 10.0)
    assert memory.switches("a") == 60.0
    memory.remember(told(1.0, 1.0, switches=0, pid=2), 200.0, 10.0)
    assert memory.switches("a") is None
    memory.remember(told(1.0, 1.0, switches=1, pid=2), 210.0, 10.0)
    assert memory.switches("a") == 1.0


def test_a_model_that_left_is_forgotten() -> None:
    memory = Memory()
    memory.remember(told(1.0, 1.0), 1.0, 1.0)
    memory.remember({"models": []}, 2.0, 1.0)
    assert memory.rates("a").columns(2.0, 5, 1) == [None] * 5


def test_bars_need_neither_colour_nor_unicode() -> None:
    assert bars([0.0, 5.0, None, 10.0], unicode=True) == "▁▅ █"
    assert bars([0.0, 5.0, None, 10.0], unicode=False) == "_= #"
    assert bars_to_goal([0.5, 1.0, 1.01, None], unicode=True) == "▅█! "
    assert bars([], unicode=True) == ""
    assert bars([0.0, 0.0], unicode=True) == "▁▁"


@pytest.mark.parametrize("text", ["plain", "模型翻译", "e\u0301te\u0301", "👩‍👩‍👧x", "a" * 50])
@pytest.mark.parametrize("room", range(12))
def test_text_is_cut_and_padded_by_cells(text: str, room: int) -> None:
    cut = clipped(text, room)
    assert width_of(cut) <= room
    assert cut == text or cut.endswith("..") or room < 3
    assert width_of(padded(cut, room, right=True)) == room
    assert all(width_of(line) <= 12 for line in wrapped(f"{text} {text}", 12, first="  "))
