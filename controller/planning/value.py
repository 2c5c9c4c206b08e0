"""What a candidate is worth: effective quality now, less what its backlog will cost.

Owns the objective function. It must not damp or forbid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final

from controller.prediction.prediction import Prediction

# Windows that pass until a rise in load is noticed, a switch away took effect, and what waits on
# the variant that was left is worked off beside the other: a variant that cannot keep up gathers
# a backlog meanwhile.
_NOTICED_AFTER: Final = 2.0
_LEAST_SPARE: Final = 0.05
_SAME_LOAD: Final = 1e-9
_TINY: Final = 1e-9
_IDLE_RPS: Final = 0.1  # who gets fewer requests needs nobody to give way


def value_per_request(
    prediction: Prediction,
    *,
    quality: Sequence[float],
    known: Sequence[bool],
    horizon_s: float,
    beside: Prediction | None = None,
) -> list[float]:
    """Return the expected effective quality per request of the window, of each candidate.

    `beside`: what there really is, where a single candidate at a time is otherwise than predicted.

    The terminal value charges the work a choice leaves behind. Device time has a price: what the
    best mix of variants would gain from a second more of it. And later requests miss while the
    fastest variant takes longer than their slack to clear what was left. Without both an overload
    makes all candidates equal and the best quality wins the tie, which is a collapse.
    """
    real = beside or prediction
    speed, load = real.throughput_rows_s, real.utilization_ratio
    fastest = speed.index(max(speed))
    spare = max(1.0 - load[fastest], _LEAST_SPARE)
    limit_s = real.raw_limit_s[fastest]
    slack_s = max(limit_s - 2.0 * real.single_s[fastest], 0.1 * limit_s)
    price = shadow_price(itertools.compress(quality, known), itertools.compress(load, known))
    late_cost, cost = quality[fastest] / spare / horizon_s, price / horizon_s
    return [
        worth * (1.0 - miss)
        - (0.0 if left_s <= slack_s else left_s - slack_s) * late_cost
        - left_s * cost
        for worth, miss, left_s in zip(
            quality, prediction.miss_ratio, prediction.leftover_s, strict=True
        )
    ]


def worth_if_loaded(
    prediction: Prediction,
    *,
    quality: Sequence[float],
    value: Sequence[float],
    in_time: Sequence[bool],
    may_serve: Sequence[bool],
    probes: bool,
) -> list[float]:
    """Return the effective quality of a request now on each variant, if it were loaded.

    The fastest serves whatever the load. A variant that nobody measured is taken at its word where
    somebody `probes` what is loaded: only that can be measured.

    Args:
        prediction: what is predicted of them.
        quality: of each.
        value: what `value_per_request` returns.
        in_time: whether each would meet the objective.
        may_serve: whether the policy lets each.
        probes: whether what is loaded will be measured.
    """
    speed = prediction.throughput_rows_s
    fastest = max(range(len(speed)), key=speed.__getitem__)
    found = []
    for i, known in enumerate(prediction.known):
        worth = min(max(value[i], 0.0), 1.0) if in_time[i] or i == fastest else 0.0
        worth = worth if known else quality[i] * probes
        found.append(worth if may_serve[i] and math.isfinite(worth) else 0.0)
    return found


def shadow_price(quality: Iterable[float], utilization_ratio: Iterable[float]) -> float:
    """Return the quality per request that a device's whole time more would bring.

    The dual of the fluid programme: shares f of the requests for each variant, maximal quality
    sum(f q) within the time there is, sum(f u) <= 1. Its value is the slope, at a load of 1, of
    the upper hull of the variants' (u, q).

    Args:
        quality: of each variant.
        utilization_ratio: of each, the device's time that all requests would take on it.
    """
    ends = sorted(zip(utilization_ratio, (-worth for worth in quality), strict=True))
    if not ends or ends[-1][0] <= 1.0:
        return 0.0  # all of them bear it
    # The best mixes lie between neighbours of the hull. Somebody must bear it: the fastest.
    loads, worths = [min(ends[0][0], 1.0 - _LEAST_SPARE)], [-ends[0][1]]
    for load, negated in ends[1:]:
        worth = -negated
        if worth <= worths[-1]:
            continue
        # What is no better than a mix of those about it, or than one that asks no more.
        while loads and (
            load - loads[-1] <= _SAME_LOAD
            or (
                len(loads) > 1
                and (worths[-1] - worths[-2]) * (load - loads[-1])
                <= (worth - worths[-1]) * (loads[-1] - loads[-2])
            )
        ):
            loads.pop()
            worths.pop()
        loads.append(load)
        worths.append(worth)
    for at in range(1, len(loads)):
        if loads[at] > 1.0:
            return (worths[at] - worths[at - 1]) / (loads[at] - loads[at - 1])
    return 0.0


def device_s(prediction: Prediction) -> list[float]:
    """Return how long a request keeps the device busy, on each variant."""
    rows = prediction.forecast.rows_per_request
    return [rows / max(speed, _TINY) for speed in prediction.throughput_rows_s]


def priced(
    value: Sequence[float], prediction: Prediction, price_per_s: Iterable[float]
) -> list[float]:
    """Return values less what others would have of the device's time.

    Args:
        value: of a request, on each variant.
        prediction: of the model.
        price_per_s: of a second of each variant's device, in this model's quality.
    """
    return [
        worth - float(price) * busy_s
        for worth, price, busy_s in zip(value, price_per_s, device_s(prediction), strict=True)
    ]


def need_per_s(
    prediction: Prediction,
    *,
    quality: Sequence[float],
    known: Sequence[bool],
    feasible: Sequence[bool],
) -> tuple[int, float] | None:
    """Return a variant, and what a second of its device more would be worth; None: none is needed.

    It is where none of a model's variants meets the objective: what those requests would be worth
    that are late on the fastest.
    """
    among = [i for i, is_known in enumerate(known) if is_known]
    if any(feasible) or not among or prediction.forecast.mean_rps < _IDLE_RPS:
        return None
    fastest = max(among, key=prediction.throughput_rows_s.__getitem__)
    slowdown = prediction.slowdown[fastest]
    bears = prediction.utilization_ratio[fastest] / slowdown < 1.0
    in_time = prediction.single_s[fastest] / slowdown <= prediction.raw_limit_s[fastest]
    if slowdown <= 1.0 or not (bears and in_time):
        return None  # it would not do even alone
    lost = quality[fastest] * min(prediction.miss_ratio[fastest], 1.0)
    return fastest, lost / device_s(prediction)[fastest]


def late_if_it_rises(
    prediction: Prediction, high: float, horizon_s: float, serving: int | None
) -> list[float]:
    """Return how late each variant would be if the load were `high` times as high for a while."""
    # From what will not do, a switch takes a window to help.
    while_s = [_NOTICED_AFTER * horizon_s] * len(prediction.stated_s)
    if serving is not None:
        while_s[serving] = horizon_s
    return [
        stated_s if load * high <= 1.0 else stated_s + (load * high - 1.0) * seconds
        for stated_s, load, seconds in zip(
            prediction.stated_s, prediction.utilization_ratio, while_s, strict=True
        )
    ]
