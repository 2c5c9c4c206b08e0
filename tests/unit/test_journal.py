"""The journal on a real file: what is kept, what is bounded, what a bad disk does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.journal import Journal, JournalReader, JournalUnreadableError
from controller.planning.decision import Candidate, Decision, Reason
from controller.ports import ActionRecord, Outcome

MIB = 1024 * 1024


def a_decision(
    now_s: float, *, serving: str = "wide", target: str = "wide", candidates: int = 2
) -> Decision:
    candidate = Candidate("wide", "digits_wide", 0.9, None, True, *[0.01] * 7, feasible=True)
    return Decision(
        now_s=now_s,
        sequence=int(now_s * 100),
        model="digits",
        serving=serving,
        desired=target,
        target=target,
        reason=Reason.STEADY if serving == target else Reason.ESCAPE,
        candidates=(candidate,) * candidates,
        rate_rps=1.0,
        rate_p95_rps=2.0,
        rows_per_request=1.0,
        backlog_requests=0,
        backlog_s=0.0,
        drift_ratio=1.0,
    )


def an_action(index: int, model: str = "digits") -> ActionRecord:
    return ActionRecord(
        kind="switch",
        model=model,
        source="digits_wide",
        target=f"target_{index}",
        outcome=Outcome.DONE,
        started_s=float(index),
        switch_s=0.002,
        transaction_s=0.010,
        reason="escape",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite3"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, 8 * MIB)
    journal.open()
    yield journal
    journal.close(5.0)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for another thread's disk: the only thing here that is not instant."""
    pause = threading.Event()
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        pause.wait(0.01)


def decision_count(path: Path) -> int:
    connection = sqlite3.connect(path)
    count = connection.execute("SELECT count(*) FROM decisions").fetchone()[0]
    connection.close()
    return int(count)


def test_what_was_recorded_is_there_after_a_restart(journal: Journal, path: Path) -> None:
    journal.decision(a_decision(1.0, target="narrow"))
    journal.action(an_action(1))
    journal.event("pin", "digits", "pinned to wide by ada", {"for_s": 60.0})
    journal.save_learned("service", {"weights": [0.1, 0.2]})
    assert journal.close(5.0)
    again = Journal(path, 8 * MIB)
    again.open()
    assert again.load_learned("service") == {"weights": [0.1, 0.2]}
    assert again.load_learned("nothing") is None
    assert again.recent_actions("digits", 5)[0]["target"] == "target_1"
    again.close(5.0)
    with JournalReader(path) as reader:
        time_unix_s, decision = reader.last_decisions()[0]
        assert decision["target"] == "narrow"
        assert len(decision["candidates"]) == 2
        assert abs(time_unix_s - time.time()) < 60
        event = reader.events(5)[0]
        assert (event["kind"], event["data"]) == ("pin", {"for_s": 60.0})
        assert reader.learned("service") == {"weights": [0.1, 0.2]}


def test_steady_decisions_are_thinned_to_one_a_second_and_changes_never(
    journal: Journal, path: Path
) -> None:
    for tick in range(100):  # two seconds at 50 ticks a second
        journal.decision(a_decision(10.0 + tick * 0.02))
    journal.decision(a_decision(12.0, target="narrow"))
    journal.decision(a_decision(12.02, target="narrow"))  # the same change, still under way
    journal.decision(a_decision(12.04, serving="narrow", target="wide"))
    journal.decision(a_decision(12.06, target="narrow"))
    assert journal.close(5.0)
    assert decision_count(path) == 2 + 3


def test_recent_actions_are_newest_first_and_by_model(journal: Journal) -> None:
    for index in range(5):
        journal.action(an_action(index, "digits" if index % 2 else "words"))
    assert [row["target"] for row in journal.recent_actions(None, 2)] == ["target_4", "target_3"]
    assert [row["target"] for row in journal.recent_actions("words", 9)] == [
        "target_4",
        "target_2",
        "target_0",
    ]


