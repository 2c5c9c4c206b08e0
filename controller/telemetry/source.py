"""What every source of readings has in common: newest reading, age, up, failures, back-off.

Owns the book-keeping and the thread in which a blocking source lives. It must not know any
particular source, and nobody who reads from here ever waits: a source that hangs has an old
reading, and says so.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from controller.telemetry.observation import SourceHealth

_log = logging.getLogger(__name__)

T = TypeVar("T")
Clock = Callable[[], float]

_LONGEST_ERROR = 300
_JOIN_S = 0.5
_SILENT_CADENCES = 5.0
_SILENT_AT_LEAST_S = 2.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after so many failures in a row."""

    first_s: float
    longest_s: float

    def delay_s(self, failures_in_a_row: int) -> float:
        """Return the wait in seconds; doubles with each failure up to the longest."""
        if failures_in_a_row <= 0:
            return 0.0
        doublings = min(failures_in_a_row - 1, 30)
        return min(self.first_s * 2.0**doublings, self.longest_s)


def shorten(error: BaseException | str) -> str:
    """Return one line that tells what went wrong, of bounded length."""
    text = error if isinstance(error, str) else str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_ERROR else f"{line[: _LONGEST_ERROR - 3]}..."


class Ledger(Generic[T]):
    """The record of one source: its newest reading and how well it does.

    One writer (a thread or the event loop), any number of readers.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        backoff: Backoff | None = None,
        silent_s: float | None = None,
    ) -> None:
        self.name = name
        self.detail: str | None = None
        self.caution: str | None = None  # told while it works
        self._clock = clock
        self._backoff = backoff or Backoff(first_s=0.1, longest_s=5.0)
        self._silent_s = silent_s  # no news for so long means that it hangs
        self._newest: tuple[float, T] | None = None
        self._heard_s: float | None = None
        self._failures = 0
        self._in_a_row = 0
        self._error: str | None = None
        self._retry_s: float | None = None

    @property
    def reading(self) -> T | None:
        """The newest reading; None if there never was one."""
        return self._newest[1] if self._newest is not None else None

    @property
    def up(self) -> bool:
        """Whether the newest attempt succeeded (False before the first)."""
        return self._newest is not None and self._in_a_row == 0

    @property
    def failures(self) -> int:
        """How many attempts failed, ever."""
        return self._failures

    @property
    def retry_s(self) -> float | None:
        """When the next attempt is due after a failure (the clock's seconds); None: any time."""
        return self._retry_s

    def begin(self) -> None:
        """Note that the source was started, so that silence is counted from now."""
        self._heard_s = self._clock()

    def succeed(self, reading: T, at_s: float | None = None) -> None:
        """Record a reading."""
        if self._in_a_row:
            _log.info("%s: works again after %d failures", self.name, self._in_a_row)
        now_s = self._clock()
        self._newest = (now_s if at_s is None else at_s, reading)
        self._heard_s = now_s
        self._in_a_row = 0
        self._error = None
        self._retry_s = None

    def fail(self, error: BaseException | str) -> float:
        """Record a failed attempt and return how long to wait before the next, in seconds."""
        now_s = self._clock()
        text = shorten(error)
        if self._in_a_row == 0 or text != self._error:
            _log.warning("%s: %s", self.name, text)
        self._failures += 1
        self._in_a_row += 1
        self._error = text
        self._heard_s = now_s
        delay_s = self._backoff.delay_s(self._in_a_row)
        self._retry_s = now_s + delay_s
        return delay_s

    def age_s(self, now_s: float) -> float | None:
        """Return the age of the newest reading in seconds; None if there never was one."""
        return max(0.0, now_s - self._newest[0]) if self._newest is not None else None

    def health(self, now_s: float) -> SourceHealth:
        """Return how well the source does at this moment of the clock."""
        up, error = self.up, self._error or self.caution
        if self._silent_s is not None and self._heard_s is not None:
            quiet_s = now_s - self._heard_s
            if quiet_s > self._silent_s:
                up, error = False, f"no answer for {quiet_s:.1f} s: it hangs"
        return SourceHealth(self.name, up, self.age_s(now_s), self._failures, error, self.detail)


class ThreadSource(Generic[T]):
    """A blocking source in a daemon thread of its own, read at its own cadence.

    If it hangs, only its thread does: its reading grows old and its health says so.
    """

    def __init__(
        self,
        ledger: Ledger[T],
        sample: Callable[[], T],
        *,
        cadence_s: float,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.ledger = ledger
        self.cadence_s = cadence_s
        self._sample = sample
        self._close = close
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._stopping.clear()
        self.ledger.begin()
        self._thread = threading.Thread(
            target=self._run, name=f"telemetry-{self.ledger.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that hangs is left behind (it is a daemon thread)."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                _log.warning("%s: still hangs at stop; left behind", self.ledger.name)
            self._thread = None

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self.ledger.succeed(self._sample())
                    wait_s = self.cadence_s
                except Exception as error:  # noqa: BLE001 - whatever a driver raises is a failure
                    wait_s = max(self.cadence_s, self.ledger.fail(error))
                self._stopping.wait(wait_s)
        finally:
            if self._close is not None:
                self._close()


def silence_s(cadence_s: float) -> float:
    """Return after how many seconds without news a source of this cadence counts as hanging."""
    return max(_SILENT_AT_LEAST_S, _SILENT_CADENCES * cadence_s)
