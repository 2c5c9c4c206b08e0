"""What is predicted of every variant, for all models at once.

Owns how rollouts and calibrations make predictions. It must not learn or choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.arrivals import RateForecast, renew
from controller.prediction.latency import Situation, roll_forward
from controller.prediction.placement import Placement
from controller.prediction.predictor import ModelPredictor
from controller.prediction.rollout import Rollout
from controller.telemetry.observation import Observation

Floats = NDArray[np.float64]

_TOGETHER: Final = 16  # models
_TAIL: Final = 3.0  # latencies fall off as this power past the stated quantile
_MAX_LATENCY_NOISE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for every variant of a model. Lists have one entry a variant."""

    forecast: RateForecast
    utilization_ratio: list[float]  # at the mean rate
    leftover_s: list[float]  # work left at the window's end, in seconds of the fastest one's time
    throughput_rows_s: list[float]
    single_s: list[float]  # a batch of one mean request
    slowdown: list[float]  # of the above, by what others run beside
    raw_s: list[float]  # latency at the objective's percentile, before calibration
    stated_s: list[float]  # after: what is decided by
    told_s: list[float]  # to people, true of the objective's share of requests
    p50_s: list[float]
    miss_ratio: list[float]  # calibrated
    known: list[bool]
    raw_limit_s: list[float]  # what a latency before calibration may be, to be stated as in time
    drift_ratio: float
    backlog_requests: int
    backlog_s: float  # by the learned service times
    drain_s: float  # by the measured rate of completions alone
    situation: Situation  # that it is of

    @property
    def sane(self) -> bool:
        """Return whether every number can be decided on."""
        return all(map(math.isfinite, self.miss_ratio)) and all(map(math.isfinite, self.raw_s))


def predict(
    predictors: Sequence[ModelPredictor],
    observation: Observation,
    *,
    work_s: Sequence[Floats],
    horizon_s: float,
    contention: float,
    placement: Placement,
    busy_ratio: Mapping[str, float],
) -> list[Prediction]:
    """Return what the next window looks like for models of one pool. Never raises on odd numbers.

    Args:
        predictors: of the models.
        observation: what there is now, already learned from.
        work_s: of each model, the seconds of work that wait on each variant. [variants].
        horizon_s: until the next decision takes effect.
        contention: how much work elsewhere slows a variant, 0 to 1.
        placement: which variants share a device.
        busy_ratio: the share of the time in which each variant's batches are in execution.
    """
    totals_s = [float(work.sum()) for work in work_s]
    beside_s = placement.work_beside_s(work_s)
    slowdown = placement.undisturbed
    if busy_ratio:
        slowdown = [1.0 + contention * busy for busy in placement.busy_beside(busy_ratio)]
    found: list[Prediction] = []
    renew([predictor.arrivals for predictor in predictors])
    with np.errstate(all="ignore"):
        # Several at once, as each call of numpy costs as much as the numbers of a few models; not
        # all at once, as these would not fit the processor's cache.
        for at in range(0, len(predictors), _TOGETHER):
            some = slice(at, at + _TOGETHER)
            situations = [
                predictors[i].situation(
                    observation,
                    elsewhere_s=beside_s[i],
                    slowdown=slowdown[i],
                    meeting=placement.meeting(i) if placement.devices > 1 else None,
                )
                for i in range(at, min(at + _TOGETHER, len(predictors)))
            ]
            rollout = roll_forward(situations, horizon_s=horizon_s, contention=contention)
            found += _conclude(
                predictors[some], observation, situations, rollout, totals_s[some], slowdown[some]
            )
    return found


def with_instances(
    predictor: ModelPredictor,
    observation: Observation,
    prediction: Prediction,
    instances: Floats,
    *,
    horizon_s: float,
    contention: float,
) -> Prediction:
    """Return what the same window would look like with other numbers of instances.

    Args:
        predictor: of the model.
        observation: what there is now.
        prediction: of it.
        instances: of each variant. [variants].
        horizon_s: until the next decision takes effect.
        contention: how much work elsewhere slows a variant, 0 to 1.
    """
    situation = replace(prediction.situation, instances=instances, overlap=predictor.overlap)
    with np.errstate(all="ignore"):
        rollout = roll_forward([situation], horizon_s=horizon_s, contention=contention)
        concluded = _conclude(
            [predictor],
            observation,
            [situation],
            rollout,
            [prediction.backlog_s],
            [np.array(prediction.slowdown)],
        )
        return next(concluded)


def _conclude(
    predictors: Sequence[ModelPredictor],
    observation: Observation,
    situations: Sequence[Situation],
    rollout: Rollout,
    totals_s: Sequence[float],
    slowdown: Sequence[Floats],
) -> Iterator[Prediction]:
    """Yield the calibrated predictions of models whose rollouts are stacked."""
    sizes = [len(situation.limits) for situation in situations]
    objectives = [predictor.objective for predictor in predictors]
    latency_s = np.repeat([objective.latency_s for objective in objectives], sizes)
    budget = np.repeat([objective.allowed_miss_ratio for objective in objectives], sizes)
    percentile = np.repeat([objective.percentile for objective in objectives], sizes)
    p50_s, raw_s = rollout.quantiles_s(0.5, percentile / 100.0)
    ends = np.cumsum(sizes).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    stated, raw_limits = [], []
    raw = raw_s.tolist()
    for predictor, part in zip(predictors, parts, strict=True):
        stated_of, limits_of = predictor.calibrated(raw[part])
        stated += stated_of
        raw_limits += limits_of
    # In its body the model is trusted unless it proved too careful; in the tail the calibrated
    # quantile is what was seen.
    noise = np.concatenate([predictor.noise for predictor in predictors])
    noise = np.minimum(noise, _MAX_LATENCY_NOISE)
    body = rollout.miss_ratio(np.maximum(raw_limits, latency_s), noise)
    tail = budget * (np.array(stated) / latency_s) ** _TAIL
    miss = np.minimum(np.maximum(body, tail), 1.0).tolist()
    utilization, leftover_s = rollout.utilization_ratio.tolist(), rollout.leftover_s.tolist()
    throughput, single_s = rollout.throughput_rows_s.tolist(), rollout.single_s.tolist()
    p50 = p50_s.tolist()
    for predictor, situation, part, total_s, slowed in zip(
        predictors, situations, parts, totals_s, slowdown, strict=True
    ):
        pending = predictor.pending(observation)
        yield Prediction(
            forecast=situation.forecast,
            utilization_ratio=utilization[part],
            leftover_s=leftover_s[part],
            throughput_rows_s=throughput[part],
            single_s=single_s[part],
            slowdown=slowed.tolist(),
            raw_s=raw[part],
            stated_s=stated[part],
            told_s=predictor.told_s(stated[part]),
            p50_s=p50[part],
            miss_ratio=miss[part],
            known=predictor.known(),
            raw_limit_s=raw_limits[part],
            drift_ratio=predictor.drift_ratio,
            backlog_requests=pending,
            backlog_s=total_s,
            drain_s=predictor.drain_s(pending),
            situation=situation,
        )
