"""The load generator's process: sends a schedule and writes down what came back.

Owns the sending. It runs alone (``python -m controller.demo.generator``), so that neither the
governor nor the live view can disturb it: a job is one line of JSON on standard input, progress
goes to standard output as lines of JSON, the records to a file. Open loop: a request goes out at
its time whatever the answers do, and its latency counts from that *intended* time.
"""

import contextlib
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from controller.demo.channel import Channel, ChannelError, Request
from controller.demo.records import DEADLINE, ERROR, LOST, OK
from controller.demo.wire import METHOD, Prepared, Tensors, prepare, read

_PROGRESS_S: Final = 0.25
_LEAD_S: Final = 0.2
_WINDOW_S: Final = 1.0
_RECONNECT_S: Final = 0.05
_PATIENCE_S: Final = 5.0  # for the first connection; later ones are part of what is measured


@dataclass(slots=True)
class _Load:
    """The requests ready for one connection, and what is known of each that was sent."""

    job: dict[str, Any]
    sizes: list[int]
    prepared: Mapping[int, Sequence[Prepared]]
    tensors: Tensors
    requests: dict[int, list[Request]] = field(default_factory=dict)
    channel: Channel | None = None
    retry_at_s: float = 0.0
    refusal: str = ""  # why there is no connection

    def connect(self) -> None:
        """Connect, or leave it for later if nobody listens."""
        address, _, port = self.job["address"].rpartition(":")
        self.retry_at_s = time.monotonic() + _RECONNECT_S
        try:
            self.channel = channel = Channel(address, int(port))
        except OSError as error:
            self.refusal = error.strerror or str(error)
            return
        if not self.requests:
            self.requests = {
                rows: [channel.prepare(METHOD, r.message, self.job["deadline_s"]) for r in of]
                for rows, of in self.prepared.items()
            }

    def pick(self, rows: int, page: int) -> tuple[Request, Prepared]:
        """Return the request that a schedule's line names."""
        index = page % len(self.prepared[rows])
        return self.requests[rows][index], self.prepared[rows][index]


def main() -> int:
    """Run the job on standard input."""
    job = json.loads(sys.stdin.readline())
    with np.load(job["pages"]) as data:
        pages, labels = data["pages"], data["labels"]
    sizes = [int(rows) for rows in job["sizes"]]
    tensors = Tensors(**job["tensors"])
    load = _Load(job, sizes, prepare(job["model"], tensors, pages, labels, sizes), tensors)
    give_up_s = time.monotonic() + _PATIENCE_S
    load.connect()
    while load.channel is None:
        if time.monotonic() > give_up_s:
            sys.stderr.write(f"nobody answers at {job['address']}: {load.refusal}\n")
            return 1
        time.sleep(_RECONNECT_S)
        load.connect()
    # A collection in the middle of a burst would be measured as latency.
    gc.collect()
    gc.freeze()
    gc.disable()
    if job["kind"] == "closed":
        _say(_closed(load, job["concurrency"], job["duration_s"], job["seed"]))
        return 0
    with np.load(job["schedule"]) as data:
        due_s, rows, page = data["due_s"], data["rows"], data["page"]
    recorder = _Recorder(load, due_s, rows, page)
    recorder.run()
    recorder.write(Path(job["out"]))
    return 0