def test_the_files_stay_within_their_size_and_learned_data_is_never_dropped(path: Path) -> None:
    journal = Journal(path, 2 * MIB)
    journal.open()
    journal.save_learned("service", list(range(20_000)))
    peak_bytes = 0
    for index in range(3000):
        journal.decision(a_decision(float(index), candidates=8))
        if index % 200 == 199:
            until(lambda: journal.health()["queued"] == 0)
            peak_bytes = max(peak_bytes, journal.health()["size_bytes"])
    journal.action(an_action(1))
    assert journal.close(10.0)
    assert journal.health()["dropped"] == 0
    assert peak_bytes <= 2 * MIB
    assert 0 < decision_count(path) < 3000
    with JournalReader(path) as reader:
        assert reader.learned("service") == list(range(20_000))
        assert reader.last_decisions()[0][1]["now_s"] == 2999.0
        assert len(reader.actions(None, 5)) == 1


def test_a_corrupt_file_is_set_aside_and_a_new_one_begun(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this was never a database, " * 400)
    journal = Journal(path, 8 * MIB)
    journal.open()
    journal.action(an_action(1))
    assert journal.close(5.0)
    health = journal.health()
    assert health["up"]
    assert health["set_aside"].startswith(str(path) + ".broken-")
    assert Path(health["set_aside"]).read_bytes().startswith(b"this was never")
    with JournalReader(path) as reader:
        assert len(reader.actions(None, 5)) == 1
        assert "began a new file" in reader.events(1)[0]["message"]


def test_learned_data_is_read_out_of_a_damaged_file(path: Path) -> None:
    journal = Journal(path, 8 * MIB)
    journal.open()
    journal.save_learned("service", {"a": 1})
    until(lambda: journal.health()["last_write_age_s"] is not None)
    for index in range(400):
        journal.decision(a_decision(float(index), candidates=6))
    assert journal.close(10.0)
    connection = sqlite3.connect(path)
    root = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'decisions'"
    ).fetchone()[0]
    connection.close()
    with path.open("r+b") as file:  # the root of `decisions`; `learned` is elsewhere
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    again = Journal(path, 8 * MIB)
    again.open()
    again.decision(a_decision(1.0))
    until(lambda: again.health()["set_aside"] is not None and again.health()["queued"] == 0)
    assert again.load_learned("service") == {"a": 1}
    assert again.close(5.0)
    with JournalReader(path) as reader:
        assert reader.learned("service") == {"a": 1}


def test_a_damaged_learned_value_is_not_believed(path: Path) -> None:
    journal = Journal(path, 8 * MIB)
    journal.open()
    journal.save_learned("service", {"a": 1})
    assert journal.close(5.0)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE learned SET value = '{\"a\":2}'")
    connection.commit()
    connection.close()
    again = Journal(path, 8 * MIB)
    again.open()
    assert again.load_learned("service") is None
    again.close(5.0)


def test_a_journal_of_a_newer_governor_is_set_aside_not_overwritten(path: Path) -> None:
    journal = Journal(path, 8 * MIB)
    journal.open()
    assert journal.close(5.0)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    again = Journal(path, 8 * MIB)
    again.open()
    assert again.close(5.0)
    assert again.health()["up"]
    assert ".broken-" in again.health()["set_aside"]


def test_a_locked_file_degrades_the_journal_and_nothing_is_lost(
    journal: Journal, path: Path
) -> None:
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    began_s = time.monotonic()
    journal.action(an_action(1))
    journal.save_learned("service", 7)
    assert time.monotonic() - began_s < 0.1  # the caller never waits
    until(lambda: not journal.health()["up"])
    assert "locked" in journal.health()["error"]
    assert journal.load_learned("service") == 7
    blocker.execute("ROLLBACK")
    blocker.close()
    until(lambda: journal.health()["up"] and journal.health()["queued"] == 0)
    assert journal.close(5.0)
    with JournalReader(path) as reader:
        assert len(reader.actions(None, 5)) == 1
        assert reader.learned("service") == 7


def test_a_damaged_value_is_said_and_the_load_of_sound_decisions_still_read(
    journal: Journal, path: Path
) -> None:
    journal.save_learned("service", [1, 2])
    journal.decision(a_decision(1.0))
    assert journal.close(5.0)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE learned SET value = '[1, '")
        insert = (
            "INSERT INTO decisions(time_unix_s, monotonic_s, model, reason, changes, body) "
            "VALUES (?, 0, 'digits', 'steady', 0, ?)"
        )
        for body in ("{", '{"rate_rps": "many"}', '{"rate_rps": 5, "rows_per_request": 2.5}'):
            connection.execute(insert, (time.time(), body))
    with JournalReader(path) as reader:
        with pytest.raises(JournalUnreadableError, match="'service' is damaged"):
            reader.learned("service")
        loads = [(rate, rows) for _, rate, rows in reader.loads("digits", 0.0)]
        assert loads == [(1.0, 1.0), (None, None), (5.0, 2.5)]
        assert reader.loads("digits", time.time() + 60.0) == []
        assert reader.loads("other", 0.0) == []


