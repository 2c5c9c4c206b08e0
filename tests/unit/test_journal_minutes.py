"""Minutes in the journal: sums that add up, files of older versions, and who goes first."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_journal import MIB, a_decision, an_action, until

from controller.journal import Journal, JournalReader
from controller.journal.minutes import (
    MachineMinute,
    ModelMinute,
    add_gpu,
    bucket_of,
    quantile_s,
)
from controller.journal.store import Store

# The schema that version 1 wrote, word for word: what a migration must be able to read.
VERSION_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE decisions(
  id INTEGER PRIMARY KEY, time_unix_s REAL NOT NULL, monotonic_s REAL NOT NULL,
  model TEXT NOT NULL, serving TEXT, target TEXT, reason TEXT NOT NULL,
  changes INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX decisions_by_model ON decisions(model, id);
CREATE TABLE actions(
  id INTEGER PRIMARY KEY, time_unix_s REAL NOT NULL, monotonic_s REAL NOT NULL,
  kind TEXT NOT NULL, model TEXT NOT NULL, source TEXT, target TEXT, outcome TEXT NOT NULL,
  switch_s REAL, transaction_s REAL, reason TEXT NOT NULL, error TEXT);
CREATE INDEX actions_by_model ON actions(model, id);
CREATE TABLE events(
  id INTEGER PRIMARY KEY, time_unix_s REAL NOT NULL, monotonic_s REAL NOT NULL,
  kind TEXT NOT NULL, model TEXT, message TEXT NOT NULL, data TEXT);
CREATE TABLE learned(
  key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL, updated_unix_s REAL NOT NULL);
INSERT INTO meta VALUES ('schema_version', '1');
INSERT INTO decisions VALUES (7, 1000.5, 10.5, 'digits', 'wide', 'narrow', 'escape', 1, '{}');
INSERT INTO actions VALUES
  (3, 1000.6, 10.6, 'switch', 'digits', 'a', 'b', 'done', 0.002, 0.01, 'escape', NULL);
INSERT INTO events VALUES (2, 1000.7, 10.7, 'pin', 'digits', 'pinned by ada', '{"who":"ada"}');
INSERT INTO learned VALUES ('service', '{"weights":[0.1]}', {crc}, 1000.8);
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A journal as version 1 left it, in its journal mode."""
    import zlib

    path = tmp_path / "journal.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(VERSION_1.replace("{crc}", str(zlib.crc32(b'{"weights":[0.1]}'))))
    connection.close()
    return path


def version(path: Path) -> str:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[0]
    connection.close()
    return str(found)


