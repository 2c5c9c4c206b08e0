"""`governor top` on a real terminal (a pty), against a real socket that comes and goes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from admin_fakes import FakeControl

from controller.cli.top.terminal import Terminal
from controller.interfaces.admin import AdminServer
from controller.interfaces.control import Caller

MAIN_SCREEN = "\x1b[?1049l"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
MOVE = re.compile(r"\x1b\[(\d+);1H\x1b\[K([^\x1b]*(?:\x1b\[[0-9;]*m[^\x1b]*)*)")


class Daemon:
    """The admin API in a thread, started and stopped as often as a test likes."""

    def __init__(self, path: Path) -> None:
        self.control = FakeControl()
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: AdminServer | None = None

    def start(self) -> None:
        self._server = AdminServer(self.control, self._path)
        self._do(self._server.start())

    def stop(self) -> None:
        if self._server is not None:
            self._do(self._server.stop())
            self._server = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)


class Screen:
    """A program on a pty: what it has on its screen, and the keys of whoever sits there."""

    def __init__(self, command: list[str], width: int = 100, height: int = 30, **environment: str):
        self.master, slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.raw = ""
        kept = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
            start_new_session=True,
            # Ctrl-C and Ctrl-Z reach whoever has the terminal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self, timeout_s: float = 0.05) -> None:
        while select.select([self.master], [], [], timeout_s)[0]:
            self.raw += os.read(self.master, 65536).decode(errors="replace")

    def until(self, true: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline_s, f"not seen: {what}\n{self.text}"
            self.read()

    def sees(self, text: str) -> None:
        self.until(lambda: text in self.text, text)

    def sees_no_longer(self, text: str) -> None:
        self.until(lambda: text not in self.text, f"the end of {text}")

    @property
    def text(self) -> str:
        """What is on the screen now: the last that was written in each line."""
        lines: dict[int, str] = {}
        for row, line in MOVE.findall(self.raw.rpartition("\x1b[2J")[2]):
            lines[int(row)] = STYLE.sub("", line)
        return "\n".join(lines[row] for row in sorted(lines))

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    @property
    def cursor_is_back(self) -> bool:
        left = self.raw.rpartition(MAIN_SCREEN)
        return bool(left[1]) and "\x1b[?1049h" not in left[2] and "\x1b[?25l" not in left[2]

    def ended(self, timeout_s: float = 20.0) -> int:
        """Wait for the end; return the exit status; the terminal must be as it was."""
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, f"it does not end:\n{self.text}"
            self.read()
        self.read(0.2)
        assert self.cursor_is_back
        assert self.settings == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    server = Daemon(tmp_path / "run" / "governor.sock")
    yield server
    server.close()


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def start(*arguments: str, **settings: Any) -> Screen:
        command = [sys.executable, "-m", "controller.cli.main", "top", *arguments]
        command += ["--socket", str(tmp_path / "run" / "governor.sock")]
        opened.append(Screen(command, **settings))
        return opened[-1]

    yield start
    for screen in opened:
        screen.close()


def test_keys_do_what_they_say_and_q_gives_the_terminal_back(daemon, top) -> None:
    daemon.start()
    screen = top("--interval", "0.2")
    screen.sees("> digits")
    screen.sees("digits: wide for")
    screen.sees("digits_narrow")  # the actions of the model
    assert screen.settings != screen.before
    screen.press("j")
    screen.sees("> words")
    screen.sees("words: large for")
    screen.press("\x1b[A")
    screen.sees("> digits")
    screen.press("e")
    screen.sees("digits is steady.")
    screen.press("\r")
    screen.sees_no_longer("digits is steady.")
    screen.press("h")
    screen.sees("what was done to the server")
    screen.press("\x1b")
    screen.sees_no_longer("what was done to the server")
    screen.press("s")
    screen.sees("s sort: name")
    screen.press("+")
    screen.sees("every 0.5 s")
    screen.press("?")
    screen.sees("the error budget")
    screen.press("x")
    screen.sees_no_longer("the error budget")
    screen.press("q")
    assert screen.ended() == 0


def test_frozen_it_shows_what_was_and_asks_for_nothing(daemon, top) -> None:
    daemon.start()
    screen = top("--interval", "0.1")
    screen.sees("> digits")
    screen.press(" ")
    screen.sees("FROZEN")
    daemon.control.pins["digits"] = ("wide", None, "exam", Caller("ada", "socket"))
    screen.until(lambda: re.search(r"FROZEN, [1-9]", screen.text), "its age going on")
    assert "pinned to wide" not in screen.text
    screen.press(" ")
    screen.sees("pinned to wide by ada: exam")
    screen.sees("live")
    screen.press("q")
    assert screen.ended() == 0


def test_it_follows_the_size_of_the_terminal(daemon, top) -> None:
    daemon.start()
    screen = top("--interval", "0.2", width=60, height=20)
    screen.sees("> digits")
    assert "EFF.Q" not in screen.text
    screen.resize(200, 50)
    screen.sees("EFF.Q")
    screen.resize(60, 20)
    screen.sees_no_longer("EFF.Q")
    assert max(map(len, screen.text.split("\n"))) <= 60
    screen.press("q")
    assert screen.ended() == 0


def test_a_daemon_that_is_not_there_comes_goes_and_comes_again(daemon, top) -> None:
    screen = top("--interval", "0.2")
    screen.sees("no governor runs here")
    daemon.start()
    screen.sees("> digits")
    screen.sees_no_longer("NO ANSWER")
    daemon.stop()
    screen.sees("NO ANSWER, shown is")
    screen.sees("> digits")  # still there, and said to be old
    screen.press("j")
    screen.sees("> words")
    daemon.start()
    screen.sees_no_longer("NO ANSWER")
    screen.sees("live")
    screen.press("q")
    assert screen.ended() == 0


def test_a_daemon_that_hangs_does_not_stop_the_keys(tmp_path: Path, top) -> None:
    async def listen() -> None:
        (tmp_path / "run").mkdir(mode=0o700)
        hang = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await hang.wait()
            writer.close()

        path = str(tmp_path / "run" / "governor.sock")
        async with await asyncio.start_unix_server(silent, path):
            await asyncio.to_thread(use, top())
            hang.set()

    def use(screen: Screen) -> None:
        screen.sees("asking the governor")
        screen.press("?")
        screen.sees("the error budget")
        screen.press("q")
        assert screen.ended(timeout_s=3.0) == 0  # sooner than the question's own end

    asyncio.run(listen())


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 0),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
        (signal.SIGQUIT, -signal.SIGQUIT),
    ],
)
def test_signals_give_the_terminal_back_too(daemon, top, number: int, status: int) -> None:
    daemon.start()
    screen = top()
    screen.sees("> digits")
    screen.process.send_signal(number)
    assert screen.ended() == status


def test_ctrl_c_is_a_way_to_quit(daemon, top) -> None:
    daemon.start()
    screen = top()
    screen.sees("> digits")
    screen.press("\x03")
    assert screen.ended() == 0
    assert "Traceback" not in screen.raw


def test_stopped_the_terminal_is_the_shells_and_back_again_it_goes_on(daemon, tmp_path) -> None:
    daemon.start()
    # A shell with job control: without one nobody could bring it back.
    script = (
        "set -m; "
        f"{sys.executable} -m controller.cli.main top --interval 0.2"
        f" --socket {tmp_path}/run/governor.sock; echo stopped; read line; fg; echo over"
    )
    screen = Screen(["bash", "--norc", "-c", script])
    try:
        screen.sees("> digits")
        screen.press("\x1a")
        screen.until(lambda: "stopped" in screen.raw.rpartition(MAIN_SCREEN)[2], "the shell")
        assert screen.cursor_is_back
        assert screen.settings[3] & termios.ICANON
        assert screen.settings[3] & termios.ECHO
        seen = len(screen.raw)
        screen.press("\n")
        screen.until(lambda: "\x1b[?1049h" in screen.raw[seen:], "its screen again")
        screen.sees("> digits")
        screen.press("q")
        screen.until(lambda: "over" in screen.raw.rpartition(MAIN_SCREEN)[2], "the shell")
        assert screen.ended() == 0
    finally:
        screen.close()


def test_an_error_of_ours_is_told_on_the_terminal_as_it_was(daemon, tmp_path) -> None:
    daemon.start()
    script = (
        "import sys, controller.cli.top.loop as loop\n"
        "def broken(*_): raise ZeroDivisionError('broken')\n"
        "loop.screen = broken\n"
        "from controller.cli.main import main\n"
        "sys.exit(main(['top', '--socket', sys.argv[1]]))"
    )
    screen = Screen([sys.executable, "-c", script, f"{tmp_path}/run/governor.sock"])
    try:
        assert screen.ended() == 1
        assert "ZeroDivisionError" in screen.raw.rpartition(MAIN_SCREEN)[2]
    finally:
        screen.close()


def test_escapes_of_the_daemon_never_reach_the_terminal(daemon, top) -> None:
    status = daemon.control.status

    def hostile() -> dict[str, Any]:
        value = status()
        value["models"][0]["name"] = "\x1b]0;owned\x07\x1b[2Jd"
        value["models"][0]["held"] = "\x9b31m\r\nheld\x1b[?1049l"
        value["daemon"]["advice"] = "\x1bc"
        return value

    daemon.control.status = hostile
    daemon.start()
    screen = top("--interval", "0.2", NO_COLOR="1")
    screen.sees("> ?]0;owned??[2Jd")
    screen.press("q")
    assert screen.ended() == 0
    # Nothing but what moves the cursor and turns the screen: with NO_COLOR not even a style.
    left = re.sub(r"\x1b\[(\d+;1H|K|H|2J|\?(1049|25|7)[hl]|0m)", "", screen.raw)
    assert "\x1b" not in left
    assert "\x07" not in left
    assert screen.raw.count(MAIN_SCREEN) == 1


def test_a_terminal_without_unicode_gets_signs_it_can_show(daemon, top) -> None:
    daemon.start()
    screen = top("--interval", "0.2", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    screen.sees("> digits")
    screen.press("q")
    assert screen.ended() == 0
    assert screen.raw.isascii()


def test_in_a_pipe_it_is_a_plain_table_again_and_again(daemon, tmp_path: Path) -> None:
    daemon.start()
    command = [sys.executable, "-m", "controller.cli.main", "top", "--interval", "0.1"]
    command += ["--socket", str(tmp_path / "run" / "governor.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(30)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(20) == 0
    assert sum(line.startswith("MODEL") for line in lines) >= 3
    assert all("\x1b" not in line for line in lines)


def test_a_dumb_terminal_gets_the_plain_table(daemon, top) -> None:
    daemon.start()
    screen = top("--interval", "0.1", TERM="dumb")
    screen.until(lambda: screen.raw.count("MODEL") >= 3, "three tables")
    screen.press("\x03")
    screen.until(lambda: screen.process.poll() is not None, "its end")
    assert screen.process.returncode == 0
    assert "\x1b" not in screen.raw


@pytest.mark.parametrize("interval", ["0", "0.05", "3601", "nan", "x"])
def test_an_interval_out_of_bounds_is_a_wrong_command_line(interval: str) -> None:
    command = [sys.executable, "-m", "controller.cli.main", "top", "--interval", interval]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "0.1 to 3600" in done.stderr


def test_it_starts_without_a_heavy_import(daemon, top, tmp_path: Path) -> None:
    daemon.start()
    script = (
        "import sys, controller.cli.top.loop\n"
        "heavy = {'numpy', 'aiohttp', 'pydantic', 'yaml', 'asyncio', 'rich', 'wcwidth'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_a_wake_does_not_cut_a_key_in_two() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    try:
        with Terminal(slave, slave, "utf-8") as terminal:
            os.write(master, b"\x1b[")
            assert terminal.wait(10.0).keys == []
            terminal.wake()
            assert terminal.wait(10.0).keys == []
            os.write(master, b"B")
            assert terminal.wait(10.0).keys == ["down"]
        terminal.wake()  # an answer that comes too late does nothing
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_status_watch_gives_the_cursor_back_when_it_is_killed(daemon, tmp_path: Path) -> None:
    daemon.start()
    command = [sys.executable, "-m", "controller.cli.main", "status", "--watch", "0.1"]
    screen = Screen([*command, "--socket", str(tmp_path / "run" / "governor.sock")])
    try:
        screen.until(lambda: "digits" in screen.raw, "the table")
        screen.process.terminate()
        screen.until(lambda: screen.process.poll() is not None, "its end")
        screen.read(0.2)
        assert screen.process.returncode == 128 + signal.SIGTERM
        assert screen.raw.rpartition("\x1b[?25l")[2].count("\x1b[?25h") == 1
    finally:
        screen.close()
