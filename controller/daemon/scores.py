"""How each model did, minute by minute, on its way to the journal.

Owns when it is written. It must not count anything: the core's scorekeepers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from controller.journal.journal import Journal
from controller.journal.records import SCORE_EVENT
from controller.planning.core import GovernorCore
from controller.policy.model import Policy
from controller.telemetry.observation import ModelReading
from controller.telemetry.source import Clock

_EVERY_S: Final = 60.0  # as long as a score looks back: no request counts twice


class ScoreLog:
    """Writes one event a minute, for what is told later of that time."""

    def __init__(self, core: GovernorCore, journal: Journal, clock: Clock) -> None:
        self._core = core
        self._journal = journal
        self._clock = clock
        self._written_s = clock()

    def after_tick(self, policy: Policy, readings: Mapping[str, ModelReading]) -> None:
        """Write what the last minute was like, once it is over."""
        now_s = self._clock()
        if now_s - self._written_s < _EVERY_S:
            return
        self._written_s = now_s
        found: dict[str, Any] = {}
        for model in policy.models:
            score, reading = self._core.score(model.name), readings.get(model.name)
            if score.requests:
                acted = reading is not None and reading.is_free
                found[model.name] = {**asdict(score), "acted": acted}
        if found:
            self._journal.event(SCORE_EVENT, None, "the last minute's requests", found)
