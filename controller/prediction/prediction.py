"""What is predicted of every variant, for all models at once.

Owns how rollouts and calibrations make predictions. It must not learn or choose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.prediction.arrivals import RateForecast, renew
from controller.prediction.calibration import factors, raw_limit_s, stated_s
from controller.prediction.latency import Situation, roll_forward
from controller.prediction.placement import Placement
from controller.prediction.predictor import ModelPredictor
from controller.prediction.promise import told_s
from controller.prediction.queues import Queues, unfinished_s
from controller.prediction.rollout import Rollout

Floats = NDArray[np.float64]

_TOGETHER: Final = 32  # models
_TAIL: Final = 3.0  # latencies fall off as this power past the stated quantile
_MAX_LATENCY_NOISE: Final = 0.5


class Prediction(NamedTuple):
    """What is predicted for every variant of a model. Lists have one entry a variant.

    A tuple, as what it is made of is: there may be hundreds a tick.
    """

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
    known: list[bool]  # whether it was ever measured
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
    *,
    queues: Queues,
    horizon_s: float,
    contention: float,
    placement: Placement,
    busy_ratio: Mapping[str, float],
) -> list[Prediction]:
    """Return what the next window looks like for models of one pool. Never raises on odd numbers.

    Args:
        predictors: of the models.
        queues: what waits and runs, of the same models.
        horizon_s: until the next decision takes effect.
        contention: how much work elsewhere slows a variant, 0 to 1.
        placement: which variants share a device.
        busy_ratio: the share of the time in which each variant's batches are in execution.
    """
    slowdown = None
    if busy_ratio:
        busy = placement.busy_beside(busy_ratio)
        slowdown = np.where(busy > 0.0, 1.0 + contention * busy, 1.0)  # of nan, none
    found: list[Prediction] = []
    renew([predictor.arrivals for predictor in predictors])
    with np.errstate(all="ignore"):
        situations = _situations(predictors, queues, placement, slowdown)
        totals_s = queues.totals(queues.work_s).tolist()
        slowed = np.ones(len(queues.work_s)) if slowdown is None else slowdown
        # Several at once, as each call of numpy costs as much as the numbers of a few models; not
        # all at once, as these would not fit the processor's cache.
        for at in range(0, len(predictors), _TOGETHER):
            some = slice(at, at + _TOGETHER)
            rollout = roll_forward(situations[some], horizon_s=horizon_s, contention=contention)
            found += _conclude(
                predictors[some],
                situations[some],
                rollout,
                queues.requests[some],
                totals_s[some],
                [slowed[part] for part in queues.parts[some]],
            )
    return found


def _situations(
    predictors: Sequence[ModelPredictor],
    queues: Queues,
    placement: Placement,
    slowdown: Floats | None,
) -> list[Situation]:
    """Return what waits and what is to come for each model, by what was learned."""
    of_all_s = predictors[0].service.table_s()
    left_s = unfinished_s(queues, of_all_s, slowdown)
    # On its device, beside each variant: what other models have, and its siblings.
    other_s = placement.work_beside_s(queues.work_s) - left_s
    if placement.devices == 1:
        other_s += np.repeat(queues.totals(left_s), queues.sizes())
    else:
        other_s += np.concatenate(
            [placement.meeting(i) @ left_s[part] for i, part in enumerate(queues.parts)]
        )
    # What no variant forms need not be copied.
    table_s = of_all_s[:, : int(queues.limits.max())][queues.lookup]
    if slowdown is not None and slowdown.max() > 1.0:
        table_s *= slowdown[:, None]
    return [
        Situation(
            table_s=table_s[part],
            limits=queues.limits[part],
            waiting_rows=queues.waiting_rows[part],
            running_rows=queues.running_rows[part],
            other_work_s=other_s[part],
            forecast=predictor.arrivals.forecast(),
            instances=predictor.instances if predictor.has_several else None,
            overlap=predictor.overlap,
        )
        for predictor, part in zip(predictors, queues.parts, strict=True)
    ]


def with_instances(
    predictor: ModelPredictor,
    prediction: Prediction,
    instances: Floats,
    *,
    horizon_s: float,
    contention: float,
) -> Prediction:
    """Return what the same window would look like with other numbers of instances.

    Args:
        predictor: of the model.
        prediction: of it, now.
        instances: of each variant. [variants].
        horizon_s: until the next decision takes effect.
        contention: how much work elsewhere slows a variant, 0 to 1.
    """
    situation = prediction.situation._replace(instances=instances, overlap=predictor.overlap)
    with np.errstate(all="ignore"):
        rollout = roll_forward([situation], horizon_s=horizon_s, contention=contention)
        concluded = _conclude(
            [predictor],
            [situation],
            rollout,
            [prediction.backlog_requests],
            [prediction.backlog_s],
            [np.array(prediction.slowdown)],
        )
        return next(concluded)


def _conclude(
    predictors: Sequence[ModelPredictor],
    situations: Sequence[Situation],
    rollout: Rollout,
    requests: Sequence[int],
    totals_s: Sequence[float],
    slowdown: Sequence[Floats],
) -> Iterator[Prediction]:
    """Yield the calibrated predictions of models whose rollouts are stacked."""
    sizes = [len(situation.limits) for situation in situations]
    calibrations = [predictor.calibration for predictor in predictors]
    objectives = [predictor.objective for predictor in predictors]
    # One number of each model.
    latency_s, budget, percentile, offset_s, promised = np.repeat(
        [
            (
                objective.latency_s,
                objective.allowed_miss_ratio,
                objective.percentile,
                calibration.offset_s,
                calibration.promise.factor,
            )
            for objective, calibration in zip(objectives, calibrations, strict=True)
        ],
        sizes,
        axis=0,
    ).T
    p50_s, raw_s = rollout.quantiles_s(0.5, percentile / 100.0)
    of_each = itertools.chain.from_iterable(one.calibrations.values() for one in calibrations)
    stretched = np.array(factors(list(of_each)))
    stated = stated_s(raw_s, stretched, offset_s)
    raw_limits = raw_limit_s(latency_s, stretched, offset_s)
    service = predictors[0].service
    lookup = np.concatenate([predictor.lookup for predictor in predictors])
    rows = np.concatenate([predictor.rows for predictor in predictors])
    # In its body the model is trusted unless it proved too careful; in the tail the calibrated
    # quantile is what was seen.
    noise = np.minimum(service.noise[lookup], _MAX_LATENCY_NOISE)
    body = rollout.miss_ratio(np.maximum(raw_limits, latency_s), noise)
    tail = budget * (stated / latency_s) ** _TAIL
    miss_ratio = np.minimum(np.maximum(body, tail), 1.0).tolist()
    utilization, leftover_s = rollout.utilization_ratio.tolist(), rollout.leftover_s.tolist()
    throughput, single_s = rollout.throughput_rows_s.tolist(), rollout.single_s.tolist()
    told, known = told_s(stated, promised, offset_s).tolist(), service.known()[rows].tolist()
    p50, raw, said, limits = p50_s.tolist(), raw_s.tolist(), stated.tolist(), raw_limits.tolist()
    slowed = np.concatenate(slowdown).tolist()
    began = 0
    for predictor, situation, pending, total_s, size in zip(
        predictors, situations, requests, totals_s, sizes, strict=True
    ):
        part = slice(began, began + size)
        began += size
        yield Prediction(
            forecast=situation.forecast,
            utilization_ratio=utilization[part],
            leftover_s=leftover_s[part],
            throughput_rows_s=throughput[part],
            single_s=single_s[part],
            slowdown=slowed[part],
            raw_s=raw[part],
            stated_s=said[part],
            told_s=told[part],
            p50_s=p50[part],
            miss_ratio=miss_ratio[part],
            known=known[part],
            raw_limit_s=limits[part],
            drift_ratio=predictor.drift_ratio,
            backlog_requests=pending,
            backlog_s=total_s,
            drain_s=predictor.drain_s(pending),
            situation=situation,
        )