def everything(path: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(path)
    tables = ("decisions", "actions", "events", "learned")
    found = {
        table: connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
        for table in tables
    }
    connection.close()
    return found


@st.composite
def minutes(draw: st.DrawFn) -> ModelMinute:
    count = st.integers(0, 10_000)
    amount = st.integers(0, 10_000).map(lambda n: n / 4.0)  # sums of these are exact
    names = st.sampled_from(["full", "int8", "</script>"])
    values = {
        one.name: draw(count if one.type == "int" else amount)
        for one in dataclasses.fields(ModelMinute)
        if one.type in ("int", "float")
    }
    return ModelMinute(
        **values,
        variants={k: [v, v] for k, v in draw(st.dictionaries(names, amount)).items()},
        reasons=draw(st.dictionaries(names, amount)),
        latencies=draw(st.dictionaries(st.integers(0, 191), amount)),
    )


def whole(of: list[ModelMinute]) -> ModelMinute:
    total = ModelMinute()
    for one in of:
        total.add(one)
    return total


@given(st.lists(minutes(), max_size=6), st.integers(0, 6))
def test_minutes_add_up_whatever_is_added_first(of: list[ModelMinute], cut: int) -> None:
    both = whole(of[:cut])
    both.add(whole(of[cut:]))
    assert repr(both) == repr(whole(of))


@given(minutes())
def test_a_minute_is_read_as_it_was_stored_to_five_digits(minute: ModelMinute) -> None:
    again = ModelMinute.read(json.loads(json.dumps(minute.stored())))
    for one in dataclasses.fields(ModelMinute):
        was, now = getattr(minute, one.name), getattr(again, one.name)
        if isinstance(was, float):
            if was:
                assert now == pytest.approx(was, rel=1e-4), one.name
        elif isinstance(was, int):
            assert now == was
    assert again.variants == {k: pytest.approx(v, rel=1e-4) for k, v in minute.variants.items()}
    kept = {k: w for k, w in minute.latencies.items() if w > 0.0}
    assert again.latencies == {k: pytest.approx(w, rel=1e-4) for k, w in kept.items()}


@given(st.lists(st.floats(1e-4, 60.0), min_size=1, max_size=300), st.floats(0.01, 0.99))
def test_a_quantile_of_the_histogram_is_within_a_bucket_of_the_exact_one(
    latencies: list[float], probability: float
) -> None:
    histogram: dict[int, float] = {}
    for latency in latencies:
        histogram[bucket_of(latency)] = histogram.get(bucket_of(latency), 0.0) + 1.0
    found = quantile_s(histogram, probability)
    ordered = sorted(latencies)
    rank = probability * len(ordered)
    near = {ordered[min(max(math.ceil(rank + o) - 1, 0), len(ordered) - 1)] for o in (-1e-9, 1e-9)}
    assert found is not None
    assert any(one / 1.0906 <= found <= one * 1.0906 for one in near)


def test_a_quantile_of_nothing_is_not_zero() -> None:
    assert quantile_s({}, 0.99) is None
    assert quantile_s({3: 0.0}, 0.99) is None


@pytest.mark.parametrize("odd", [-1.0, 0.0, 1e-9, 1e9, math.inf, math.nan])
def test_every_latency_has_a_bucket(odd: float) -> None:
    assert 0 <= bucket_of(odd) < 192


@pytest.mark.parametrize(
    "body",
    [
        {"sums": "many", "variants": 3, "latencies": ["x"], "reasons": []},
        {"sums": [1, 99, 60, 3, float("nan")], "latencies": [-5, 1, None], "variants": {"a": [1]}},
        {"sums": [1, 99, 60, 3, True], "latencies": [10**12, 1.0], "reasons": {"steady": "long"}},
        {"sums": [None, {}, [], 3, 10**400], "latencies": [190, 1, 1, 1, 1]},
    ],
)
def test_a_damaged_minute_is_read_as_zeros(body: dict[str, object]) -> None:
    minute = ModelMinute.read(body)
    assert minute.completed == 0
    assert all(0 <= bucket < 192 for bucket in minute.latencies)
    MachineMinute.read({"gpus": {"0": ["x"]}, "seconds": []})


def test_the_places_of_stored_numbers_are_what_journals_of_the_past_have() -> None:
    model, machine = ModelMinute(), MachineMinute()
    for minute in (model, machine):
        numbers = [f.name for f in dataclasses.fields(minute) if f.type in ("int", "float")]
        for place, name in enumerate(numbers):
            setattr(minute, name, place)
        assert minute.stored()["sums"] == list(range(len(numbers)))  # none forgotten
    assert (model.completed, model.unknown, model.singles, model.peak_rps) == (4, 12, 19, 25)
    assert (machine.ticks, machine.host_s) == (2, 5)


def test_what_a_journal_was_given_its_reader_gives_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    journal = Journal(path, 8 * MIB)
    journal.open()
    machine = MachineMinute(seconds=60.0, triton_s=30.0, ticks=600)
    add_gpu(machine.gpus, "0", (60.0, 30.0, 0.0, 1e9, 71.0))
    journal.minute(1200, "digits", ModelMinute(completed=5, seconds=60.0))
    journal.minute(1200, None, machine)
    journal.minute(1260, "digits", ModelMinute(completed=7, latencies={40: 2.0, 44: 1.5}))
    assert journal.close(5.0)
    with JournalReader(path) as reader:
        models, machines = reader.minutes(1200, 1260)
        assert [(t, name, m.completed) for t, name, m in models] == [(1200, "digits", 5)]
        assert machines == [(1200, machine)]
        later, _ = reader.minutes(1260, 2000)
        assert later[0][2].latencies == {40: 2.0, 44: 1.5}
        assert reader.newest_unix_s() == 1260


def test_a_file_of_version_1_becomes_one_of_this_and_loses_nothing(old: Path) -> None:
    before = everything(old)
    journal = Journal(old, 8 * MIB)
    journal.open()
    assert journal.load_learned("service") == {"weights": [0.1]}
    assert journal.recent_actions(None, 9)[0]["target"] == "b"
    journal.minute(1200, "digits", ModelMinute(completed=5))
    assert journal.close(5.0)
    assert journal.health()["set_aside"] is None
    assert version(old) == "2"
    assert everything(old) == before
    with JournalReader(old) as reader:
        assert reader.minutes(0, 2000)[0][0][2].completed == 5


# Ends without a word when the migration has made its table, as kill -9 would.
KILLED = """
import os, sqlite3, sys
from pathlib import Path
from controller.journal import store
real = store._execute_all
def deadly(connection, sql):
    real(connection, sql)
    assert connection.execute("SELECT count(*) FROM minutes").fetchone() == (0,)
    os._exit(9)
store._execute_all = deadly
store.Store(Path(sys.argv[1]), 8 << 20).open()
"""


def test_a_migration_that_was_killed_is_made_anew(old: Path) -> None:
    before = everything(old)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(old)], check=False, timeout=60)
    assert ended.returncode == 9
    assert version(old) == "1"
    with JournalReader(old) as reader:
        assert not reader.has_minutes()
    store = Store(old, 8 * MIB)
    store.open()
    store.close()
    assert (version(old), everything(old)) == ("2", before)


