"""The terminal while `governor top` has it: keys one by one, a screen of its own, and back again.

Owns the settings of the terminal, the signals that concern it and what is on the screen. However
it ends, the terminal is as it was: on an exception, on a signal, while it is stopped (Ctrl-Z). It
must not know what is shown or what a key means.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Final, Self

from controller.cli.cells import clipped, width_of
from controller.cli.top.keys import decode, flush

# Lines are not wrapped by the terminal: where it counts a character's cells otherwise than we do,
# that line alone looks odd.
_CLEAR: Final = "\x1b[?25l\x1b[?7l\x1b[H\x1b[2J"
_ENTER: Final = f"\x1b[?1049h{_CLEAR}"
# A terminal without a second screen (the Linux console) gets its prompt below the last line.
_LEAVE: Final = "\x1b[0m\x1b[999;1H\r\n\x1b[?7h\x1b[?25h\x1b[?1049l"
_END_OF_LINE: Final = "\x1b[K"
_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_NOTED: Final = (*_ENDING, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
_ESCAPE_S: Final = 0.05  # a key's bytes come together; Escape alone comes alone
_FORCE_S: Final = 1.0
_WOKEN: Final = 0
_USUAL: Final = (80, 24)


@dataclass(slots=True)
class Events:
    """What happened while the terminal was waited for."""

    keys: list[str] = field(default_factory=list)
    resized: bool = False  # or to be drawn anew for another reason
    ended_by: int | None = None  # a signal
    gone: bool = False  # the terminal is


class Terminal:
    """A context manager that has the terminal; keys, signals and `wake` end a `wait`."""

    def __init__(self, keyboard: int, screen: int, encoding: str) -> None:
        self._keyboard, self._screen, self._encoding = keyboard, screen, encoding
        self._saved: list[Any] = termios.tcgetattr(keyboard)
        self._handlers: dict[int, Any] = {}
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._old_wakeup = -1
        self._unfinished = b""
        self._drawn: list[str] = []
        self._ending_since_s: float | None = None

    def __enter__(self) -> Self:
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in _NOTED:
            self._handlers[number] = signal.signal(number, self._noted)
        try:
            self._enter()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def wake(self) -> None:
        """End a wait, from any thread."""
        with contextlib.suppress(OSError):  # full: it ends anyway; closed: nobody waits
            os.write(self._write_end, bytes([_WOKEN]))

    def size(self) -> tuple[int, int]:
        """Return columns and lines as they are now."""
        try:
            found = os.get_terminal_size(self._screen)
        except OSError:
            return _USUAL
        return (found.columns or _USUAL[0], found.lines or _USUAL[1])

    def wait(self, timeout_s: float) -> Events:
        """Wait for keys, signals or `wake`, at most so long."""
        events = Events()
        if self._unfinished:
            timeout_s = min(timeout_s, _ESCAPE_S)
        ready, _, _ = select.select([self._keyboard, self._read_end], [], [], max(timeout_s, 0.0))
        if self._keyboard in ready:
            self._read_keys(events)
        elif self._unfinished and not ready:  # not `wake` in the middle of a key
            events.keys += flush(self._unfinished)
            self._unfinished = b""
        if self._read_end in ready:
            self._heed(events)
        return events

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines; only those that changed are sent. Raises OSError: the terminal is gone."""
        width, height = self.size()
        wanted = [_fitted(line, width) for line in lines[:height]]
        wanted += [""] * (height - len(wanted))
        changed = [
            # Erased first: at the end of a full line that would take the last character.
            f"\x1b[{row};1H{_END_OF_LINE}{line}"
            for row, line in enumerate(wanted, 1)
            if row > len(self._drawn) or self._drawn[row - 1] != line
        ]
        self._drawn = wanted
        if changed:
            self._write("".join(changed))

    def redraw(self) -> None:
        """Forget what is on the screen, so that all of it is drawn again."""
        self._drawn = []
        self._write(_CLEAR)

    def _read_keys(self, events: Events) -> None:
        try:
            data = os.read(self._keyboard, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            events.gone = True
            return
        keys, self._unfinished = decode(self._unfinished + data)
        events.keys += keys

    def _heed(self, events: Events) -> None:
        for number in os.read(self._read_end, 4096):
            if number in _ENDING:
                events.ended_by = number
            elif number == signal.SIGTSTP:
                self._stop()
                events.resized = True
            elif number == signal.SIGCONT:
                # Somebody stopped us by force, and the shell has put its own settings back.
                self._take_keys()
                self.redraw()
                events.resized = True
            elif number == signal.SIGWINCH:
                self.redraw()
                events.resized = True

    def _stop(self) -> None:
        """Give the terminal back, stop as Ctrl-Z asks, and take it again afterwards."""
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._noted)  # here again after `fg`
        self._enter()

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        """Do nothing: the wakeup pipe tells the loop; but let the second Ctrl-C end what hangs."""
        if number not in _ENDING:
            return
        now_s = time.monotonic()
        if self._ending_since_s is None:
            self._ending_since_s = now_s
        elif now_s - self._ending_since_s > _FORCE_S:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._saved)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _enter(self) -> None:
        self._take_keys()
        self._drawn = []
        self._write(_ENTER)

    def _take_keys(self) -> None:
        """Have every key at once and unseen. In the background this stops us until `fg`."""
        settings = list(self._saved)
        settings[3] &= ~(termios.ICANON | termios.ECHO)
        settings[6] = [*settings[6]]
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        try:
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, settings)
        except termios.error as error:  # it has its own, which is no OSError
            raise OSError(*error.args) from None

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            # What was typed for this view is not for the shell.
            termios.tcsetattr(self._keyboard, termios.TCSAFLUSH, self._saved)

    def _give_back(self) -> None:
        try:
            self._leave()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_wakeup)
            # The feed may still wake us, and the number may soon be another file's.
            read_end, write_end = self._read_end, self._write_end
            self._read_end = self._write_end = -1
            os.close(read_end)
            os.close(write_end)

    def _write(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, "replace"))
        while data:
            try:
                data = data[os.write(self._screen, data) :]
            except BlockingIOError:  # somebody before us left it so
                select.select([], [self._screen], [], 1.0)


def _fitted(line: str, width: int) -> str:
    """Return the line if it fits, else what fits of it, without styles."""
    if len(line) <= width and line.isascii():
        return line
    plain = _STYLE.sub("", line)
    return line if width_of(plain) <= width else clipped(plain, width)