def _closed(load: _Load, concurrency: int, duration_s: float, seed: int) -> dict[str, float]:
    """Keep so many requests in flight and return what went through per second."""
    channel = load.channel
    assert channel is not None  # noqa: S101 - main() saw to it
    rng = np.random.default_rng(seed)
    weights = np.array(load.job["row_weights"], dtype=float)
    drawn = rng.choice(load.sizes, size=4096, p=weights / weights.sum()).tolist()
    pages = rng.integers(0, 2**31, size=4096).tolist()
    rows_of: dict[int, int] = {}
    sent = 0

    def send() -> None:
        nonlocal sent
        rows = drawn[sent % len(drawn)]
        rows_of[channel.send(load.pick(rows, pages[sent % len(pages)])[0])] = rows
        sent += 1

    start_s = time.monotonic()
    settled_s, end_s = start_s + 0.3 * duration_s, start_s + duration_s
    requests = rows_done = 0
    first_s = last_s = start_s
    for _ in range(concurrency):
        send()
    while (now_s := time.monotonic()) < end_s or not requests:
        if now_s > end_s + load.job["deadline_s"]:
            raise ChannelError(f"{load.job['model']} answered nothing in {now_s - start_s:.1f} s")
        for answer in channel.poll(0.1):
            if answer.message is None:
                raise ChannelError(f"{load.job['model']}: {answer.error}")
            rows = rows_of.pop(answer.call)
            now_s = time.monotonic()
            if now_s < settled_s:
                first_s = now_s
            else:
                requests, rows_done, last_s = requests + 1, rows_done + rows, now_s
            send()
    # A request whose connection closes under it is cancelled, and a server before 25.01 can end by
    # that (server issues 7368 and 8034; seen here once, in this place).
    while rows_of and time.monotonic() < end_s + load.job["deadline_s"]:
        for answer in channel.poll(0.1):
            rows_of.pop(answer.call, None)
    span_s = max(last_s - first_s, 1e-6)
    return {"requests_rps": requests / span_s, "rows_rps": rows_done / span_s}


