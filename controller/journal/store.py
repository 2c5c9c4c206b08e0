"""The journal's database file: opening, writing, bounding and setting a broken one aside.

Owns everything that blocks on the disk; one thread uses it. It must not know of queues or of
the event loop, and it hides no error: the journal above decides what an error means.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from controller.journal.records import ACTION_COLUMNS, Row, checksum, insertion

SCHEMA_VERSION = 2
KEPT_ASIDE = 2  # set-aside files that stay; each may be as large as the journal
_PAGE_BYTES = 4096
_MIN_BYTES = 1024 * 1024
# What goes first when room is short. Minutes are the last, so they have a share of their own: the
# oldest of them beyond it go before everything, or they would end up as all that there is.
_TABLES_BY_WORTH = ("decisions", "events", "actions", "minutes")
_MINUTES_SHARE = 0.75
_MINUTE_ROW_BYTES = 40  # beside its body: its columns, its index and the rest of its pages

_MINUTES = """
CREATE TABLE minutes(
  id INTEGER PRIMARY KEY, time_unix_s INTEGER NOT NULL, model TEXT, body TEXT NOT NULL);
CREATE INDEX minutes_by_time ON minutes(time_unix_s);
"""
_SCHEMA = f"""{_MINUTES}
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
"""
# What makes a file of an older version one of the next, by the version that it has.
_MIGRATIONS = {1: _MINUTES}


class ForeignSchemaError(sqlite3.DatabaseError):
    """The file is a sound database, but not one that this version can write."""


def lenient_text(raw: bytes) -> str:
    """Decode text of a file that may be damaged: one bad row must not hide the others."""
    return raw.decode("utf-8", "replace")


def is_broken(error: BaseException) -> bool:
    """Return whether an error means that the file itself is damaged or not ours."""
    if isinstance(error, ForeignSchemaError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Store:
    """One open journal file."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max(max_bytes, _MIN_BYTES)
        # The write-ahead log and one batch on its way count too: room is left for both.
        self._main_bytes = self.max_bytes * 85 // 100
        self.batch_rows = max(16, min(256, self.max_bytes // 40 // 2048))
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None

    def open(self) -> None:
        """Open the file, or begin a new one. Raises sqlite3.Error, OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.exists():  # decisions name models and operators: not for everybody
            # Not through a link to nothing, which somebody may have laid to have a file made.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640))
        connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        connection.text_factory = lenient_text
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._inode = self.path.stat().st_ino

    def close(self) -> None:
        """Close the file; what was committed is kept whatever happens here."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    @property
    def is_open(self) -> bool:
        """Return whether there is a file to write to."""
        return self._connection is not None

    def vanished(self) -> bool:
        """Return whether somebody removed or replaced the file: writes would go nowhere."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def size_bytes(self) -> int:
        """Return the bytes that the journal holds on disk, its write-ahead log included."""
        total = 0
        for name in self._files(self.path):
            with contextlib.suppress(OSError):
                total += name.stat().st_size
        return total

    def write(self, rows: Iterable[Row], learned: Mapping[str, str], now_unix_s: float) -> int:
        """Store rows and learned values in one transaction; return how many rows were unfit.

        Raises sqlite3.Error, and then nothing of it was stored.
        """
        connection = self._open_connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            unfit = sum(not _insert(connection, row) for row in rows)
            for key, blob in learned.items():
                connection.execute(
                    "INSERT OR REPLACE INTO learned(key, value, crc, updated_unix_s)"
                    " VALUES (?, ?, ?, ?)",
                    (key, blob, checksum(blob), now_unix_s),
                )
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return unfit

    def learned(self) -> dict[str, str]:
        """Return every learned value that is whole, as JSON text by key."""
        return _sound_learned(self._open_connection())

    def actions(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest actions, newest first."""
        return read_actions(self._open_connection(), None, limit)

    def bound(self) -> int:
        """Delete the oldest records once the file is too large; return how many."""
        connection = self._open_connection()
        if self._used_bytes(connection) <= self._main_bytes:
            return 0
        removed = self._drop_old_minutes(connection)
        while self._used_bytes(connection) > self._main_bytes * 95 // 100:
            gone = 0
            for table in _TABLES_BY_WORTH:
                gone = _delete_oldest(connection, table, 2 * self.batch_rows)
                if gone:
                    break
            if not gone:
                break  # only learned data is left, and that is never dropped
            removed += gone
        # Free pages are used again; only a file above its bound is made to shrink.
        while self._pages(connection, "page_count") * _PAGE_BYTES > self._main_bytes:
            if not self._pages(connection, "freelist_count"):
                break
            connection.execute("PRAGMA incremental_vacuum(64)").fetchall()
        return removed

    def _drop_old_minutes(self, connection: sqlite3.Connection) -> int:
        """Delete the oldest minutes where they hold more than their share; return how many."""
        count, held_bytes = connection.execute(
            "SELECT count(*), total(length(body)) + count(*) * ? FROM minutes", (_MINUTE_ROW_BYTES,)
        ).fetchone()
        excess = held_bytes - self._main_bytes * _MINUTES_SHARE
        if excess <= 0.0:
            return 0
        return _delete_oldest(connection, "minutes", math.ceil(count * excess / held_bytes))

    def set_aside(self) -> tuple[Path, dict[str, str]]:
        """Rename a broken file, and return its new name and the learned values it still gives."""
        self.close()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.broken-{stamp}")
        count = 0
        while aside.exists():
            count += 1
            aside = self.path.with_name(f"{self.path.name}.broken-{stamp}-{count}")
        for old, new in zip(self._files(self.path), self._files(aside), strict=True):
            if old.exists():
                old.replace(new)
        saved = _salvage(aside)
        self._forget_old_asides()
        return aside, saved

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # auto_vacuum only takes effect before the first table exists.
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=NORMAL")
        log_bytes = self.max_bytes // 20
        connection.execute(f"PRAGMA wal_autocheckpoint={min(1000, log_bytes // _PAGE_BYTES)}")
        connection.execute(f"PRAGMA journal_size_limit={log_bytes}")
        connection.execute("PRAGMA cache_size=-2048")  # KiB: the memory target is 250 MB in all
        connection.execute("BEGIN IMMEDIATE")
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()
        }
        if not tables:
            _execute_all(connection, _SCHEMA)
            connection.execute(
                "INSERT INTO meta(key, value) VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),)
            )
        elif "meta" in tables:
            _migrate(connection)
        connection.execute("COMMIT")  # all of it or nothing, whatever ends this process
        version = None if tables and "meta" not in tables else _version(connection)
        if version != str(SCHEMA_VERSION):
            raise ForeignSchemaError(
                f"schema version {version or 'none'}, but this governor writes {SCHEMA_VERSION}"
            )

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the journal is not open")
        return self._connection

    @classmethod
    def _used_bytes(cls, connection: sqlite3.Connection) -> int:
        used = cls._pages(connection, "page_count") - cls._pages(connection, "freelist_count")
        return used * _PAGE_BYTES

    @staticmethod
    def _pages(connection: sqlite3.Connection, pragma: str) -> int:
        return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

    @staticmethod
    def _files(path: Path) -> tuple[Path, Path, Path]:
        return path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")

    def _forget_old_asides(self) -> None:
        asides = sorted(
            name
            for name in self.path.parent.glob(f"{self.path.name}.broken-*")
            if not name.name.endswith(("-wal", "-shm"))
        )
        for name in asides[:-KEPT_ASIDE]:
            for part in self._files(name):
                with contextlib.suppress(OSError):
                    part.unlink()


def _version(connection: sqlite3.Connection) -> str | None:
    found = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    return None if found is None else str(found[0])


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a file of an older version to this one; leave any other as it is."""
    steps = {str(version): (version + 1, sql) for version, sql in _MIGRATIONS.items()}
    while (step := steps.get(_version(connection) or "")) is not None:
        version, sql = step
        _execute_all(connection, sql)
        connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(version),)
        )


def _execute_all(connection: sqlite3.Connection, sql: str) -> None:
    # Not `executescript`: it would commit the transaction that this is a part of.
    for statement in sql.split(";"):
        if statement.strip():
            connection.execute(statement)


def _delete_oldest(connection: sqlite3.Connection, table: str, count: int) -> int:
    return connection.execute(
        f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT ?)",  # noqa: S608 - our own table names
        (count,),
    ).rowcount


def read_actions(
    connection: sqlite3.Connection, model: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return the newest actions of one model (None: of all), newest first."""
    rows = connection.execute(
        f"SELECT {', '.join(ACTION_COLUMNS)} FROM actions"  # noqa: S608 - our own column names
        " WHERE ?1 IS NULL OR model = ?1 ORDER BY id DESC LIMIT ?2",
        (model, limit),
    ).fetchall()
    return [dict(zip(ACTION_COLUMNS, row, strict=True)) for row in rows]


def _insert(connection: sqlite3.Connection, row: Row) -> bool:
    """Insert a row; return False for one that can never be stored, so that it is not retried."""
    try:
        sql, values = insertion(row)
    except Exception:  # noqa: BLE001 - whatever is odd about a record, the others go on
        return False
    try:
        connection.execute(sql, values)
    except (
        TypeError,
        ValueError,
        OverflowError,
        sqlite3.DataError,
        sqlite3.InterfaceError,
        sqlite3.ProgrammingError,
        sqlite3.IntegrityError,
    ):
        return False
    return True


def _sound_learned(connection: sqlite3.Connection) -> dict[str, str]:
    return {
        key: value
        for key, value, crc in connection.execute("SELECT key, value, crc FROM learned")
        if isinstance(key, str) and isinstance(value, str) and checksum(value) == crc
    }


def _salvage(path: Path) -> dict[str, str]:
    """Read what a broken file still gives, value by value."""
    found: dict[str, str] = {}
    with (
        contextlib.suppress(sqlite3.Error, OSError, UnicodeError),
        contextlib.closing(sqlite3.connect(path, timeout=1.0)) as connection,
    ):
        connection.text_factory = lenient_text
        for (key,) in connection.execute("SELECT key FROM learned").fetchall():
            with contextlib.suppress(sqlite3.Error):
                row = connection.execute(
                    "SELECT value, crc FROM learned WHERE key = ?", (key,)
                ).fetchone()
                if row and isinstance(row[0], str) and checksum(row[0]) == row[1]:
                    found[str(key)] = row[0]
    return found
