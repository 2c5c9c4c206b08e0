"""What was stated of one model's requests, and how it turned out.

Owns the statements, and which outcomes the calibrations learn from. It must not predict.

What a stall of the host caught is counted in the coverage, and teaches nothing: it would have every
variant look slow for as long as scores are remembered.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from controller.policy.model import Objective
from controller.prediction.calibration import ConformalCalibration, Outcome
from controller.prediction.own_probes import PROBED_S, OwnProbes
from controller.prediction.promise import Promise
from controller.prediction.spread import Spread, mean_of
from controller.prediction.statements import Statement, Statements
from controller.telemetry.observation import Observation, RequestSample, VariantReading

_Known = TypeVar("_Known")
_STALLS: Final = 8
# Of the objective: what is far below it need not be predicted to a fine share of itself.
_OFFSET_SHARE: Final = 0.25
_EXCUSED_FROM: Final = 0.4  # of a rise of the drift, log: less of it comes and goes
# Of one that is still there after so long, less is enough. A straggler's is gone by then.
_SETTLED_S: Final = 1.2
_EXPLAINED_FROM: Final = 0.15


class _Taught(NamedTuple):
    """An outcome that a calibration learned from moments ago."""

    at_s: float
    model: str
    outcome: Outcome
    log_drift: float  # of the machine that it was stated by


class Outcomes:
    """Compares what was stated with what came, one calibration for each variant.

    How far a quantile is off on a fast variant says less of a slow one than its own outcomes do,
    once there are enough of them. Profiles of one variant share theirs: what was learned of one
    at the price of late requests need not be learned of each.

    `weights` tells for each of `models` what it is a profile of, itself where it is none.
    """

    def __init__(
        self,
        alias: str,
        objective: Objective,
        models: Sequence[str],
        *,
        weights: Sequence[str] | None = None,
        phase_s: float = 0.0,
    ) -> None:
        self._alias = alias
        self._objective = objective
        self._weights = dict(zip(models, weights or models, strict=True))
        self._shared = {
            of: ConformalCalibration(
                objective.allowed_miss_ratio, _OFFSET_SHARE * objective.latency_s, phase_s=phase_s
            )
            for of in self._weights.values()
        }
        self._acquaint()
        self._promise = Promise(objective.allowed_miss_ratio, _OFFSET_SHARE * objective.latency_s)
        self._spread = Spread()
        self._statements = Statements(models)
        # The drift of each variant's device, log: that its calibration holds for, and now.
        self._excused = dict.fromkeys(self._weights.values(), 0.0)
        self._log_drift = dict.fromkeys(self._weights, 0.0)
        self._log_drifts: list[float] = []  # the same, in their order, as last told
        self._stalls: deque[tuple[float, float]] = deque(maxlen=_STALLS)
        self._taught: deque[_Taught] = deque()
        self._relax_from_s = -math.inf  # there is something to forget
        self._judged: tuple[float | None, int] | None = None  # coverage, of so many requests

    def take_over(self, old: Outcomes) -> None:
        """Keep the calibrations of an earlier policy, if they are about the same objective."""
        if old._objective == self._objective:
            taken: set[int] = set()
            for of, found in self._by_weights(old.calibrations).items():
                known = max(found, key=lambda calibration: calibration.support)
                if id(known) not in taken:
                    self._shared[of] = known
                else:  # what was one variant's profiles is two variants now
                    self._shared[of].restore(known.state())
                taken.add(id(known))
            self._acquaint()
            self._judged = None
            self._promise = old._promise
            self._excused |= {of: old._excused[of] for of in self._excused if of in old._excused}

    def _by_weights(self, of_models: Mapping[str, _Known]) -> dict[str, list[_Known]]:
        """Return what there is of models, by what these are profiles of."""
        found: dict[str, list[_Known]] = {}
        for model, weights in self._weights.items():
            if model in of_models:
                found.setdefault(weights, []).append(of_models[model])
        return found

    def _acquaint(self) -> None:
        for calibration in self._shared.values():
            calibration.borrow_from(self._shared.values())
        self._calibrations = {model: self._shared[of] for model, of in self._weights.items()}

    def excuse(self, log_drifts: Sequence[float]) -> None:
        """Forget lateness that a slower machine explains, once it is known how slow it is.

        Nor does anything teach, from there on, that was stated before.

        `log_drifts`: of each variant's present service times over what was learned of them. A
        switch to a variant on a slower device is no such rise.
        """
        if log_drifts == self._log_drifts:
            return
        self._log_drifts = list(log_drifts)
        self._log_drift = dict(zip(self._weights, log_drifts, strict=True))
        least = dict(zip(self._weights.values(), log_drifts, strict=True))
        if len(least) < len(log_drifts):  # of the profiles of one variant, wherever they are
            for of, drift in zip(self._weights.values(), log_drifts, strict=True):
                least[of] = min(drift, least[of])
        for of, drift in least.items():
            before = self._excused[of]
            if drift < before:
                self._excused[of] = drift
            elif drift - before > _EXCUSED_FROM:
                self._excused[of] = drift
                self._shared[of].excuse(drift - before)

    @property
    def calibrations(self) -> Mapping[str, ConformalCalibration]:
        """Return the calibration of each variant, by Triton's name, in the policy's order."""
        return self._calibrations

    @property
    def offset_s(self) -> float:
        """Return what the calibrations add to a latency before they multiply it."""
        return _OFFSET_SHARE * self._objective.latency_s

    @property
    def coverage(self) -> float | None:
        """Return the share of recent requests within what was stated; None: too few."""
        return self._judge()[0]

    @property
    def observed(self) -> int:
        """Return how many recent requests the coverage counts."""
        return self._judge()[1]

    def _judge(self) -> tuple[float | None, int]:
        """Return both, found anew where single requests came: each tick asks."""
        if self._judged is None:
            of_each = [(c.coverage, c.observed) for c in self._shared.values()]
            shares = [(share, count) for share, count in of_each if share is not None]
            total = sum(count for _, count in shares)
            covered = sum(share * count for share, count in shares)
            self._judged = (
                covered / total if total else None,
                sum(count for _, count in of_each),
            )
        return self._judged

    @property
    def promise(self) -> Promise:
        """Return who keeps what people are told."""
        return self._promise

    def state_for(self, now_s: float, of: Mapping[str, Statement]) -> None:
        """Note what is stated for requests that arrive from now on.

        Args:
            now_s: when.
            of: of the variants that may get them, by Triton's name.
        """
        self._statements.add(now_s, of, self._log_drift)

    def learn(
        self,
        observation: Observation,
        readings: Iterable[VariantReading | None],
        probes: OwnProbes,
        *,
        stalled: bool,
    ) -> None:
        """Score what completed since the last observation.

        Args:
            observation: what there is now.
            readings: of this model's variants.
            probes: the requests of our own that these hold.
            stalled: whether the host stood still since the last reading.
        """
        if stalled:
            read_s = _read_s(observation)
            self._stalls.append((read_s - observation.window_s, read_s))
        known = [reading for reading in readings if reading is not None]
        completed = sum([reading.completed_requests for reading in known])
        self._promise.completed(completed)
        self._spread.observe(completed, observation.window_s)
        if self._taught:
            self._settle(observation.now_s)
        if observation.request_samples:
            singles = tuple(self._singles(observation.request_samples))
            for model, said, outcome in singles:
                self._teach(model, said, outcome, observation.now_s)
            self._promise.sampled([outcome for *_, outcome in singles])
        if completed:
            for model, said, outcome, late in self._means(observation, known, probes):
                self._teach(model, said, outcome, observation.now_s)
                self._promise.averaged(outcome, late)
        if observation.now_s >= self._relax_from_s:
            self._relax_from_s = min([c.relax(observation.now_s) for c in self._shared.values()])

    def _teach(self, model: str, said: Statement, outcome: Outcome, now_s: float) -> None:
        self._calibrations[model].observe((outcome,), now_s)
        if outcome.requests == 1:
            self._judged = None
        if outcome.teaches:
            self._taught.append(_Taught(now_s, model, outcome, said.log_drift))

    def _settle(self, now_s: float) -> None:
        """Retract what was stated of a machine that turned out to be slower, and still is."""
        while self._taught and self._taught[0].at_s < now_s - _SETTLED_S:
            taught = self._taught.popleft()
            if self._log_drift[taught.model] - taught.log_drift > _EXPLAINED_FROM:
                self._calibrations[taught.model].retract(taught.outcome)

    def _caught(self, start_s: float, end_s: float) -> bool:
        """Return whether the host stood still while a request was under way."""
        return any(start_s < to_s and end_s > from_s for from_s, to_s in self._stalls)

    def _singles(
        self, samples: Sequence[RequestSample]
    ) -> Iterator[tuple[str, Statement, Outcome]]:
        """Yield single requests: the variant, what was stated, and how it turned out."""
        for sample in samples:
            if sample.alias != self._alias or sample.model is None:
                continue
            said = self._statements.of(sample.start_s, sample.model)
            if said is not None:
                caught = self._caught(sample.start_s, sample.start_s + sample.latency_s)
                teaches = not caught and not self._is_outdated(said, sample.model)
                yield sample.model, said, _outcome(sample.latency_s, said, teaches=teaches)

    def _means(
        self,
        observation: Observation,
        readings: Iterable[VariantReading],
        probes: OwnProbes,
    ) -> Iterator[tuple[str, Statement, Outcome, float]]:
        """Yield what completed since the last observation, by its exact mean latency.

        With each the share that took longer than was told, by how requests spread about it.
        """
        read_s = _read_s(observation)
        middle_s = read_s - observation.window_s / 2.0
        for reading in readings:
            if reading.completed_requests <= probes.shown.get(reading.model, 0):
                continue
            if observation.now_s - probes.last_s.get(reading.model, -math.inf) < PROBED_S:
                continue  # a mean that holds a probe of ours tells nothing of a client's request
            mean_s = mean_of(reading)
            start_s = middle_s - mean_s
            said = self._statements.of(start_s, reading.model)
            if said is not None and not self._caught(start_s, read_s):
                told = self._statements.told(reading.model)
                late = self._spread.late_share(
                    reading, middle_s, told, window_s=observation.window_s
                )
                outcome = _outcome(
                    mean_s,
                    said,
                    requests=reading.completed_requests,
                    teaches=not self._is_outdated(said, reading.model),
                )
                yield reading.model, said, outcome, late or 0.0

    def _is_outdated(self, said: Statement, model: str) -> bool:
        """Return whether what was stated of a request was so by a machine that was far faster."""
        return self._log_drift[model] - said.log_drift > _EXCUSED_FROM

    def state(self) -> dict[str, Any]:
        """Return what is worth keeping over a restart. JSON-ready."""
        return {
            "variants": {model: one.state() for model, one in self._calibrations.items()},
            "promise": self._promise.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError."""
        # A governor that had no promise yet stored the variants alone.
        whole = state.keys() == {"variants", "promise"}
        variants = state["variants"] if whole else state
        for of, found in self._by_weights(variants).items():
            # What are profiles of one variant now may have been variants.
            self._shared[of].restore(max(found, key=lambda stored: sum(stored["scores"])))
        if whole:
            self._promise.restore(state["promise"])


def _outcome(
    latency_s: float, said: Statement, *, requests: int = 1, teaches: bool = True
) -> Outcome:
    return Outcome(latency_s, said.raw_s, said.stated_s, said.told_s, requests, teaches)


def _read_s(observation: Observation) -> float:
    """Return when the counters were read."""
    return observation.now_s - (observation.readings_age_s or 0.0)