class _Recorder:
    """Sends one schedule and keeps a record of each request."""

    def __init__(self, load: _Load, due_s: Any, rows: Any, page: Any) -> None:
        count = len(due_s)
        self._load = load
        self._due_s = due_s
        self._rows: list[int] = rows.tolist()
        self._page: list[int] = page.tolist()
        self._deadline_s = float(load.job["deadline_s"])
        self._late_ms = np.full(count, np.nan)
        self._latency_ms = np.full(count, np.nan)
        self._status = np.full(count, LOST, np.int8)
        self._variant = np.full(count, -1, np.int16)
        self._correct = np.zeros(count, np.int16)
        self._flying: dict[int, int] = {}  # call to index
        self._order: deque[tuple[float, int]] = deque()  # when a call expires
        self._errors: dict[str, int] = {}
        self._recent: deque[tuple[float, float, int]] = deque()  # ended, latency, variant
        self._sent = self._ended = self._failed = 0
        self._zero_s = 0.0

    def run(self) -> None:
        """Send everything and wait until each request has ended."""
        # The clock is CLOCK_MONOTONIC, the same for all processes: records line up with actions.
        self._zero_s = time.monotonic() + _LEAD_S - min(float(self._due_s[0]), 0.0)
        due = (self._due_s + self._zero_s).tolist()
        count, index = len(due), 0
        progress_s = time.monotonic()
        objective_ms = float(self._load.job["objective_ms"])
        while index < count or self._flying:
            now_s = time.monotonic()
            while index < count and due[index] <= now_s:
                self._send(index, due[index], now_s)
                index += 1
                now_s = time.monotonic()
            while self._order and self._order[0][0] <= now_s:
                self._expire(self._order.popleft()[1])
            if now_s >= progress_s:
                _say(self._progress(now_s, objective_ms))
                progress_s = now_s + _PROGRESS_S
            wait_s = progress_s - now_s
            if index < count:
                wait_s = min(wait_s, due[index] - now_s)
            self._receive(max(wait_s, 0.0), due)
        _say(self._progress(time.monotonic(), objective_ms))

    def _send(self, index: int, due_s: float, now_s: float) -> None:
        self._late_ms[index] = (now_s - due_s) * 1e3
        self._sent += 1
        load = self._load
        if load.channel is None and now_s >= load.retry_at_s:
            load.connect()
        if load.channel is None:
            self._end(index, LOST, "not connected")
            return
        request, _ = load.pick(self._rows[index], self._page[index])
        try:
            call = load.channel.send(request)
        except ChannelError as error:
            self._end(index, LOST, str(error))
            self._lose(str(error))
            return
        self._flying[call] = index
        self._order.append((due_s + self._deadline_s, call))

    def _receive(self, wait_s: float, due: list[float]) -> None:
        channel = self._load.channel
        if channel is None:
            time.sleep(min(wait_s, _RECONNECT_S))
            return
        try:
            answers = channel.poll(wait_s)
        except ChannelError as error:
            self._lose(str(error))
            return
        now_s = time.monotonic()
        for answer in answers:
            index = self._flying.pop(answer.call, None)
            if index is None:
                continue
            if answer.message is None:
                expired = now_s - due[index] >= self._deadline_s or "status 4" in (
                    answer.error or ""
                )
                self._end(index, DEADLINE if expired else ERROR, answer.error or "")
                continue
            self._answered(index, now_s, (now_s - due[index]) * 1e3, answer.message)

    def _answered(self, index: int, now_s: float, latency_ms: float, message: bytes) -> None:
        _, prepared = self._load.pick(self._rows[index], self._page[index])
        try:
            reading = read(message, self._load.tensors, prepared.labels)
        except ValueError as error:
            self._end(index, ERROR, str(error))
            return
        self._latency_ms[index] = latency_ms
        self._status[index] = OK
        self._variant[index] = reading.variant
        self._correct[index] = reading.correct_rows
        self._ended += 1
        self._recent.append((now_s, latency_ms, reading.variant))

    def _expire(self, call: int) -> None:
        index = self._flying.pop(call, None)
        if index is not None:
            if self._load.channel is not None:
                with contextlib.suppress(ChannelError):
                    self._load.channel.cancel(call)
            self._end(index, DEADLINE, "deadline")

    def _lose(self, error: str) -> None:
        """Count what was in flight as lost, and connect anew."""
        if self._load.channel is not None:
            self._load.channel.close()
        self._load.channel = None
        self._load.retry_at_s = time.monotonic() + _RECONNECT_S
        flying, self._flying = self._flying, {}
        self._order.clear()  # a new connection counts its calls from the start
        for index in flying.values():
            self._end(index, LOST, error)

    def _end(self, index: int, status: int, error: str) -> None:
        self._status[index] = status
        self._ended += 1
        self._failed += 1
        self._errors[error] = self._errors.get(error, 0) + 1
        self._recent.append((time.monotonic(), np.inf, -1))

    def _progress(self, now_s: float, objective_ms: float) -> dict[str, Any]:
        recent = self._recent
        while recent and recent[0][0] < now_s - _WINDOW_S:
            recent.popleft()
        latency_ms = np.array([item[1] for item in recent])
        start = np.searchsorted(self._due_s, now_s - self._zero_s - _WINDOW_S)
        stop = np.searchsorted(self._due_s, now_s - self._zero_s)
        return {
            "time_s": now_s - self._zero_s,
            "sent": self._sent,
            "failed": self._failed,
            "in_flight": len(self._flying),
            "rate_rps": float(stop - start) / _WINDOW_S,
            "done": len(recent),
            "misses": int((latency_ms > objective_ms).sum()),
            "p50_ms": _quantile(latency_ms, 50),
            "p99_ms": _quantile(latency_ms, 99),
            "variant": recent[-1][2] if recent else -1,
        }

    def write(self, path: Path) -> None:
        """Write the records; the file appears whole or not at all."""
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as handle:
            np.savez(
                handle,
                due_s=self._due_s,
                rows=np.array(self._rows),
                late_ms=self._late_ms,
                latency_ms=self._latency_ms,
                status=self._status,
                variant=self._variant,
                correct=self._correct,
                zero_s=np.array(self._zero_s),
                errors=np.array(json.dumps(self._errors)),
            )
        temporary.replace(path)


def _quantile(values: Any, percent: float) -> float | None:
    """Return a quantile, or None where there is none or it is a failed request."""
    if not len(values):
        return None
    value = float(np.percentile(values, percent, method="higher"))
    return value if np.isfinite(value) else None


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
