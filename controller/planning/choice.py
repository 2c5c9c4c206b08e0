"""The choice for one model: desire, then bounds, then damping, each with its reason.

Owns the order of those steps and what is remembered of one model between ticks. It must not
predict or act.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.bounds import exclusions, may_serve
from controller.planning.decision import Candidate, Decision, Excluded, Reason
from controller.planning.fallback import by_backlog
from controller.planning.lull import Lull
from controller.planning.profiles import Profiles
from controller.planning.recovery import in_time_now_and_later
from controller.planning.scorekeeper import Score, Scorekeeper
from controller.planning.sizing import Sizer
from controller.planning.stability import Damper
from controller.planning.value import (
    late_if_it_rises,
    need_per_s,
    priced,
    value_per_request,
    worth_if_loaded,
)
from controller.policy.model import ModelPolicy, StabilityPolicy
from controller.prediction.demand import Demand
from controller.prediction.prediction import Prediction
from controller.prediction.predictor import ModelPredictor
from controller.prediction.service import ServiceTimes
from controller.prediction.statements import Statement
from controller.telemetry.observation import ModelReading, Observation

Floats = NDArray[np.float64]

_TIE: Final = 1e-4  # values closer than this are the same: the faster one
_SAME_PROFILE: Final = 0.005  # the same, of profiles of one variant: the one that serves
_SAME_IN_RECOVERY: Final = 0.1  # the same, where nothing is in time: of the shares in time
_UPGRADE_SHARE: Final = 0.5  # of the error budget that a move towards quality may use
_QUEUED: Final = 0.15  # of the objective: with more work waiting, no move to a slower variant
_PRESSING: Final = 0.1  # of the objective: with more work waiting, a tick comes early
_HIGH: Final = 0.95  # quantile of the forecast of the rate
# Under this coverage of stated quantiles the fallback decides. An overload that nobody could
# foresee costs some coverage; only a predictor that knows nothing costs so much.
_TRUST: Final = 0.60
_TRUST_OUTCOMES: Final = 300

# As `Candidate._make` does it, without asking how many there are: thousands a tick.
_candidate: Final = partial(tuple.__new__, Candidate)

_URGENT: Final = frozenset({Reason.ESCAPE, Reason.RECOVERY})
_UNDAMPED: Final = frozenset({Reason.PINNED, Reason.IGNORANCE})


class ModelMind:
    """Learns and decides for one model."""

    def __init__(
        self,
        policy: ModelPolicy,
        stability: StabilityPolicy,
        service: ServiceTimes,
        *,
        ablation: str | None = None,
        phase_s: float = 0.0,
        probes: bool = True,
    ) -> None:
        self._policy = policy
        self._probes = probes
        self._stability = stability
        self.predictor = ModelPredictor(
            policy, service, shuffled=ablation == "shuffled", phase_s=phase_s
        )
        self._damper = Damper(stability)
        self._scores = Scorekeeper()
        self.demand = Demand(len(policy.variants), phase_s)
        self.sizer = Sizer(policy, phase_s)
        self._now_s = 0.0
        self._stalled = False
        # At the last decision: the variant that needs its device, and what for; None: none does.
        self.need_per_s: tuple[int, float] | None = None
        self.quality = [v.quality for v in policy.variants]
        self._names = tuple(v.name for v in policy.variants)
        self._profiles = Profiles(policy)
        self._lull = Lull()

    def take_over(self, old: ModelMind) -> None:
        """Keep what an earlier policy's mind knows of the same model."""
        self.predictor.take_over(old.predictor)
        self._scores = old._scores
        self._damper = old._damper
        self._damper.set_policy(self._stability)
        if (old._policy.objective, old._policy.variants) == (
            self._policy.objective,
            self._policy.variants,
        ):
            self._lull = old._lull
        self._now_s = old._now_s
        before = old.predictor.models
        at = [before.index(m) if m in before else None for m in self.predictor.models]
        self.demand.take_over(old.demand, at)
        self.sizer.take_over(old.sizer)

    def learn(
        self, observation: Observation, *, largest_rows: Mapping[str, int], stalled: bool = False
    ) -> None:
        """Take an observation in.

        Args:
            observation: what there is now.
            largest_rows: of the batches that were measured lately, by Triton's name.
            stalled: whether the host stood still since the last one.
        """
        self._now_s = observation.now_s
        self._stalled = stalled
        self.predictor.learn(observation, largest_rows=largest_rows, stalled=stalled)
        own = observation.models.get(self._policy.name)
        serving = None if own is None else own.serving
        late = self.predictor.late(observation)
        if late is not None:  # which variant one request got is not told
            readings = [late.as_reading()]
        else:
            found = self.predictor.readings(observation)
            readings = [reading for reading in found if reading is not None]
        if observation.request_samples:
            worth = dict(zip(self.predictor.models, self.quality, strict=True))
            if late is not None and late.quality is not None:
                worth[late.model] = late.quality
            for sample in observation.request_samples:
                if sample.alias == self._policy.name and sample.model in worth:
                    self._scores.add(self._now_s, sample.latency_s, worth[sample.model])
        self._scores.count(self._now_s, readings, serving)

    def decide(
        self,
        observation: Observation,
        prediction: Prediction,
        *,
        horizon_s: float,
        price_per_s: Floats | None = None,
        lost: frozenset[int] = frozenset(),
    ) -> Decision:
        """Return what to do about this model now, of which that is predicted.

        `price_per_s`: of a second of each variant's device that others need, in weighted quality.
        None: nobody does. [variants]. `lost`: the GPUs on which nothing should run.
        """
        reading = observation.models.get(self._policy.name)
        serving = self._serving(reading)
        excluded = exclusions(self._policy, observation, lost, serving)
        leaves = serving is not None and excluded[serving] is Excluded.GPU_LOST
        allowed = [reason is None for reason in excluded]
        known = [a and k for a, k in zip(allowed, prediction.known, strict=True)]
        value = value_per_request(
            prediction, quality=self.quality, known=known, horizon_s=horizon_s
        )
        forecast = prediction.forecast
        high_rps = forecast.quantile(_HIGH)
        high = high_rps / max(forecast.mean_rps, 1e-9)
        budget = self._policy.objective.allowed_miss_ratio
        late_s = late_if_it_rises(prediction, high, horizon_s, serving)
        limit_s = self._policy.objective.latency_s
        in_time = [
            miss <= budget and late <= limit_s
            for miss, late in zip(prediction.miss_ratio, late_s, strict=True)
        ]
        feasible = [k and timely for k, timely in zip(known, in_time, strict=True)]
        if self.demand.is_due(self._now_s):
            worth = worth_if_loaded(
                prediction,
                quality=self.quality,
                value=value,
                in_time=in_time,
                may_serve=may_serve(self._policy, excluded),
                probes=self._probes,
            )
            self.demand.observe(self._now_s, forecast.mean_rps, worth)
        self.need_per_s = None
        if reading is None or reading.is_free:  # else it needs none of others' time
            self.need_per_s = need_per_s(
                prediction, quality=self.quality, known=known, feasible=feasible
            )
        alone = value
        if price_per_s is not None:
            value = priced(value, prediction, price_per_s / self._policy.weight)
        pays = self._lull.pays(self.predictor.lulls, prediction, self.quality, known, serving)
        choices = (feasible, known, allowed, serving, pays)
        desired, reason = self._desire(prediction, value, *choices)
        if price_per_s is not None and reason in {Reason.BEST_FEASIBLE, Reason.STEADY}:
            unpriced, _ = self._desire(prediction, alone, *choices)
            reason = Reason.YIELDS if _is_worse(alone, desired, unpriced) else reason
        if leaves and reason in {Reason.BEST_FEASIBLE, Reason.LULL}:
            reason = Reason.ESCAPE
        target, reason = self._bound(observation, reading, serving, desired, reason)
        speed = prediction.throughput_rows_s
        if not leaves:
            target, reason = self._damp(serving, target, reason, speed)
        advised = reading is not None and reading.advised
        if target is not None and target != serving and not advised:
            self._damper.moved(self._now_s, upgrade=not self._faster(speed, target, serving))
        self.predictor.state_for(
            self._now_s,
            {
                i: Statement(prediction.raw_s[i], prediction.stated_s[i], prediction.told_s[i])
                for i in (serving, target)
                if i is not None
            },
        )
        return Decision(
            now_s=observation.now_s,
            sequence=observation.sequence,
            model=self._policy.name,
            serving=self._name(serving),
            desired=self._name(desired),
            target=self._name(target),
            reason=reason,
            candidates=self._candidates(prediction, value, feasible, excluded),
            rate_rps=forecast.quantile(0.5),
            rate_p95_rps=high_rps,
            rows_per_request=forecast.rows_per_request,
            backlog_requests=prediction.backlog_requests,
            backlog_s=prediction.backlog_s,
            drift_ratio=prediction.drift_ratio,
            urgent=reason in _URGENT
            and target is not None
            and (leaves or self._faster(speed, target, serving)),
            advised=advised,
            objective_s=self._policy.objective.latency_s,
        )

    def is_pressing(self, reading: ModelReading | None, pending: Mapping[str, int]) -> bool:
        """Return whether so much waits on the variant that serves that a faster one may be due.

        Args:
            reading: the model's, now.
            pending: requests that wait now, by Triton's name.
        """
        serving = self._serving(reading)
        if reading is None or serving is None or reading.switching or not reading.is_free:
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

    def _desire(
        self,
        prediction: Prediction,
        value: list[float],
        feasible: list[bool],
        known: list[bool],
        allowed: list[bool],
        serving: int | None,
        pays: list[bool] | None,
    ) -> tuple[int | None, Reason]:
        """Return what would be best, before bounds and damping; `pays`: in a lull, if it is one."""
        speed = prediction.throughput_rows_s
        if not any(allowed):
            return None, Reason.NO_CHOICE
        sane = prediction.sane and all(map(math.isfinite, value))
        if not sane or (any(known) and self._distrusted()):
            target = by_backlog(
                quality=np.array(self.quality),
                allowed=np.array(known if any(known) else allowed),
                backlog_s=max(prediction.backlog_s, prediction.drain_s),
                service_s=np.array(prediction.single_s),
                utilization_ratio=np.array(prediction.utilization_ratio),
                limit_s=self._policy.objective.latency_s,
            )
            return target, Reason.FALLBACK
        if not any(known):
            return min(_where(allowed), key=self.quality.__getitem__), Reason.IGNORANCE
        queued = prediction.backlog_s > _QUEUED * self._policy.objective.latency_s
        among = _where(known)
        if (queued or self._stalled) and serving is not None and known[serving]:
            # Beside a queue a slower variant looks good for having none. It would share the device
            # with what waits, and arrivals look few while full batches are executed. After a stall
            # of the host there is a queue that the counters do not show yet.
            among = [i for i in among if speed[i] >= speed[serving]]
        choosable = [i for i in among if feasible[i]]
        if serving is not None:
            # A move towards quality must be predicted to leave some of the budget.
            margin = _UPGRADE_SHARE * self._policy.objective.allowed_miss_ratio
            miss = prediction.miss_ratio
            choosable = [i for i in choosable if speed[i] >= speed[serving] or miss[i] <= margin]
        if not choosable:
            limit_s = self._policy.objective.latency_s
            worth = in_time_now_and_later(prediction, among, limit_s)
            if worth is None:
                return max(among, key=speed.__getitem__), Reason.RECOVERY
            among = self._profiles.choose(worth, among, speed, serving, same=_SAME_IN_RECOVERY)
            return _best(worth, among, speed), Reason.RECOVERY
        choosable = self._profiles.choose(value, choosable, speed, serving, same=_SAME_PROFILE)
        best = _best(value, choosable, speed)
        reason = Reason.STEADY if best == serving else Reason.BEST_FEASIBLE
        paying = [i for i in choosable if pays is None or pays[i]]
        if paying and best not in paying:
            best, reason = _best(value, paying, speed), Reason.LULL
        if serving is not None and not feasible[serving] and speed[best] > speed[serving]:
            return best, Reason.ESCAPE
        return best, reason

    def _distrusted(self) -> bool:
        if self.predictor.outcomes < _TRUST_OUTCOMES:
            return False
        coverage = self.predictor.coverage
        return coverage is not None and coverage < _TRUST

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
            return None, Reason.RELEASED if reading.released else Reason.PAUSED
        age_s = observation.readings_age_s
        if (age_s is None or age_s > self._stability.stale_after_s) and serving is not None:
            return None, Reason.STALE_DATA
        return target, reason

    def _damp(
        self, serving: int | None, target: int | None, reason: Reason, speed: list[float]
    ) -> tuple[int | None, Reason]:
        """Hold back a move towards quality that follows too soon; never one to a faster variant."""
        if target is None or serving is None or target == serving or reason in _UNDAMPED:
            return target, reason
        if self._faster(speed, target, serving):
            return target, reason
        held = self._damper.hold(self._now_s)
        return (target, reason) if held is None else (serving, held)

    @staticmethod
    def _faster(speed: list[float], target: int, serving: int | None) -> bool:
        return serving is None or speed[target] > speed[serving]

    def _candidates(
        self,
        prediction: Prediction,
        value: list[float],
        feasible: list[bool],
        excluded: list[Excluded | None],
    ) -> tuple[Candidate, ...]:
        told = zip(
            self._names,
            self.predictor.models,
            self.quality,
            excluded,
            prediction.known,
            prediction.single_s,
            prediction.utilization_ratio,
            prediction.p50_s,
            prediction.stated_s,
            prediction.told_s,
            prediction.miss_ratio,
            value,
            feasible,
            strict=True,
        )
        return tuple(map(_candidate, told))

    def _name(self, index: int | None) -> str | None:
        return None if index is None else self._names[index]

    def score(self) -> Score:
        """Return how this model did in the last minute."""
        objective = self._policy.objective
        return self._scores.score(self._now_s, objective.latency_s, objective.percentile)

    def speed_order(self) -> tuple[str, ...]:
        """Return the variants' names, fastest first; by quality while one is unknown."""
        measured = self.predictor.speed_order()
        order = np.argsort(self.quality, kind="stable") if measured is None else measured
        return tuple(self._policy.variants[i].name for i in order)

    def state(self) -> dict[str, Any]:
        """Return what was learned. JSON-ready."""
        return self.predictor.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError."""
        self.predictor.restore(state)


def _is_worse(value: list[float], one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and value[one] < value[other]


def _where(chosen: list[bool]) -> list[int]:
    return [i for i, is_chosen in enumerate(chosen) if is_chosen]


def _best(value: list[float], among: list[int], speed: list[float]) -> int:
    """Return the candidate of the highest value; ties go to the fastest."""
    least = max([value[i] for i in among]) - _TIE
    return max([i for i in among if value[i] >= least], key=speed.__getitem__)
