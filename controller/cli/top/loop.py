"""The loop of `governor top`: answers, keys and signals in, a screen out.

Owns when the daemon is asked and when something is drawn. What is drawn is `view`'s, what a key
does is `state`'s.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from controller.cli import output
from controller.cli.top.feed import Feed, Question, Shown
from controller.cli.top.series import Memory
from controller.cli.top.state import State, name_of, ordered, press, selected_of
from controller.cli.top.terminal import Events, Terminal
from controller.cli.top.view import Look, screen

_AGE_TOLD_S: Final = 1.0  # how often an age on the screen goes on
_SOON_S: Final = 0.2


def run(socket_path: Path, interval_s: float, *, colour: bool) -> int:
    """Show the daemon until somebody quits; return the exit code."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.flush()
    terminal = Terminal(sys.stdin.fileno(), sys.stdout.fileno(), encoding)
    try:
        with terminal:
            ended_by = _Loop(terminal, socket_path, interval_s, encoding, colour).run()
    except OSError:  # the terminal went away while something was drawn
        return output.READER_GONE
    if ended_by is None or ended_by == signal.SIGINT:
        return output.OK  # Ctrl-C is a way to quit, so no accident
    signal.signal(ended_by, signal.SIG_DFL)
    os.kill(os.getpid(), ended_by)  # whoever waits for us shall see what ended us
    return 128 + ended_by


class _Loop:
    def __init__(
        self, terminal: Terminal, socket_path: Path, interval_s: float, encoding: str, colour: bool
    ) -> None:
        self._terminal = terminal
        self._socket_path = socket_path
        self._feed = Feed(socket_path, terminal.wake)
        self._memory = Memory()
        self._shown = Shown()
        self._state = State(interval_s=interval_s)
        self._asked: Question | None = None
        self._asked_s = -math.inf
        self._next_s = time.monotonic()
        self._unicode = encoding.lower().replace("-", "").startswith("utf")
        self._colour = colour

    def run(self) -> int | None:
        """Return the signal that ended it; None: a key did, or the terminal went away."""
        self._feed.start()
        drawn_s = -_AGE_TOLD_S
        dirty = True
        while True:
            idle_s = self._ask_when_due()
            now_s = time.monotonic()
            if dirty or now_s - drawn_s >= _AGE_TOLD_S:
                self._draw(now_s)
                drawn_s, dirty = now_s, False
            events = self._terminal.wait(min(idle_s, drawn_s + _AGE_TOLD_S - now_s))
            if events.ended_by is not None:
                return events.ended_by
            dirty = self._heed(events)
            if events.gone or self._state.over:
                return None

    def _heed(self, events: Events) -> bool:
        """Take what came in; return whether the screen changes by it."""
        names = self._names()
        for key in events.keys:
            if key == "redraw":
                self._terminal.redraw()
            before = self._state
            self._state = press(before, key, names, page=max(self._terminal.size()[1] // 3, 1))
            if before.sort is not self._state.sort:
                names = self._names()
            if self._state.interval_s != before.interval_s:
                self._next_s = min(self._next_s, time.monotonic() + self._state.interval_s)
        answer = self._feed.take()
        if answer is not None and not self._state.frozen:
            self._shown = self._shown.after(answer)
            if answer.status is not None and answer.answered_s is not None:
                self._memory.remember(answer.status, answer.answered_s, self._state.interval_s)
        return bool(events.keys) or events.resized or answer is not None

    def _ask_when_due(self) -> float:
        """Ask if it is time; return how long there is nothing to ask, in seconds."""
        if self._state.frozen or self._feed.asking:
            return _AGE_TOLD_S
        now_s = time.monotonic()
        wanted = self._question()
        # What a key asked for comes soon, but a key that is held down asks no flood of questions.
        changed = self._shown.status is not None and wanted != self._asked
        due_s = min(self._next_s, self._asked_s + _SOON_S) if changed else self._next_s
        if now_s < due_s:
            return due_s - now_s
        if now_s >= self._next_s:
            self._next_s += self._state.interval_s
            if self._next_s <= now_s:  # what was missed is not made up for
                self._next_s = now_s + self._state.interval_s
        self._asked, self._asked_s = wanted, now_s
        self._feed.ask(wanted)
        return _AGE_TOLD_S

    def _question(self) -> Question:
        names = self._names()
        at = selected_of(self._state, names)
        if self._state.history:
            return Question(everything=True)
        if at is None:
            return Question()
        return Question(names[at], explain=self._state.explained)

    def _names(self) -> list[str]:
        status = self._shown.status
        return [] if status is None else [name_of(m) for m in ordered(status, self._state.sort)]

    def _draw(self, now_s: float) -> None:
        width, height = self._terminal.size()
        look = Look(width, height, colour=self._colour, unicode=self._unicode)
        self._terminal.draw(
            screen(self._shown, self._state, self._memory, look, now_s, str(self._socket_path))
        )