def test_a_folder_that_cannot_be_made_degrades_the_journal_and_is_tried_again(
    tmp_path: Path,
) -> None:
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file where the folder should be")
    journal = Journal(in_the_way / "journal.sqlite3", 8 * MIB)
    journal.open()
    journal.event("start", None, "hello")
    assert not journal.health()["up"]
    assert "state" in journal.health()["error"]
    in_the_way.unlink()
    until(lambda: bool(journal.health()["up"]) and journal.health()["queued"] == 0)
    assert journal.close(5.0)
    assert journal.health()["written"] == 1


def test_a_removed_file_is_noticed_and_learned_data_written_again(
    journal: Journal, path: Path
) -> None:
    journal.save_learned("service", [1, 2])
    until(lambda: journal.health()["last_write_age_s"] is not None)
    for file in path.parent.iterdir():
        file.unlink()
    journal.event("note", None, "after the removal")
    assert journal.close(5.0)
    with JournalReader(path) as reader:
        assert reader.learned("service") == [1, 2]
        assert reader.events(1)[0]["message"] == "after the removal"


def test_a_full_queue_drops_decisions_first_and_counts_them(path: Path) -> None:
    journal = Journal(path, 8 * MIB)  # not opened: nothing takes from the queue
    for index in range(5000):
        journal.decision(a_decision(float(index)))
    for index in range(2000):
        journal.action(an_action(index))
    health = journal.health()
    assert health["queued"] == 4096
    assert health["dropped"] == 5000 + 2000 - 4096
    assert not journal.close(0.1)


def test_a_record_that_cannot_be_stored_is_dropped_alone(journal: Journal, path: Path) -> None:
    journal.event("bad", None, "holds an object", {"x": object()})
    journal.action(dataclasses.replace(an_action(1), switch_s=2**70))  # type: ignore[arg-type]
    journal.save_learned("bad", {1, 2})
    journal.event("good", None, "fine")
    assert journal.close(5.0)
    assert journal.health()["up"]
    assert journal.health()["dropped"] == 3
    with JournalReader(path) as reader:
        assert "good" in {event["kind"] for event in reader.events(5)}


def test_a_reader_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(JournalUnreadableError, match="there is no journal at"):
        JournalReader(tmp_path / "absent")
    (tmp_path / "text").write_text("not a database" * 100)
    with pytest.raises(JournalUnreadableError, match="cannot read the journal"):
        JournalReader(tmp_path / "text")


WRITER = """
import sys
from pathlib import Path
from controller.journal import Journal
journal = Journal(Path(sys.argv[1]), 8 << 20)
journal.open()
print("ready", flush=True)
number = 0
while True:
    number += 1
    journal.event("n", None, str(number))
    journal.save_learned("number", number)
    while journal.health()["queued"] or journal._has_work():
        pass
    print(number, flush=True)
"""

FULL_DISK = """
import resource, sys, time
from pathlib import Path
from controller.journal import Journal
journal = Journal(Path(sys.argv[1]), 64 << 20)
journal.open()
journal.save_learned("service", [1, 2, 3])
journal.event("n", None, "before")
def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
until(lambda: journal.health()["queued"] == 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
for index in range(300):
    journal.event("n", None, "x" * 1000)
until(lambda: not journal.health()["up"])
assert "full" in journal.health()["error"] or "disk" in journal.health()["error"]
assert journal.load_learned("service") == [1, 2, 3]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
until(lambda: journal.health()["up"] and journal.health()["queued"] == 0)
assert journal.close(5.0)
print(journal.health()["written"], journal.health()["dropped"], journal.health()["set_aside"])
"""


def test_a_kill_loses_nothing_that_was_written(path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().splitlines()
        process.stdout.close()
        process.wait(10)
        told = [int(line) for line in [*lines[1:], *rest] if line.strip().isdigit()]
        with JournalReader(path) as reader:
            assert reader.learned("number") >= told[-1] - 1  # the last line may be half printed
            assert int(reader.events(1)[0]["message"]) >= told[-1] - 1


def test_a_full_disk_degrades_the_journal_until_there_is_room(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["301", "0", "None"]
