"""`governor report` as a command: what it reads, writes and refuses."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.journal import Journal
from controller.journal.minutes import MachineMinute, ModelMinute
from controller.journal.reader import JournalReader
from controller.journal.records import SCORE_EVENT


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite3"
    journal = Journal(path, 8 << 20)
    journal.open()
    now = int(time.time()) // 60 * 60
    for ago in (2, 3, 4, 300):
        at = now - 60 * ago
        for name in ("chat", "vision"):
            minute = ModelMinute(0.08, 99.0, seconds=60.0, completed=10, arrived=10.0, unknown=10.0)
            journal.minute(at, name, minute)
        journal.minute(at, None, MachineMinute(seconds=60.0, triton_s=60.0, ticks=600))
    journal.event("pin", "chat", "chat is pinned", {"who": "ada"})
    assert journal.close(10.0)
    return path


def test_it_writes_one_page_without_a_daemon(journal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--journal", str(journal)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "vision" in text
    out, err = capsys.readouterr()
    assert out == ""
    assert "no request was traced" in err
    assert main(["report", "--journal", str(journal)]) == 0  # over an earlier report
    assert not list(tmp_path.glob(".*"))


def test_json_has_the_same_numbers_and_writes_no_file(journal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--journal", str(journal), "--json", "--since", "1h"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(m["name"], m["requests"]["completed"]) for m in document["models"]] == [
        ("chat", 30),
        ("vision", 30),
    ]
    assert document["models"][0]["attainment"] is None
    assert not (tmp_path / "report.html").exists()


def test_a_day_of_scores_hides_no_event(tmp_path, capsys):
    path = tmp_path / "day.sqlite3"
    journal = Journal(path, 8 << 20)
    journal.open()
    journal.event("pin", "chat", "chat is pinned", {"who": "ada"})
    for _ in range(1440):
        journal.event(SCORE_EVENT, None, "the last minute's requests", {"chat": {"requests": 9}})
    journal.event("pin", "chat", "chat is free again", None)
    assert journal.close(10.0)
    assert main(["report", "--journal", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["message"] for one in document["events"]] == [
        "chat is pinned",
        "chat is free again",
    ]
    assert document["events_in_all"] == 2
    with JournalReader(path) as reader:  # they stay for those who ask for them
        assert len(reader.events_of(SCORE_EVENT, 0.0, time.time() + 1.0)) == 1440


def test_before_the_oldest_minute_nothing_is_called_unwatched(journal, tmp_path, capsys):
    assert main(["report", "--journal", str(journal), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    oldest = int(time.time()) // 60 * 60 - 300 * 60
    gap = document["machine"]["not_watched"][0]
    assert oldest <= gap[0] <= oldest + 120  # a minute may have passed meanwhile
    assert document["machine"]["span_s"] == pytest.approx(300 * 60, abs=180)
    (note,) = [note for note in document["notes"] if "kept since" in note]
    assert "does not know" in note
    assert main(["report", "--journal", str(journal), "--json", "--since", "2h"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["not_watched"][0][0] == pytest.approx(time.time() - 7200, abs=120)
    assert not [note for note in document["notes"] if "kept since" in note]


def test_minutes_that_were_dropped_for_room_are_no_gap(tmp_path, capsys):
    path = tmp_path / "small.sqlite3"
    journal = Journal(path, 8 << 20)
    journal.open()
    now = int(time.time()) // 60 * 60
    for ago in (200, 100, 3, 2):
        journal.minute(now - 60 * ago, None, MachineMinute(seconds=60.0, ticks=600))
    assert journal.close(10.0)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM minutes WHERE id = 1")
    target = tmp_path / "small.html"
    assert main(["report", "--journal", str(path), "--json", "-o", str(target)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["not_watched"][0] == [now - 60 * 99, now - 60 * 3]
    assert any("The minutes before" in note for note in document["notes"])
    assert not [note for note in document["notes"] if "kept since" in note]
    # Nor are the plots marked there.
    plots = json.loads(target.read_text().partition('id="data">')[2].partition("</script>")[0])
    first, step_s, _ = plots["fine"]
    assert first + step_s * (min(plots["down"]) + 1) > now - 60 * 100


def test_a_journal_that_was_just_taken_over_claims_no_gap(journal, capsys):
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("DELETE FROM minutes")
    assert main(["report", "--journal", str(journal), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["not_watched"] == []
    assert any("No minute is kept yet" in note for note in document["notes"])


def test_of_one_model_nothing_of_others_is_told(journal, capsys):
    assert main(["report", "--journal", str(journal), "--model", "vision", "-o", "-"]) == 0
    text = capsys.readouterr().out
    assert "vision" in text
    assert "chat is pinned" not in text


def test_it_finds_the_journal_as_the_other_commands_do(journal, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert main(["report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["journal"] == str(journal)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--journal", "none.sqlite3"], "there is no journal at none.sqlite3"),
        (["--model", "visoin"], "did you mean vision?"),
        (["--model", "x"], "there is chat, vision"),
        (["-o", "missing/report.html"], "cannot write missing/report.html"),
        (["-o", "journal.sqlite3"], "is there and is no report"),
        (["-o", "."], "is no file"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    journal, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    before = journal.read_bytes()
    assert main(["report", "--journal", str(journal), *words]) == 1
    assert said in capsys.readouterr().err
    assert journal.read_bytes() == before


@pytest.mark.parametrize("words", [["--since", "yesterday"], ["--json", "-o", "-"]])
def test_a_wrong_command_line_is_a_usage_error(journal, words, capsys):
    assert main(["report", "--journal", str(journal), *words]) == 2
    assert capsys.readouterr().err


def test_a_time_of_which_nothing_is_recorded_says_how_old_the_newest_is(tmp_path, capsys):
    path = tmp_path / "old.sqlite3"
    journal = Journal(path, 8 << 20)
    journal.open()
    journal.minute(int(time.time()) - 3 * 86_400, None, MachineMinute(seconds=60.0, ticks=1))
    assert journal.close(10.0)
    assert main(["report", "--journal", str(path)]) == 1
    assert "its newest record is 3d" in (said := capsys.readouterr().err)
    assert "--since 96h" in said
    empty = tmp_path / "empty.sqlite3"
    journal = Journal(empty, 8 << 20)
    journal.open()
    assert journal.close(10.0)
    assert main(["report", "--journal", str(empty)]) == 1
    assert "holds nothing yet" in capsys.readouterr().err


def test_a_journal_of_version_1_is_told_of_and_stays_as_it_is(journal, tmp_path, capsys):
    connection = sqlite3.connect(journal)
    connection.executescript("DROP TABLE minutes; UPDATE meta SET value = '1'; VACUUM;")
    connection.close()
    before = journal.read_bytes()
    target = tmp_path / "old.html"
    assert main(["report", "--journal", str(journal), "-o", str(target)]) == 0
    assert "kept no minutes (schema version 1)" in capsys.readouterr().err
    text = target.read_text()
    assert "chat is pinned" in text
    assert "data-plot" not in text.partition("<script")[0]
    assert journal.read_bytes() == before
