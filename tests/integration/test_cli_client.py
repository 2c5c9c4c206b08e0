"""The client's commands against a real socket, and against none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from admin_fakes import FakeControl

from controller.cli.main import main
from controller.interfaces.admin import AdminServer
from controller.journal import Journal
from controller.planning.decision import Candidate, Decision, Reason
from controller.ports import ActionRecord, Outcome


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_GOVERNOR_SOCKET", str(tmp_path / "run" / "governor.sock"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeControl]:
    """Serve the admin API from a thread, as another process would."""
    control = FakeControl()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = AdminServer(control, tmp_path / "run" / "governor.sock")
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    yield control
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def old_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state" / "journal.sqlite3", 2**20)
    journal.open()
    candidate = Candidate("wide", "digits_wide", 0.9, None, True, *[0.04] * 7, feasible=True)
    journal.decision(
        Decision(
            now_s=1.0,
            sequence=1,
            model="digits",
            serving="wide",
            desired="wide",
            target="wide",
            reason=Reason.STEADY,
            candidates=(candidate,),
            rate_rps=100.0,
            rate_p95_rps=120.0,
            rows_per_request=1.0,
            backlog_requests=2,
            backlog_s=0.01,
            drift_ratio=1.0,
        )
    )
    journal.action(
        ActionRecord("switch", "digits", "a", "b", Outcome.DONE, 1.0, 0.002, 0.01, "escape")
    )
    assert journal.close(5.0)


def test_status_shows_the_table(daemon: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "MODEL" in out
    assert "digits" in out
    assert "\x1b" not in out


def test_json_is_what_the_daemon_said(
    daemon: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["daemon"]["pid"] == 4711
    assert main(["explain", "words", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["name"] == "words"
    assert main(["history", "--model", "words", "--limit", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["actions"]) == 2


def test_explain_and_history_print_text(
    daemon: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert "digits is steady." in out
    assert "words is steady." in out
    assert main(["history", "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_pin_unpin_pause_and_resume_reach_the_daemon(
    daemon: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pin", "digits", "wide", "--for", "10m", "--why", "an exam"]) == 0
    assert capsys.readouterr().out == "digits stays on wide\n"
    assert daemon.pins["digits"][:3] == ("wide", 600.0, "an exam")
    assert main(["unpin", "digits"]) == 0
    assert daemon.pins == {}
    assert main(["pause", "--why", "night"]) == 0
    assert main(["pause", "words", "--for", "1h"]) == 0
    assert {model: row[:2] for model, row in daemon.paused.items()} == {
        None: (None, "night"),
        "words": (3600.0, None),
    }
    assert main(["resume"]) == 0
    assert main(["resume", "words"]) == 0
    assert daemon.paused == {}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["pin", "digits", "huge"], "digits has no variant huge"),
        (["explain", "nobody"], "the policy has no model 'nobody'"),
        (["pin", "a/b", "wide"], "model must be a name"),
        (["pause", "--why", "two\nlines"], "one line"),
    ],
)
def test_what_the_daemon_refuses_exits_1_with_its_sentence(
    daemon: FakeControl, capsys: pytest.CaptureFixture[str], argv: list[str], sentence: str
) -> None:
    assert main(argv) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "--watch", "0"],
        ["pin", "digits"],
        ["pause", "--for", "3x"],
        ["history", "--limit", "0"],
    ],
)
def test_a_wrong_command_line_exits_2(argv: list[str]) -> None:
    assert main(argv) == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["status"],
        ["explain"],
        ["history"],
        ["pin", "digits", "wide"],
        ["unpin", "digits"],
        ["pause"],
        ["resume"],
    ],
)
def test_a_daemon_that_is_down_exits_3_with_a_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 3
    captured = capsys.readouterr()
    assert "no governor runs here" in captured.err
    assert captured.out == ""


def test_without_a_daemon_the_journal_answers_and_says_that_it_is_old(
    old_journal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("OLD: the last state in the journal")
    assert "digits  wide" in out
    assert main(["status", "--json"]) == 3
    last = json.loads(capsys.readouterr().out)["last"][0]
    assert (last["serving"], last["predicted_p99_ms"]) == ("wide", 40.0)
    assert main(["explain", "digits"]) == 3
    assert "> wide" in capsys.readouterr().out
    assert main(["history"]) == 3
    assert "escape" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["status", "--instance", "../x"], None),
        (["status", "--socket", "/nowhere/s", "--instance", "../x"], None),
        (["explain", "--socket", "/nowhere/s", "--instance", "../x"], None),
        (["history", "--socket", "/nowhere/s", "--instance", "../x"], None),
        (["status", "--socket", "/nowhere/s"], "../x"),
        (["pin", "m", "v", "--instance", "../x"], None),
        (["top", "--instance", "../x"], None),
        (["release", "m", "--instance", "../x"], None),
        (["report", "--instance", "../x"], None),
        (["advice"], "../x"),
        (["served", "m", "--instance", "../x"], None),
        (["doctor", "--instance", "../x"], None),
        (["quality", "m", "--data", "d.npz", "--instance", "../x"], None),
        (["completion", "models", "--instance", "../x"], None),
        (["uninstall-service", "--instance", "../x"], None),
    ],
)
def test_what_is_no_name_of_an_instance_is_a_wrong_command_line(
    argv: list[str],
    named: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if named is not None:
        monkeypatch.setenv("TRITON_GOVERNOR_INSTANCE", named)
    assert main(argv) == 2
    said = capsys.readouterr()
    assert "'../x' is no name of an instance" in said.err
    assert said.out == ""


@pytest.mark.parametrize("command", ["status", "explain", "history"])
def test_the_journal_that_answers_for_a_daemon_is_named(
    old_journal: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    journal = str(tmp_path / "state" / "journal.sqlite3")
    assert main([command, "--socket", str(tmp_path / "other.sock")]) == 3
    said = capsys.readouterr()
    assert str(tmp_path / "other.sock") in said.err
    assert f"what follows is from the journal {journal}" in said.err
    assert said.out
    assert main([command, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["journal"] == journal


def test_something_else_on_the_socket_is_no_governor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def other() -> int:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n")
            writer.close()

        async with await asyncio.start_unix_server(answer, str(tmp_path / "other.sock")):
            return await asyncio.to_thread(
                main, ["unpin", "m", "--socket", f"{tmp_path}/other.sock"]
            )

    assert asyncio.run(other()) == 3
    assert "does not answer" in capsys.readouterr().err


def test_status_starts_fast_and_imports_nothing_heavy(daemon: FakeControl) -> None:
    script = (
        "import sys; from controller.cli.main import main; main(['status'])\n"
        "heavy = {'numpy', 'aiohttp', 'pydantic', 'yaml', 'asyncio', 'sqlite3', 'tritonclient'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - began_s < 5.0  # 0.12 s when idle; the machine may be busy


def test_watch_prints_frames_until_interrupted(daemon: FakeControl) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.cli.main", "status", "--watch", "0.1", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    frames = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(2)
    process.stdout.read()
    process.stdout.close()
    assert process.wait(20) == 0
    assert all(frame["daemon"]["pid"] == 4711 for frame in frames)


def test_a_release_says_what_becomes_of_a_virtual_alias(
    daemon: FakeControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "digits", "--on", "wide", "--why", "a new team"]) == 0
    out = capsys.readouterr().out
    assert "digits is released" in out
    assert "gone when Triton restarts" in out
    assert "governor release digits --write-config" in out
    assert list(daemon.released["digits"][:2]) == ["wide", "a new team"]
    assert main(["adopt", "digits"]) == 0
    assert daemon.released == {}


def test_what_is_to_be_typed_next_names_the_same_daemon(
    daemon: FakeControl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    socket = str(tmp_path / "run" / "governor.sock")
    assert main(["release", "digits", "--socket", socket]) == 0
    out = capsys.readouterr().out
    assert f"  governor release digits --socket {socket} --write-config MODEL_REPOSITORY\n" in out
    monkeypatch.setattr("controller.interfaces.paths.RUN", tmp_path)
    (tmp_path / "triton-governor-edge").symlink_to(tmp_path / "run")
    assert main(["release", "--all", "--instance", "edge"]) == 0
    assert "governor release --all --instance edge --write-config" in capsys.readouterr().out


def test_a_release_needs_a_model_or_all(daemon: FakeControl) -> None:
    assert main(["release"]) == 2
    assert main(["release", "digits", "--all"]) == 2
    assert main(["release", "--all"]) == 0
    assert list(daemon.released) == [None]


def test_a_refused_release_exits_1_and_writes_nothing(
    daemon: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["release", "digits", "--on", "huge", "--write-config", str(tmp_path)]
    assert main(argv) == 1
    assert "not released on huge" in capsys.readouterr().err
    assert not (tmp_path / "digits").exists()


def test_an_alias_is_written_for_a_repository_and_never_over_another(
    daemon: FakeControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["alias", "digits", "--write-config", str(tmp_path)]) == 0
    config = tmp_path / "digits" / "config.pbtxt"
    assert config.read_text() == 'name: "digits"\nplatform: "ensemble"\n'
    assert (tmp_path / "digits" / "1").is_dir()
    assert "--load-model=digits" in capsys.readouterr().out
    assert main(["alias", "digits", "--write-config", str(tmp_path)]) == 0  # the same again
    config.write_text("somebody's")
    assert main(["alias", "digits", "--write-config", str(tmp_path)]) == 1
    assert config.read_text() == "somebody's"
    assert daemon.released == {}  # showing it releases nothing
    capsys.readouterr()
    assert main(["alias", "digits"]) == 0
    assert capsys.readouterr().out.startswith('name: "digits"')


def test_what_advising_and_serving_were_is_told_without_a_daemon(
    old_journal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advice", "--since", "1h", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["name"] == "digits"
    assert main(["advice"]) == 0
    out = capsys.readouterr().out
    assert "WOULD HAVE SERVED %" in out
    assert "at least 0 switches" in out
    assert main(["served", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"] != []
    assert main(["served", "nobody"]) == 1
    assert "it knows digits" in capsys.readouterr().err
    assert main(["served", "digits", "--at", "yesterday"]) == 2
