"""Synthetic requests of ours among those that Triton counts.

Owns which of what completed no client sent. It must not send any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from controller.telemetry.observation import Observation, ProbeDone, VariantReading

_PROBES: Final = 32  # as many prove that variants live when a server has started
PROBED_S: Final = 1.0  # from a probe, or its answer, until the counters have surely shown it
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
        self.shown: dict[str, int] = {}  # requests of ours in the last counters, by variant

    def take_over(self, old: OwnProbes, models: tuple[str, ...]) -> None:
        """Keep what is known of the same variants."""
        self._sent.extend(probe for probe in old._sent if probe.model in models)
        self.last_s.update(old.last_s)

    def sent(self, model: str, rows: int, now_s: float) -> None:
        """Take note that one goes to a variant."""
        self.last_s[model] = now_s
        self._sent.append(_Sent(model, rows, now_s + _LOST_S))

    def hear(self, observation: Observation, models: Collection[str]) -> None:
        """Take note of what an observation tells of requests of ours to some variants."""
        for probe in observation.probes:
            if probe.model in models:
                self.answered(probe, observation.now_s)
        for model in observation.proofs:
            if model in models:
                self.proof(model, observation.now_s)

    def proof(self, model: str, now_s: float) -> None:
        """Take note that a variant was asked whether it answers.

        It teaches what any request does but for one thing: what was not told to a client can be
        no wrong promise.
        """
        self._sent.append(_Sent(model, 1, now_s + _LOST_S))

    def answered(self, probe: ProbeDone, now_s: float) -> None:
        """Take note of an answer."""
        self.last_s[probe.model] = now_s
        for sent in self._sent:
            if (sent.model, sent.rows, sent.answered) == (probe.model, probe.rows, False):
                sent.answered, sent.until_s = True, now_s + PROBED_S
                break

    def without(self, readings: Iterable[VariantReading | None], now_s: float) -> tuple[int, int]:
        """Return completed requests and rows less those that no client sent."""
        known = [reading for reading in readings if reading is not None]
        if not self._sent:
            self.shown = {}
            requests = sum([reading.completed_requests for reading in known])
            return requests, sum([reading.completed_rows for reading in known])
        left = {r.model: [r.completed_requests, r.completed_rows] for r in known}
        self.shown = {}
        for probe in tuple(self._sent):
            # The counters may show a probe before its answer comes, or a tick later.
            requests, rows = left.get(probe.model, (0, 0))
            if now_s > probe.until_s:
                self._sent.remove(probe)
            elif requests > 0 and rows >= probe.rows:
                self._sent.remove(probe)
                left[probe.model] = [requests - 1, rows - probe.rows]
                self.shown[probe.model] = self.shown.get(probe.model, 0) + 1
        return sum(one[0] for one in left.values()), sum(one[1] for one in left.values())
