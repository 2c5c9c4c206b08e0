"""The screen of `governor top`: what was answered, the state and the memory as lines.

Owns what is where in how much room. Pure: it must not read a terminal, a clock or a socket. It
gives as many lines as there are at most; none holds anything of the daemon that a terminal would
act on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controller.cli.cells import padded, width_of, wrapped
from controller.cli.head import fitted, head
from controller.cli.render import notes, render_history
from controller.cli.table import Json, Paper, clean, duration, list_of, part_of
from controller.cli.top.detail import asking, detail
from controller.cli.top.feed import Shown
from controller.cli.top.models import model_rows
from controller.cli.top.series import Memory
from controller.cli.top.state import KEYS, Sort, State, name_of, ordered, selected_of

_LEAST_WIDTH: Final = 30
_LEAST_HEIGHT: Final = 6
_LEAST_DETAIL: Final = 4
_LEAST_TABLE: Final = 4
_NOTES: Final = 3
_OLD_S: Final = 2.0
_KEYS_WIDTH: Final = 15
_SIGNS: Final = (
    "!  beside a number, and in the bars of p99/goal: outside the objective",
    "p99/goal  the measured 99th percentile, drawn from 0 to the objective",
    "burn  how fast the error budget is spent: above 1 it will not last",
    "sw/min  switches in the last minute, or since this view began",
    "told p99  what came of such predictions; what is decided by is p99",
    "> serves   + is wanted",
)


@dataclass(frozen=True, slots=True)
class Look:
    """The terminal as it is now."""

    width: int
    height: int
    colour: bool = False
    unicode: bool = True

    @property
    def paper(self) -> Paper:
        """What lines are drawn on."""
        return Paper(self.width, self.colour)


def screen(
    shown: Shown, state: State, memory: Memory, look: Look, now_s: float, address: str
) -> list[str]:
    """Return the lines of the screen, from the top."""
    if look.width < _LEAST_WIDTH or look.height < _LEAST_HEIGHT:
        return ["too small to show anything"]
    paper = look.paper
    lines = [_title(shown, state, look, now_s, address)]
    if shown.error is not None:
        lines += _flat(fitted(paper, "!", _why_old(shown, state), "bad"))
    room = look.height - 1
    if state.helped:
        lines += _help(paper)
    elif shown.status is None:
        lines += ["", *wrapped(_waiting(shown), look.width, first="  ", rest="  ")]
    else:
        lines += _top(shown.status, paper, room - len(lines))
        lines.append("")
        lines += _body(shown, state, memory, look, now_s, room - len(lines))
    lines = lines[:room]
    lines += [""] * (room - len(lines))
    return [*lines, _foot(state, look)]


def _title(shown: Shown, state: State, look: Look, now_s: float, address: str) -> str:
    """Return the first line: whether this is the present, and how often it is asked for."""
    age_s = shown.age_s(now_s)
    if state.frozen:
        word, style = f"FROZEN, {duration(age_s)} old", "warn"
    elif shown.error is not None:
        old = "" if age_s is None else f", shown is {duration(age_s)} old"
        word, style = f"NO ANSWER{old}", "bad"
    elif age_s is None:
        word, style = "asking", "warn"
    elif age_s > state.interval_s + _OLD_S:
        word, style = f"WAITING, shown is {duration(age_s)} old", "warn"
    else:
        word, style = "live", "good"
    word += f"   every {state.interval_s:g} s"
    name = f"governor top  {clean(address)}"
    room = look.width - width_of(word) - 2
    if width_of(name) > room:
        name = "governor top"
    if width_of(name) > room:
        return look.paper.ink(word, style)
    return f"{look.paper.ink(padded(name, room, right=False), 'bold')}  " + look.paper.ink(
        word, style
    )


def _why_old(shown: Shown, state: State) -> str:
    again = "frozen" if state.frozen else f"asking again every {state.interval_s:g} s"
    return f"{clean(shown.error)}; {again}"


def _waiting(shown: Shown) -> str:
    if shown.error is None:
        return "asking the governor ..."
    return "Nothing was answered yet. Start the governor with `governor run --policy FILE`."


def _top(status: Json, paper: Paper, room: int) -> list[str]:
    """Return the daemon, the server, the machine and what is wrong with any."""
    daemon, server, *machine = (_flat(part) for part in head(status, paper))
    health = _flat(fitted(paper, "health", *_health(status)))
    found = notes(status)
    if len(found) > _NOTES:
        rest = f"and {len(found) - _NOTES + 1} more, see `governor status`"
        found = [*found[: _NOTES - 1], rest]
    for note in found:
        health += _flat(fitted(paper, "!", note, "warn"))
    # Many GPUs must not push the models off a small screen.
    devices = [line for part in machine for line in part]
    most = max(room * 2 // 5 - len(daemon) - len(server) - len(health), 1)
    if len(devices) > most:
        more = f"{'':10}{len(devices) - most + 1} lines more, see `governor status`"
        devices = [*devices[: most - 1], paper.ink(more, "dim")]
    return [*daemon, *server, *devices, *health][: max(room - _LEAST_TABLE - 1, 1)]


def _health(status: Json) -> tuple[str, str]:
    """Return a word for every part that can fail alone, and the style of the worst."""
    words: list[str] = []
    style = ""
    for name in ("journal", "prometheus", "mqtt"):
        part = part_of(status, name)
        if not part:
            words.append(f"{name} none")
        elif not part.get("up"):
            words.append(f"{name} DOWN")
            style = "bad"
        else:
            words.append(f"{name} {'DROPS' if part.get('dropped') else 'ok'}")
            style = style or ("warn" if part.get("dropped") else "")
    for source in list_of(status, "sources"):
        up, name = bool(source.get("up")), clean(source.get("name"))
        absent = str(source.get("detail")).startswith(f"{name}: none")
        words.append(f"{name} {'none' if up and absent else 'ok' if up else 'DOWN'}")
        style = style if up else "bad"
    unbroken = (word.replace(" ", "\N{NO-BREAK SPACE}") for word in words)
    return "   ".join(unbroken), style


def _body(
    shown: Shown, state: State, memory: Memory, look: Look, now_s: float, room: int
) -> list[str]:
    """Return the models and, under them, the chosen one or the history."""
    status = shown.status or {}
    models = ordered(status, state.sort)
    at = selected_of(state, [name_of(model) for model in models])
    if at is None:
        return ["no models"]
    below = room - min(len(models) + 2, max(room // 2, _LEAST_TABLE + 1))
    if below < _LEAST_DETAIL:
        return model_rows(models, at, memory, look.paper, look.unicode, now_s, room)
    rows = model_rows(models, at, memory, look.paper, look.unicode, now_s, room - below - 1)
    if state.history:
        return [*rows, "", *_history(shown, state, look.paper, below)]
    part = detail(shown, state, models[at], memory, look.paper, look.unicode, now_s, below)
    return [*rows, "", *part]


def _history(shown: Shown, state: State, paper: Paper, room: int) -> list[str]:
    from controller.cli.render import local_time

    title = paper.ink("what was done to the server, the newest first", "bold")
    if not shown.question.everything:
        return [title, asking(state)]
    return [title, *_flat(render_history(shown.actions[:room], paper, local_time))][:room]


def _help(paper: Paper) -> list[str]:
    lines = ["", paper.ink("keys", "bold")]
    for keys, text in KEYS:
        first, *rest = wrapped(text, max(paper.width - _KEYS_WIDTH, 10))
        lines.append(f"  {keys:<{_KEYS_WIDTH - 2}}{first}")
        lines += [f"{'':{_KEYS_WIDTH}}{line}" for line in rest]
    lines += ["", paper.ink("signs", "bold")]
    for text in _SIGNS:
        lines += wrapped(text, paper.width, first="  ", rest="    ")
    return lines


def _foot(state: State, look: Look) -> str:
    """Return the keys, those that fit."""
    order = "" if state.sort is Sort.POLICY else f": {state.sort.value}"
    told = ["q quit", "? help", "j/k select", "e explain", f"s sort{order}"]
    told += ["h history", "space go on" if state.frozen else "space freeze", "+/- interval"]
    if state.helped:
        told = ["any key: back", "q quit"]
    line = ""
    for word in told:
        longer = f"{line}   {word}" if line else word
        if width_of(longer) > look.width:
            break
        line = longer
    return look.paper.ink(line, "dim")


def _flat(text: str) -> list[str]:
    return text.split("\n")