@pytest.mark.parametrize("found", ["3", "0", "two", ""])
def test_a_newer_or_unknown_version_is_set_aside_as_it_is(old: Path, found: str) -> None:
    connection = sqlite3.connect(old)
    connection.execute("UPDATE meta SET value = ?", (found,))
    connection.commit()
    connection.close()
    before = everything(old)
    journal = Journal(old, 8 * MIB)
    journal.open()
    until(lambda: journal.health()["up"])
    assert journal.load_learned("service") == {"weights": [0.1]}  # salvaged
    assert journal.close(5.0)
    aside = journal.health()["set_aside"]
    assert (version(Path(aside)), everything(Path(aside))) == (found, before)
    assert version(old) == "2"


def test_a_reader_says_that_a_file_of_version_1_has_no_minutes(old: Path) -> None:
    old.chmod(0o400)
    with JournalReader(old) as reader:
        assert not reader.has_minutes()
        assert reader.newest_unix_s() == 1000.7
        assert [one["target"] for one in reader.between("actions", 0, 2000)] == ["b"]
        assert [one["data"] for one in reader.between("events", 0, 2000)] == [{"who": "ada"}]
        assert reader.between("events", 1001, 2000) == []
        assert reader.dropped_before("actions") == 1000.6  # numbers 1 and 2 are gone
    assert version(old) == "1"


def a_full_minute(seed: int) -> ModelMinute:
    """A minute as a busy model leaves it: five variants seen, traces over two octaves."""
    chance = random.Random(seed)
    minute = ModelMinute(latency_s=0.08, percentile=99.0)
    for one in dataclasses.fields(minute):
        if one.type == "int":
            setattr(minute, one.name, chance.randrange(1, 1000))
        elif one.type == "float" and one.name not in ("latency_s", "percentile"):
            setattr(minute, one.name, chance.uniform(1.0, 5000.0))
    for variant in ("full", "int8", "small"):
        minute.variants[variant] = [chance.uniform(0, 60), chance.uniform(0, 3000)]
    for reason in ("steady", "best_feasible", "escape", "dwell"):
        minute.reasons[reason] = chance.uniform(0, 60)
    for bucket in range(50, 70):
        minute.latencies[bucket] = chance.uniform(0, 200)
    return minute


def test_a_day_of_20_models_fits_a_journal_of_24_mib_and_decisions_have_room(
    tmp_path: Path,
) -> None:
    from controller.journal.records import DecisionRow, MinuteRow, Stamp

    path = tmp_path / "journal.sqlite3"
    store = Store(path, 24 * MIB)
    store.open()
    decision = DecisionRow(Stamp(1.0, 1.0), a_decision(1.0, candidates=8))
    busy = [a_full_minute(i) for i in range(20)]
    machine = MachineMinute(seconds=60.0, ticks=600)
    for first in range(0, 86_400, 600):
        rows = []
        for begins in range(first, first + 600, 60):
            rows += [MinuteRow(begins, f"model{i}", busy[i]) for i in range(20)]
            rows.append(MinuteRow(begins, None, machine))
        store.write([*rows, *[decision] * 120], {}, 0.0)
        store.bound()
    assert store.size_bytes() <= 24 * MIB
    store.close()
    with JournalReader(path) as reader:
        models, machines = reader.minutes(0, 86_400)
        assert (len(models), len(machines)) == (20 * 1440, 1440)
        assert reader.last_decisions()


def test_minutes_are_bounded_too_and_do_not_push_everything_else_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    journal = Journal(path, 1 * MIB)
    journal.open()
    busy = a_full_minute(1)
    for minute in range(3000):
        journal.minute(60 * minute, "digits", busy)
        if minute % 1000 == 999:
            until(lambda: journal.health()["queued"] == 0)
            assert journal.health()["size_bytes"] <= MIB
    for index in range(50):
        journal.action(an_action(index))
        journal.decision(a_decision(10.0 * index))
    assert journal.close(10.0)
    with JournalReader(path) as reader:
        models, _ = reader.minutes(0, 1e9)
        kept = [begins for begins, _, _ in models]
        assert len(kept) > 600
        assert kept == list(range(kept[0], 180_000, 60))  # the newest, without a hole
        assert len(reader.actions(None, 99)) == 50
        assert reader.last_decisions()
