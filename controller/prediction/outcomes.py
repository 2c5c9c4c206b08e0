"""What was stated of one model's requests, and how it turned out.

Owns the statements, and which outcomes the calibrations learn from. It must not predict.

What a stall of the host caught is counted in the coverage, and teaches nothing: it would have every
variant look slow for as long as scores are remembered.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.policy.model import Objective
from controller.prediction.calibration import ConformalCalibration, Outcome
from controller.telemetry.observation import Observation, RequestSample, VariantReading

_STATEMENTS: Final = 2048  # at least so many are kept
_STALLS: Final = 8
PROBED_S: Final = 1.0  # from a probe, or its answer, until the counters have surely shown it
# Of the objective: what is far below it need not be predicted to a fine share of itself.
_OFFSET_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class _Statement:
    """What was predicted for requests that arrive from a moment on."""

    from_s: float
    model: str
    raw_s: float
    stated_s: float


class Outcomes:
    """Compares what was stated with what came, one calibration for each variant.

    How far a quantile is off on a fast variant says less of a slow one than its own outcomes do,
    once there are enough of them.
    """

    def __init__(self, alias: str, objective: Objective, models: Sequence[str]) -> None:
        self._alias = alias
        self._objective = objective
        self._calibrations = {
            model: ConformalCalibration(
                objective.allowed_miss_ratio, _OFFSET_SHARE * objective.latency_s
            )
            for model in models
        }
        self._acquaint()
        self._statements: list[_Statement] = []
        self._stalls: deque[tuple[float, float]] = deque(maxlen=_STALLS)

    def take_over(self, old: Outcomes) -> None:
        """Keep the calibrations of an earlier policy, if they are about the same objective."""
        if old._objective == self._objective:
            kept = old._calibrations
            self._calibrations.update({m: c for m, c in kept.items() if m in self._calibrations})
            self._acquaint()

    def _acquaint(self) -> None:
        for calibration in self._calibrations.values():
            calibration.borrow_from(self._calibrations.values())

    @property
    def calibrations(self) -> Mapping[str, ConformalCalibration]:
        """Return the calibration of each variant, by Triton's name, in the policy's order."""
        return self._calibrations

    @property
    def coverage(self) -> float | None:
        """Return the share of recent requests within what was stated; None: too few."""
        shares = [
            (c.coverage, c.observed) for c in self._calibrations.values() if c.coverage is not None
        ]
        total = sum(count for _, count in shares)
        return sum(share * count for share, count in shares) / total if total else None

    @property
    def observed(self) -> int:
        """Return how many recent requests the coverage counts."""
        return sum(c.observed for c in self._calibrations.values())

    def state_for(self, now_s: float, model: str, raw_s: float, stated_s: float) -> None:
        """Note what is stated for requests that arrive from now on, on the chosen variant."""
        self._statements.append(_Statement(now_s, model, raw_s, stated_s))
        if len(self._statements) >= 2 * _STATEMENTS:
            del self._statements[:_STATEMENTS]

    def learn(
        self,
        observation: Observation,
        readings: Iterable[VariantReading | None],
        probed_s: Mapping[str, float],
        *,
        stalled: bool,
    ) -> None:
        """Score what completed since the last observation.

        Args:
            observation: what there is now.
            readings: of this model's variants.
            probed_s: when each variant was last sent a request of our own.
            stalled: whether the host stood still since the last reading.
        """
        if stalled:
            read_s = _read_s(observation)
            self._stalls.append((read_s - observation.window_s, read_s))
        for model, found in self._singles(observation.request_samples).items():
            self._calibrations[model].observe(found, observation.now_s)
        for model, outcome in self._means(observation, readings, probed_s):
            self._calibrations[model].observe((outcome,), observation.now_s)
        for calibration in self._calibrations.values():
            calibration.relax(observation.now_s)

    def _caught(self, start_s: float, end_s: float) -> bool:
        """Return whether the host stood still while a request was under way."""
        return any(start_s < to_s and end_s > from_s for from_s, to_s in self._stalls)

    def _singles(self, samples: Sequence[RequestSample]) -> dict[str, list[Outcome]]:
        found: dict[str, list[Outcome]] = {}
        for sample in samples:
            if sample.alias != self._alias:
                continue
            said = self._said(sample.start_s, sample.model)
            if said is not None:
                caught = self._caught(sample.start_s, sample.start_s + sample.latency_s)
                outcome = Outcome(sample.latency_s, said.raw_s, said.stated_s, teaches=not caught)
                found.setdefault(said.model, []).append(outcome)
        return found

    def _means(
        self,
        observation: Observation,
        readings: Iterable[VariantReading | None],
        probed_s: Mapping[str, float],
    ) -> Iterator[tuple[str, Outcome]]:
        """Yield what completed since the last observation, by its exact mean latency."""
        read_s = _read_s(observation)
        for reading in readings:
            if reading is None or reading.completed_requests < 1:
                continue
            if observation.now_s - probed_s.get(reading.model, -math.inf) < PROBED_S:
                continue  # a mean that holds a probe of ours tells nothing of a client's request
            count = reading.completed_requests
            mean_s = (reading.queue_s + reading.compute_s) / count
            start_s = read_s - observation.window_s / 2.0 - mean_s
            said = self._said(start_s, reading.model)
            if said is not None and not self._caught(start_s, read_s):
                yield reading.model, Outcome(mean_s, said.raw_s, said.stated_s, count)

    def _said(self, arrived_s: float, model: str | None) -> _Statement | None:
        """Return what was stated of a request; None: it arrived before a switch took effect."""
        at = bisect_right(self._statements, arrived_s, key=_from_s) - 1
        return self._statements[at] if at >= 0 and self._statements[at].model == model else None

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        return {model: calibration.state() for model, calibration in self._calibrations.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError."""
        for model, calibration in self._calibrations.items():
            if model in state:
                calibration.restore(state[model])


def _from_s(statement: _Statement) -> float:
    return statement.from_s


def _read_s(observation: Observation) -> float:
    """Return when the counters were read."""
    return observation.now_s - (observation.readings_age_s or 0.0)
