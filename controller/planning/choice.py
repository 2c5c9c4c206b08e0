"""The choice for one model: desire, then bounds, then damping, each with its reason.

Owns the order of those steps and what is remembered of one model between ticks. It must not
predict or act.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.bounds import exclusion
from controller.planning.decision import Candidate, Decision, Excluded, Reason
from controller.planning.fallback import by_backlog
from controller.planning.scorekeeper import Score, Scorekeeper
from controller.planning.stability import Damper
from controller.planning.value import value_per_request
from controller.policy.model import ModelPolicy, StabilityPolicy
from controller.prediction.predictor import ModelPredictor, Prediction
from controller.prediction.service import ServiceTimes
from controller.telemetry.observation import ModelReading, Observation

Floats = NDArray[np.float64]

_TIE: Final = 1e-4  # values closer than this are the same: the faster one
_UPGRADE_SHARE: Final = 0.5  # of the error budget that a move towards quality may use
# Windows that pass until a rise in load is noticed, a switch away took effect, and what waits on
# the variant that was left is worked off beside the other: a variant that cannot keep up gathers
# a backlog meanwhile.
_NOTICED_AFTER: Final = 2.0
_QUEUED: Final = 0.15  # of the objective: with more work waiting, no move to a slower variant
_PRESSING: Final = 0.1  # of the objective: with more work waiting, a tick comes early
_HIGH: Final = 0.95  # quantile of the forecast of the rate
# Under this coverage of stated quantiles the fallback decides. An overload that nobody could
# foresee costs some coverage; only a predictor that knows nothing costs so much.
_TRUST: Final = 0.60
_TRUST_OUTCOMES: Final = 300
_MOST_FAILURES: Final = 100  # counted at once

_URGENT: Final = frozenset({Reason.ESCAPE, Reason.RECOVERY})
_UNDAMPED: Final = frozenset({Reason.PINNED, Reason.IGNORANCE})
_STABLE: Final = 0.95  # utilisation up to which a queue can be expected to empty


class ModelMind:
    """Learns and decides for one model."""

    def __init__(
        self,
        policy: ModelPolicy,
        stability: StabilityPolicy,
        service: ServiceTimes,
        *,
        ablation: str | None = None,
    ) -> None:
        self._policy = policy
        self._stability = stability
        self.predictor = ModelPredictor(policy, service, shuffled=ablation == "shuffled")
        self._damper = Damper(stability)
        self._scores = Scorekeeper()
        self._now_s = 0.0
        self._stalled = False
        self._work_s = np.zeros(len(policy.variants))  # that waits, as of the observation
        self._quality = np.array([v.quality for v in policy.variants])

    def take_over(self, old: ModelMind) -> None:
        """Keep what an earlier policy's mind knows of the same model."""
        self.predictor.take_over(old.predictor)
        self._scores = old._scores
        self._damper = old._damper
        self._damper.set_policy(self._stability)
        self._now_s = old._now_s

    def learn(self, observation: Observation, *, stalled: bool = False) -> float:
        """Take an observation in; return the seconds of work that wait for this model.

        `stalled`: the host stood still since the last one.
        """
        self._now_s = observation.now_s
        self._stalled = stalled
        self.predictor.learn(observation, stalled=stalled)
        models = self.predictor.models
        for sample in observation.request_samples:
            if sample.alias == self._policy.name and sample.model in models:
                quality = float(self._quality[models.index(sample.model)])
                self._scores.add(self._now_s, sample.latency_s, quality)
        readings = (observation.variants.get(model) for model in models)
        failed = sum(r.failed_requests for r in readings if r is not None)
        for _ in range(min(failed, _MOST_FAILURES)):
            self._scores.add(self._now_s, float("inf"), 0.0)
        self._work_s = self.predictor.work_s(observation)
        return float(self._work_s.sum())

    def decide(
        self, observation: Observation, *, horizon_s: float, contention: float, elsewhere_s: float
    ) -> Decision:
        """Return what to do about this model now."""
        reading = observation.models.get(self._policy.name)
        serving = self._serving(reading)
        excluded = tuple(
            exclusion(
                self._policy,
                variant,
                observation.variants.get(variant.model),
                reading,
                serves=i == serving,
            )
            for i, variant in enumerate(self._policy.variants)
        )
        allowed = np.array([reason is None for reason in excluded])
        prediction = self.predictor.predict(
            observation,
            work_s=self._work_s,
            horizon_s=horizon_s,
            contention=contention,
            elsewhere_s=elsewhere_s,
        )
        with np.errstate(all="ignore"):
            value = value_per_request(
                rollout=prediction.rollout,
                quality=self._quality,
                miss_ratio=prediction.miss_ratio,
                known=allowed & prediction.known,
                horizon_s=horizon_s,
                limit_s=prediction.raw_limit_s,
            )
        budget = self._policy.objective.allowed_miss_ratio
        feasible = allowed & prediction.known & (prediction.miss_ratio <= budget)
        while_s = np.full(len(allowed), _NOTICED_AFTER * horizon_s)
        if serving is not None:
            while_s[serving] = horizon_s  # from what will not do, a switch takes a window to help
        feasible &= self._withstands(prediction, while_s)
        desired, reason = self._desire(prediction, value, feasible, allowed, serving)
        target, reason = self._bound(observation, reading, serving, desired, reason)
        rate_rps, high_rps = prediction.forecast.quantiles(0.5, _HIGH)
        speed = prediction.rollout.throughput_rows_s
        target, reason = self._damp(serving, target, reason, speed)
        if target is not None and target != serving:
            self._damper.moved(self._now_s, upgrade=not self._faster(speed, target, serving))
        stays = target if target is not None else serving
        if stays is not None:
            self.predictor.state_for(self._now_s, stays, prediction)
        return Decision(
            now_s=observation.now_s,
            sequence=observation.sequence,
            model=self._policy.name,
            serving=self._name(serving),
            desired=self._name(desired),
            target=self._name(target),
            reason=reason,
            candidates=self._candidates(prediction, value, feasible, excluded),
            rate_rps=rate_rps,
            rate_p95_rps=high_rps,
            rows_per_request=prediction.forecast.rows_per_request,
            backlog_requests=prediction.backlog_requests,
            backlog_s=prediction.backlog_s,
            drift_ratio=prediction.drift_ratio,
            urgent=reason in _URGENT
            and target is not None
            and self._faster(speed, target, serving),
        )

    def is_pressing(self, reading: ModelReading | None, pending: Mapping[str, int]) -> bool:
        """Return whether so much waits on the variant that serves that a faster one may be due.

        Args:
            reading: the model's, now.
            pending: requests that wait now, by Triton's name.
        """
        serving = self._serving(reading)
        if reading is None or serving is None:
            return False
        if reading.switching or reading.paused or reading.held or reading.pinned is not None:
            return False
        order = self.predictor.speed_order()
        if order is None or order[0] == serving:
            return False
        waits_s = self.predictor.waits_s(serving, pending.get(self.predictor.models[serving], 0))
        return waits_s > _PRESSING * self._policy.objective.latency_s

    def _serving(self, reading: ModelReading | None) -> int | None:
        models = self.predictor.models
        if reading is None or reading.serving not in models:
            return None
        return models.index(reading.serving)

    def _withstands(self, prediction: Prediction, while_s: Floats) -> NDArray[np.bool_]:
        """Return whether a variant is in time even if the load is high for a while. [variants]."""
        rollout, forecast = prediction.rollout, prediction.forecast
        high = forecast.quantile(_HIGH) / max(forecast.mean_rps, 1e-9)
        with np.errstate(all="ignore"):
            gathered_s = (rollout.utilization_ratio * high - 1.0) * while_s
            late_s = prediction.stated_s + np.maximum(gathered_s, 0.0)
            return np.asarray(late_s <= self._policy.objective.latency_s)

    def _desire(
        self,
        prediction: Prediction,
        value: Floats,
        feasible: NDArray[np.bool_],
        allowed: NDArray[np.bool_],
        serving: int | None,
    ) -> tuple[int | None, Reason]:
        """Return what would be best, before bounds and damping."""
        known = prediction.known & allowed
        speed = prediction.rollout.throughput_rows_s
        sane = prediction.sane and bool(np.isfinite(value).all())
        if not allowed.any():
            return None, Reason.NO_CHOICE
        if not sane or (known.any() and self._distrusted()):
            target = by_backlog(
                quality=self._quality,
                allowed=known if known.any() else allowed,
                backlog_s=max(prediction.backlog_s, prediction.drain_s),
                service_s=prediction.rollout.single_s,
                utilization_ratio=prediction.rollout.utilization_ratio,
                limit_s=self._policy.objective.latency_s,
            )
            return target, Reason.FALLBACK
        if not known.any():
            return int(np.where(allowed, -self._quality, -np.inf).argmax()), Reason.IGNORANCE
        queued = prediction.backlog_s > _QUEUED * self._policy.objective.latency_s
        if (queued or self._stalled) and serving is not None and known[serving]:
            # Beside a queue a slower variant looks good for having none. It would share the device
            # with what waits, and arrivals look few while full batches are executed. After a stall
            # of the host there is a queue that the counters do not show yet.
            known = known & (speed >= speed[serving])
        choosable = feasible & known
        if serving is not None:
            # A move towards quality must be predicted to leave some of the budget.
            margin = _UPGRADE_SHARE * self._policy.objective.allowed_miss_ratio
            choosable &= (speed >= speed[serving]) | (prediction.miss_ratio <= margin)
        if not choosable.any():
            # A variant that cannot keep up only builds a second backlog beside the first.
            stable = known & (prediction.rollout.utilization_ratio <= _STABLE)
            if not stable.any():
                return int(np.where(known, speed, -np.inf).argmax()), Reason.RECOVERY
            return _best(-prediction.miss_ratio, stable, speed), Reason.RECOVERY
        best = _best(value, choosable, speed)
        if best == serving:
            return best, Reason.STEADY
        escapes = serving is not None and not feasible[serving] and speed[best] > speed[serving]
        return best, Reason.ESCAPE if escapes else Reason.BEST_FEASIBLE

    def _distrusted(self) -> bool:
        coverage = self.predictor.coverage
        enough = self.predictor.outcomes >= _TRUST_OUTCOMES
        return coverage is not None and enough and coverage < _TRUST

    def _bound(
        self,
        observation: Observation,
        reading: ModelReading | None,
        serving: int | None,
        target: int | None,
        reason: Reason,
    ) -> tuple[int | None, Reason]:
        """Apply what operators and the state of the world forbid."""
        if reading is not None and reading.held:
            return None, Reason.HELD
        if reading is not None and reading.pinned is not None:
            names = [variant.name for variant in self._policy.variants]
            if reading.pinned in names:
                return names.index(reading.pinned), Reason.PINNED
        if reading is not None and reading.paused:
            return None, Reason.PAUSED
        age_s = observation.readings_age_s
        if (age_s is None or age_s > self._stability.stale_after_s) and serving is not None:
            return None, Reason.STALE_DATA
        return target, reason

    def _damp(
        self, serving: int | None, target: int | None, reason: Reason, speed: Floats
    ) -> tuple[int | None, Reason]:
        """Hold back a move towards quality that follows too soon; never one to a faster variant."""
        if target is None or serving is None or target == serving or reason in _UNDAMPED:
            return target, reason
        if self._faster(speed, target, serving):
            return target, reason
        held = self._damper.hold(self._now_s)
        return (target, reason) if held is None else (serving, held)

    @staticmethod
    def _faster(speed: Floats, target: int, serving: int | None) -> bool:
        return serving is None or bool(speed[target] > speed[serving])

    def _candidates(
        self,
        prediction: Prediction,
        value: Floats,
        feasible: NDArray[np.bool_],
        excluded: tuple[Excluded | None, ...],
    ) -> tuple[Candidate, ...]:
        rollout = prediction.rollout
        known, single_s = prediction.known.tolist(), rollout.single_s.tolist()
        utilization_ratio = rollout.utilization_ratio.tolist()
        p50_s, p99_s = prediction.p50_s.tolist(), prediction.stated_s.tolist()
        miss_ratio, values = prediction.miss_ratio.tolist(), value.tolist()
        feasibles = feasible.tolist()
        return tuple(
            Candidate(
                variant=variant.name,
                model=variant.model,
                quality=variant.quality,
                excluded=excluded[i],
                known=known[i],
                service_s=single_s[i],
                utilization_ratio=utilization_ratio[i],
                p50_s=p50_s[i],
                p99_s=p99_s[i],
                miss_ratio=miss_ratio[i],
                value=values[i],
                feasible=feasibles[i],
            )
            for i, variant in enumerate(self._policy.variants)
        )

    def _name(self, index: int | None) -> str | None:
        return None if index is None else self._policy.variants[index].name

    def score(self) -> Score:
        """Return how this model did in the last minute."""
        objective = self._policy.objective
        return self._scores.score(self._now_s, objective.latency_s, objective.percentile)

    def speed_order(self) -> tuple[str, ...]:
        """Return the variants' names, fastest first; by quality while one is unknown."""
        measured = self.predictor.speed_order()
        order = np.argsort(self._quality, kind="stable") if measured is None else measured
        return tuple(self._policy.variants[i].name for i in order)

    def state(self) -> dict[str, Any]:
        """Return what was learned. JSON-ready."""
        return self.predictor.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError."""
        self.predictor.restore(state)


def _best(value: Floats, allowed: NDArray[np.bool_], speed: Floats) -> int:
    """Return the allowed candidate of the highest value; ties go to the fastest."""
    top = value[allowed].max()
    tied = allowed & (value >= top - _TIE)
    return int(np.where(tied, speed, -np.inf).argmax())
