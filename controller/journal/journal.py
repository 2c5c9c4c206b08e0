"""The journal: what was done and why, kept on disk without the loop ever waiting for the disk.

Owns the writer thread, its bounded queue and what happens when the disk does not play along:
records are dropped and counted, the file is tried again, a broken one is set aside. It must not
decide anything, and no method raises for what a disk can do wrong.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.journal.minutes import MachineMinute, ModelMinute
from controller.journal.records import (
    ActionRow,
    DecisionRow,
    EventRow,
    MinuteRow,
    Row,
    Stamp,
    action_dict,
    dumps_exact,
)
from controller.journal.store import Store, is_broken
from controller.planning.decision import Decision
from controller.ports import ActionRecord

STEADY_INTERVAL_S = 1.0  # a model's decisions that change nothing are kept this far apart
_QUEUE_ROWS = 4096
_DECISION_ROWS = 3072  # decisions leave the rest of the queue to actions and events
_RECENT_ACTIONS = 1000
_HOUSEKEEPING_S = 5.0
_GATHER_S = 0.03  # what comes within so long of a record is written with it
_RETRY_MIN_S = 0.5
_RETRY_MAX_S = 10.0


class Journal:
    """Decisions, actions, events and learned data on their way to an SQLite file."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._store = Store(path, max_bytes)
        self._wake = threading.Condition()  # guards everything below
        self._rows: deque[Row] = deque()
        self._handed: dict[str, Any] = {}  # learned data not yet turned into text
        self._learned: dict[str, str] = {}  # all learned data known, so that reading never waits
        self._unsaved: set[str] = set()
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT_ACTIONS)
        self._seen: dict[str, tuple[tuple[str | None, str | None] | None, float]] = {}
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._tried = threading.Event()
        self._up = False
        self._error: str | None = "not opened yet"
        self._dropped = 0
        self._written = 0
        self._failures = 0
        self._size_bytes = 0
        self._last_write_s: float | None = None
        self._set_aside: str | None = None
        self._primed = False

    def open(self, timeout_s: float = 5.0) -> None:
        """Start the writer and wait, so long at most, until it has tried to open the file."""
        if self._thread is None:
            # A daemon thread: a disk that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        self._tried.wait(timeout_s)

    def decision(self, decision: Decision) -> None:
        """Record a decision: each new change, and one steady decision a second per model."""
        change = (decision.serving, decision.target) if decision.changes else None
        seen = self._seen.get(decision.model)
        if seen is not None:
            last_change, recorded_s = seen
            is_new = change is not None and change != last_change
            if not is_new and 0.0 <= decision.now_s - recorded_s < STEADY_INTERVAL_S:
                self._seen[decision.model] = (change, recorded_s)
                return
        self._seen[decision.model] = (change, decision.now_s)
        self._put(DecisionRow(Stamp(time.time(), decision.now_s), decision))

    def action(self, record: ActionRecord) -> None:
        """Record what was done to the server."""
        row = ActionRow(Stamp(time.time(), record.started_s), record)
        shown = action_dict(row)
        with self._wake:
            self._recent.appendleft(shown)
        self._put(row)

    def event(
        self, kind: str, model: str | None, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """Record something that happened: a restart, a pin, a foreign change, an error."""
        self._put(EventRow(Stamp(time.time(), time.monotonic()), kind, model, message, data))

    def minute(
        self, begins_unix_s: int, model: str | None, minute: ModelMinute | MachineMinute
    ) -> None:
        """Record what a minute, or a part of one, came to: do not change it any more."""
        self._put(MinuteRow(begins_unix_s, model, minute))

    def save_learned(self, key: str, obj: Any) -> None:
        """Replace a learned value. It is turned into JSON later: do not change it any more."""
        with self._wake:
            self._handed[key] = obj
            self._wake.notify()

    def load_learned(self, key: str) -> Any | None:
        """Return a learned value, or None. Never waits for the disk."""
        with self._wake:
            if key in self._handed:
                return json.loads(dumps_exact(self._handed[key]))
            blob = self._learned.get(key)
        return None if blob is None else json.loads(blob)

    def recent_actions(self, model: str | None, limit: int) -> list[dict[str, Any]]:
        """Return the newest of the last thousand actions, newest first. Never waits."""
        with self._wake:
            rows = [row for row in self._recent if model is None or row["model"] == model]
        return rows[: max(limit, 0)]

    def health(self) -> dict[str, Any]:
        """Return how the journal does, as `status` shows it."""
        now_s = time.monotonic()
        with self._wake:
            last_s = self._last_write_s
            return {
                "up": self._up,
                "path": str(self.path),
                "error": self._error,
                "queued": len(self._rows),
                "dropped": self._dropped,
                "written": self._written,
                "failures": self._failures,
                "size_bytes": self._size_bytes,
                "max_bytes": self._store.max_bytes,
                "last_write_age_s": None if last_s is None else now_s - last_s,
                "set_aside": self._set_aside,
            }

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what is waiting and close; return whether everything reached the file in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is None:
            return not self._has_work()
        self._thread.join(timeout_s)
        with self._wake:
            return not self._thread.is_alive() and not self._has_work()

    def _put(self, row: Row) -> None:
        limit = _DECISION_ROWS if isinstance(row, DecisionRow) else _QUEUE_ROWS
        ours = threading.current_thread() is self._thread
        with self._wake:
            if (self._stopping and not ours) or len(self._rows) >= limit:
                self._dropped += 1
                return
            self._rows.append(row)
            self._wake.notify()

    def _has_work(self) -> bool:
        return bool(self._rows or self._handed or self._unsaved)

    def _run(self) -> None:
        retry_s = _RETRY_MIN_S
        while True:
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - this thread must outlive any bad record
                failed, wait_s = True, retry_s
                retry_s = min(retry_s * 2.0, _RETRY_MAX_S)
                self._degrade(error)
            else:
                failed, wait_s = False, _HOUSEKEEPING_S
                retry_s = _RETRY_MIN_S
            self._tried.set()
            with self._wake:
                if self._stopping and (failed or not self._has_work()):
                    break
                if failed:
                    self._wake.wait_for(lambda: self._stopping, wait_s)
                else:
                    self._wake.wait_for(lambda: self._stopping or self._has_work(), wait_s)
                    if self._has_work():
                        self._wake.wait_for(lambda: self._stopping, _GATHER_S)
        self._store.close()

    def _step(self) -> None:
        """Open what is not open, write what waits, keep the file in bounds."""
        try:
            self._write()
        except sqlite3.Error as error:
            if not is_broken(error):
                raise
            aside, saved = self._store.set_aside()
            with self._wake:
                for key, blob in saved.items():
                    self._learned.setdefault(key, blob)
                self._set_aside = str(aside)
            self.event("journal", None, f"set aside {aside.name}: {error}; began a new file")
            self._write()

    def _write(self) -> None:
        if self._store.is_open and self._store.vanished():
            self._store.close()
        if not self._store.is_open:
            self._open_store()
        with self._wake:
            handed, self._handed = self._handed, {}
        for key, obj in handed.items():
            self._take_learned(key, obj)
        with self._wake:
            count = min(len(self._rows), self._store.batch_rows)
            rows = [self._rows[index] for index in range(count)]
            learned = {key: self._learned[key] for key in self._unsaved}
        if rows or learned:
            unfit = self._store.write(rows, learned, time.time())
            with self._wake:
                for _ in range(count):
                    self._rows.popleft()
                self._unsaved.clear()  # only this thread adds to it
                self._dropped += unfit
                self._written += count - unfit
                self._last_write_s = time.monotonic()
        self._store.bound()
        size_bytes = self._store.size_bytes()
        with self._wake:
            self._up, self._error, self._size_bytes = True, None, size_bytes

    def _open_store(self) -> None:
        self._store.open()
        stored = self._store.learned()
        actions = [] if self._primed else self._store.actions(_RECENT_ACTIONS)
        self._primed = True
        with self._wake:
            self._recent.extend(actions[: _RECENT_ACTIONS - len(self._recent)])
            for key, blob in stored.items():
                self._learned.setdefault(key, blob)
            # A new file, or one put back from a copy, gets what only memory holds.
            self._unsaved = {key for key, blob in self._learned.items() if stored.get(key) != blob}

    def _take_learned(self, key: str, obj: Any) -> None:
        try:
            blob = dumps_exact(obj)
        except (TypeError, ValueError, RuntimeError, RecursionError) as error:
            self.event("error", None, f"learned data {key!r} cannot be stored: {error}")
            with self._wake:
                self._dropped += 1
            return
        with self._wake:
            if self._learned.get(key) != blob:
                self._learned[key] = blob
                self._unsaved.add(key)

    def _degrade(self, error: Exception) -> None:
        self._store.close()
        with self._wake:
            self._up = False
            self._failures += 1
            self._error = f"{self.path}: {error}"
