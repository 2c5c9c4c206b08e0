"""The live view: the same text again and again, in place on a terminal.

Owns the terminal's cursor while it runs and gives it back however it ends. It must not know
what it shows.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

_HOME = "\x1b[H"
_CLEAR = "\x1b[2J"
_END_OF_LINE = "\x1b[K"
_BELOW = "\x1b[J"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"


def watch(frame: Callable[[], str], interval_s: float) -> int:
    """Show frames until Ctrl-C, `interval_s` apart; return the exit code."""
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    try:
        if live:
            signal.signal(signal.SIGTERM, _terminate)
            sys.stdout.write(_HIDE + _CLEAR)
        while True:
            began_s = time.monotonic()
            text = frame()
            if live:
                _draw(text)
            else:
                print(text, flush=True)
            time.sleep(max(0.0, interval_s - (time.monotonic() - began_s)))
    except KeyboardInterrupt:
        return 0  # the only way to end it, so not an accident
    finally:
        if live:
            sys.stdout.write(_SHOW + "\n")
            sys.stdout.flush()


def _terminate(number: int, _frame: object) -> NoReturn:
    """End as `kill` asks, by way of the cursor's return."""
    raise SystemExit(128 + number)


def _draw(text: str) -> None:
    """Overwrite the screen line by line: clearing it first would flicker."""
    height = shutil.get_terminal_size().lines
    lines = text.split("\n")[: height - 1]
    body = "".join(f"{line}{_END_OF_LINE}\n" for line in lines)
    sys.stdout.write(_HOME + body + _BELOW)
    sys.stdout.flush()
