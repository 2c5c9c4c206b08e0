"""Read a journal that a daemon writes, or wrote before it ended.

Owns read-only access for commands that must answer when the daemon is down. It must not write
to the file, not even to repair it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from controller.journal.minutes import MachineMinute, ModelMinute
from controller.journal.records import ACTION_COLUMNS, EVENT_COLUMNS, SCORE_EVENT
from controller.journal.store import lenient_text, read_actions


class JournalUnreadableError(Exception):
    """There is no journal, or none that can be read; the text says which and where."""


class JournalReader:
    """A journal opened for reading; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            there = path.is_file()
        except PermissionError:
            raise JournalUnreadableError(f"you may not read the journal {path}") from None
        if not there:
            raise JournalUnreadableError(f"there is no journal at {path}")
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.5
            )
            self._connection.text_factory = lenient_text
            self._connection.execute("SELECT count(*) FROM meta").fetchone()
        except sqlite3.Error as error:
            raise JournalUnreadableError(f"cannot read the journal {path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def last_decisions(self) -> list[tuple[float, dict[str, Any]]]:
        """Return each model's newest decision with the Unix time it was recorded at, by name."""
        rows = self._query(
            "SELECT time_unix_s, body FROM decisions"
            " WHERE id IN (SELECT max(id) FROM decisions GROUP BY model) ORDER BY model",
            (),
        )
        read = [(time_unix_s, _loads(body)) for time_unix_s, body in rows]
        return [(time_unix_s, decision) for time_unix_s, decision in read if decision]

    def loads(
        self, model: str, since_unix_s: float
    ) -> list[tuple[float, float | None, float | None]]:
        """Return (Unix time, requests/s, rows a request) of one model's decisions, oldest first.

        What a decision does not say, or not as a number, is None.
        """
        rows = self._query(
            "SELECT time_unix_s, json_extract(body, '$.rate_rps'),"
            " json_extract(body, '$.rows_per_request') FROM decisions"
            " WHERE model = ? AND time_unix_s >= ? AND json_valid(body) ORDER BY id",
            (model, since_unix_s),
        )
        return [(time_unix_s, _number(rate), _number(each)) for time_unix_s, rate, each in rows]

    def models(self) -> list[str]:
        """Return the models that decisions were made about, by name."""
        return [name for (name,) in self._query("SELECT DISTINCT model FROM decisions", ())]

    def decisions(
        self, model: str, since_unix_s: float, until_unix_s: float
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield (Unix time, decision) of one model, oldest first; what is damaged is left out."""
        try:
            rows = self._connection.execute(
                "SELECT time_unix_s, body FROM decisions"
                " WHERE model = ? AND time_unix_s BETWEEN ? AND ? ORDER BY id",
                (model, since_unix_s, until_unix_s),
            )
            for time_unix_s, body in rows:
                decision = _loads(body)
                if decision is not None:
                    yield float(time_unix_s), decision
        except sqlite3.Error as error:
            raise JournalUnreadableError(f"cannot read {self.path}: {error}") from error

    def servings(
        self, model: str, around_unix_s: float, within_s: float
    ) -> list[tuple[float, float, str | None]]:
        """Return (Unix time, monotonic time, serving variant) of decisions near a moment.

        Those within a time of it, the last one before that and the first one after it.
        """
        early, late = around_unix_s - within_s, around_unix_s + within_s
        return self._query(
            "SELECT time_unix_s, monotonic_s, serving FROM decisions WHERE id IN ("
            " SELECT id FROM decisions WHERE model = ?1 AND time_unix_s BETWEEN ?2 AND ?3"
            " UNION ALL SELECT max(id) FROM decisions WHERE model = ?1 AND time_unix_s < ?2"
            " UNION ALL SELECT min(id) FROM decisions WHERE model = ?1 AND time_unix_s > ?3"
            ") ORDER BY id",
            (model, early, late),
        )

    def actions_near(
        self, model: str, around_unix_s: float, within_s: float
    ) -> list[dict[str, Any]]:
        """Return actions near a moment, oldest first: as `servings` does."""
        rows = self._query(
            f"SELECT {', '.join(ACTION_COLUMNS)} FROM actions WHERE id IN ("  # noqa: S608 - ours
            " SELECT id FROM actions WHERE model = ?1 AND time_unix_s BETWEEN ?2 AND ?3"
            " UNION ALL SELECT id FROM (SELECT id FROM actions"
            "  WHERE model = ?1 AND time_unix_s < ?2 ORDER BY id DESC LIMIT 32)"
            " UNION ALL SELECT id FROM (SELECT id FROM actions"
            "  WHERE model = ?1 AND time_unix_s > ?3 ORDER BY id LIMIT 32)"
            ") ORDER BY id",
            (model, around_unix_s - within_s, around_unix_s + within_s),
        )
        return [dict(zip(ACTION_COLUMNS, row, strict=True)) for row in rows]

    def variants(self, model: str) -> dict[str, str]:
        """Return the operator's names of a model's variants by Triton's, as last decided on."""
        rows = self._query(
            "SELECT body FROM decisions WHERE model = ? ORDER BY id DESC LIMIT 1", (model,)
        )
        decision = (_loads(rows[0][0]) if rows else None) or {}
        return {
            str(one.get("model")): str(one.get("variant"))
            for one in decision.get("candidates") or ()
            if isinstance(one, dict)
        }

    def events_of(
        self, kind: str, since_unix_s: float, until_unix_s: float
    ) -> list[tuple[float, dict[str, Any]]]:
        """Return (Unix time, data) of the events of one kind, oldest first."""
        rows = self._query(
            "SELECT time_unix_s, data FROM events WHERE kind = ? AND time_unix_s BETWEEN ? AND ?"
            " ORDER BY id",
            (kind, since_unix_s, until_unix_s),
        )
        return [(time_unix_s, _loads(data) or {}) for time_unix_s, data in rows]

    def actions(self, model: str | None, limit: int) -> list[dict[str, Any]]:
        """Return the newest actions of one model (None: of all), newest first."""
        try:
            return read_actions(self._connection, model, limit)
        except sqlite3.Error as error:
            raise JournalUnreadableError(f"cannot read {self.path}: {error}") from error

    def events(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest events, newest first."""
        rows = self._query(
            f"SELECT {', '.join(EVENT_COLUMNS)} FROM events"  # noqa: S608 - our own column names
            " ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        events = [dict(zip(EVENT_COLUMNS, row, strict=True)) for row in rows]
        for event in events:
            event["data"] = _loads(event["data"])
        return events

    def has_minutes(self) -> bool:
        """Return whether minutes are kept in this file; before schema version 2 none were."""
        found = self._query(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'minutes'", ()
        )
        return bool(found)

    def minutes(
        self, since_unix_s: float, until_unix_s: float
    ) -> tuple[list[tuple[int, str, ModelMinute]], list[tuple[int, MachineMinute]]]:
        """Return (Unix time, model, sums) of models, and (Unix time, sums) of the machine.

        Those of minutes that begin from `since` on and before `until`, oldest first. A minute in
        which a daemon stopped and another started has two.
        """
        models: list[tuple[int, str, ModelMinute]] = []
        machine: list[tuple[int, MachineMinute]] = []
        rows = self._query(
            "SELECT time_unix_s, model, body FROM minutes"
            " WHERE time_unix_s >= ? AND time_unix_s < ? ORDER BY time_unix_s, id",
            (since_unix_s, until_unix_s),
        )
        for begins_unix_s, model, text in rows:
            body = _loads(text)
            if body is None or not isinstance(begins_unix_s, int):
                continue  # one damaged row must not hide the others
            if model is None:
                machine.append((begins_unix_s, MachineMinute.read(body)))
            else:
                models.append((begins_unix_s, str(model), ModelMinute.read(body)))
        return models, machine

    def minutes_since(self) -> float | None:
        """Return the Unix time of the oldest minute that is kept; None: none is."""
        rows = self._query("SELECT min(time_unix_s) FROM minutes", ())
        return _number(rows[0][0])

    def between(
        self, table: Literal["actions", "events"], since_unix_s: float, until_unix_s: float
    ) -> list[dict[str, Any]]:
        """Return the actions or events of some time, oldest first; no scores: they are numbers."""
        columns = ACTION_COLUMNS if table == "actions" else EVENT_COLUMNS
        rows = self._query(
            f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - our own names
            " WHERE time_unix_s >= ? AND time_unix_s < ? AND kind != ? ORDER BY id",
            (since_unix_s, until_unix_s, SCORE_EVENT),
        )
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        for one in found:
            if "data" in one:
                one["data"] = _loads(one["data"])
        return found

    def dropped_before(self, table: Literal["actions", "events", "minutes"]) -> float | None:
        """Return the Unix time before which all was dropped to make room; None: nothing was."""
        rows = self._query(
            f"SELECT id, time_unix_s FROM {table} ORDER BY id LIMIT 1",  # noqa: S608 - our own names
            (),
        )
        # Numbers are given from 1 on, and the oldest are dropped first.
        return _number(rows[0][1]) if rows and rows[0][0] > 1 else None

    def newest_unix_s(self) -> float | None:
        """Return when the newest decision, action, event or minute was recorded; None: never."""
        tables = ["decisions", "actions", "events", *(["minutes"] if self.has_minutes() else [])]
        found = [
            self._query(f"SELECT time_unix_s FROM {table} ORDER BY id DESC LIMIT 1", ())  # noqa: S608 - our own names
            for table in tables
        ]
        times = [number for rows in found if rows and (number := _number(rows[0][0])) is not None]
        return max(times, default=None)

    def learned(self, key: str) -> Any | None:
        """Return a learned value, or None."""
        rows = self._query("SELECT value FROM learned WHERE key = ?", (key,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except ValueError as error:
            raise JournalUnreadableError(f"{self.path}: {key!r} is damaged: {error}") from error

    def _query(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise JournalUnreadableError(f"cannot read {self.path}: {error}") from error


def _loads(body: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(body) if body else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
