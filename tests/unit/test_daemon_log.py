"""The log: readable, as JSON, with priorities for journald; the audit is always there."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from controller.daemon.actions import ActionLog
from controller.daemon.log import AUDIT, audit, start_log
from controller.ports import ActionRecord, Outcome

Start = Callable[[str, str, TextIO], None]


@pytest.fixture
def start() -> Iterator[Start]:
    """Begin the log as a fresh process does, without what pytest hangs into it."""
    root = logging.getLogger()
    level, kept = root.level, root.handlers[:]

    def begin(level: str, form: str, stream: TextIO) -> None:
        root.handlers.clear()
        start_log(level, form, stream)

    yield begin
    root.handlers[:] = kept
    root.setLevel(level)


def pin() -> None:
    audit("pin", who="ann", model="digits", outcome="done", told="digits is pinned to small")


def test_a_line_for_a_person_has_time_and_level(start: Start) -> None:
    stream = io.StringIO()
    start("info", "text", stream)
    logging.getLogger("governor").info("governing %s", "digits")
    assert stream.getvalue().endswith(" INFO    governing digits\n")
    assert stream.getvalue()[:4].isdigit()


def test_json_is_one_object_a_line_and_says_who_did_what(start: Start) -> None:
    stream = io.StringIO()
    start("info", "json", stream)
    try:
        int("a\nb")
    except ValueError:
        logging.getLogger("governor").exception("two\nlines")
    pin()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("error", "two\nlines")
    assert "ValueError: invalid literal" in first["traceback"]
    wanted = {"who": "ann", "what": "pin", "model": "digits", "outcome": "done"}
    assert second.items() >= wanted.items()
    assert second["message"] == "pin of digits by ann: done: digits is pinned to small"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_level_hides_the_audit(form: str, start: Start) -> None:
    stream = io.StringIO()
    start("error", form, stream)
    logging.getLogger("governor").warning("hidden")
    pin()
    audit("load", who="the governor", model="digits", outcome="failed", told="", good=False)
    assert len(stream.getvalue().splitlines()) == 2
    assert "hidden" not in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_journald_is_told_the_priority_of_each_line(
    form: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        start("debug", form, stream)
        logging.getLogger("governor").error("one\ntwo")
        logging.getLogger("governor").debug("three")
        AUDIT.warning("four")
    lines = (tmp_path / "journal").read_text().splitlines()
    assert [line[:3] for line in lines] == (
        ["<3>", "<3>", "<7>", "<4>"] if form == "text" else ["<3>", "<7>", "<4>"]
    )
    assert form == "json" or lines[0] == "<3>one"  # no time: journald has it


@pytest.mark.parametrize("told", ["1:1", "", "x", "1"])
def test_a_stream_that_is_not_the_journal_s_gets_no_priorities(
    told: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", told)
    with (tmp_path / "log").open("w") as stream:
        start("info", "text", stream)
        logging.getLogger("governor").error("one")
    assert "ERROR" in (tmp_path / "log").read_text()


class Unused:
    """A journal or telemetry that takes everything."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_more: None


@pytest.mark.parametrize(
    ("outcome", "error", "told"),
    [
        (Outcome.DONE, None, "INFO    switch of m by the governor: done: a to b, 3.4 ms, escape"),
        (
            Outcome.ROLLED_BACK,
            "no answer",
            "WARNING switch of m by the governor: rolled_back: a to b, 3.4 ms, escape, no answer",
        ),
        (Outcome.NOTHING_TO_DO, None, None),
        (Outcome.BUSY, None, None),
    ],
)
def test_each_action_on_the_server_is_a_line(
    outcome: Outcome, error: str | None, told: str | None, start: Start
) -> None:
    stream = io.StringIO()
    start("error", "text", stream)
    log = ActionLog(Unused(), Unused())  # type: ignore[arg-type]
    log.record(ActionRecord("switch", "m", "a", "b", outcome, 0.0, 0.002, 0.0034, "escape", error))
    assert stream.getvalue().rstrip().endswith(told or "")
    assert bool(stream.getvalue()) == (told is not None)
