"""Synthetic requests of ours among those that Triton counts.

Owns which of what completed no client sent. It must not send any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from controller.prediction.outcomes import PROBED_S
from controller.telemetry.observation import ProbeDone, VariantReading

_PROBES: Final = 32  # as many prove that variants live when a server has started
_LOST_S: Final = 10.0  # from a probe until its answer will not come any more


@dataclass(slots=True)
class _Sent:
    """A probe that the counters have not shown yet."""

    model: str
    rows: int
    until_s: float  # they will have, by then
    answered: bool = False


class OwnProbes:
    """Remembers the probes of the variants of one model."""

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque(maxlen=_PROBES)
        self.last_s: dict[str, float] = {}  # when each variant was probed, or had answered

    def take_over(self, old: OwnProbes, models: tuple[str, ...]) -> None:
        """Keep what is known of the same variants."""
        self._sent.extend(probe for probe in old._sent if probe.model in models)
        self.last_s.update(old.last_s)

    def sent(self, model: str, rows: int, now_s: float) -> None:
        """Take note that one goes to a variant."""
        self.last_s[model] = now_s
        self._sent.append(_Sent(model, rows, now_s + _LOST_S))

    def answered(self, probe: ProbeDone, now_s: float) -> None:
        """Take note of an answer."""
        if not probe.foreseen:
            self._sent.append(_Sent(probe.model, probe.rows, now_s + PROBED_S, answered=True))
            return
        self.last_s[probe.model] = now_s
        for sent in self._sent:
            if (sent.model, sent.rows, sent.answered) == (probe.model, probe.rows, False):
                sent.answered, sent.until_s = True, now_s + PROBED_S
                break

    def without(self, readings: Mapping[str, VariantReading], now_s: float) -> tuple[int, int]:
        """Return completed requests and rows less those that no client sent."""
        known: Iterable[VariantReading] = readings.values()
        completed = sum(reading.completed_requests for reading in known)
        rows = sum(reading.completed_rows for reading in known)
        for probe in tuple(self._sent):
            # The counters may show a probe before its answer comes, or a tick later.
            reading = readings.get(probe.model)
            if now_s > probe.until_s:
                self._sent.remove(probe)
            elif reading is not None and reading.completed_rows >= probe.rows and completed > 0:
                self._sent.remove(probe)
                completed, rows = completed - 1, max(rows - probe.rows, 0)
        return completed, rows
