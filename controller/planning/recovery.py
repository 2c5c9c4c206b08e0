"""What to do when nothing meets the objective: who would get out of it, and stay out.

Owns which variants are worth waiting on while a queue is worked off. It must not value or damp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from controller.prediction.prediction import Prediction

_STABLE: Final = 0.95  # utilisation up to which a queue can be expected to empty
_ROUNDS: Final = 3  # of finding the batch that feeds itself
_TINY: Final = 1e-9


def in_time_now_and_later(
    prediction: Prediction, among: Sequence[int], limit_s: float
) -> list[float] | None:
    """Return the shares of requests in time on each variant, in this window and in the end, summed.

    Who cannot keep up gathers another queue beside the one there is. Who can, but needs most of
    the objective for a batch, is late without any queue. The rate is a forecast, and known badly
    just when requests wait: so it is asked how probably a variant keeps up, and what is certain
    to be late now weighs as much.

    Args:
        prediction: of all variants.
        among: those that may serve. None is returned where none of them is in time in the end.
        limit_s: the objective. What is stated may be stretched by what just came of it, which
            says little of the end.
    """
    lasting = [lasting_ratio(prediction, i, limit_s) for i in range(len(prediction.miss_ratio))]
    if not any(lasting[i] for i in among):
        return None
    return [share + 1.0 - miss for share, miss in zip(lasting, prediction.miss_ratio, strict=True)]


def lasting_ratio(prediction: Prediction, variant: int, limit_s: float) -> float:
    """Return the share of requests in time on a variant once nothing waits any more."""
    forecast = prediction.forecast
    rows = forecast.rows_per_request
    bears_rps = _STABLE * prediction.throughput_rows_s[variant] / rows
    keeps_up = float(forecast.weights[forecast.rates_rps <= bears_rps].sum())
    return keeps_up * (1.0 - _late_ratio(prediction, variant, forecast.mean_rps * rows, limit_s))


def _late_ratio(prediction: Prediction, variant: int, rows_s: float, limit_s: float) -> float:
    """Return the share of requests that is late for the time of the batches alone.

    Who comes while all instances are busy waits until one is free, and then for its own batch.
    """
    situation = prediction.situation
    instances = 1.0 if situation.instances is None else float(situation.instances[variant])
    table_s = situation.table_s[variant] * prediction.slowdown[variant]
    most = int(situation.limits[variant])
    batch, took_s = 1.0, float(table_s[0])
    for _ in range(_ROUNDS):  # as many come while it runs as it holds
        batch = min(most, max(1.0, rows_s * took_s / instances))  # in this order: of nan, 1
        took_s = float(table_s[round(batch) - 1])
    busy = min(rows_s * took_s / batch / instances, 1.0)
    waits = min(max(1.0 + instances * (1.0 - limit_s / max(took_s, _TINY)), 0.0), 1.0)
    return busy * waits + (1.0 - busy) * float(table_s[0] > limit_s)
