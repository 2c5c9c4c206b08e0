"""What a candidate is worth: effective quality now, less what its backlog will cost.

Owns the objective function. It must not damp or forbid.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.latency import Rollout

Floats = NDArray[np.float64]

_LEAST_SPARE: Final = 0.05
_SAME_LOAD: Final = 1e-9


def value_per_request(
    *,
    rollout: Rollout,
    quality: Floats,
    miss_ratio: Floats,
    known: NDArray[np.bool_],
    horizon_s: float,
    limit_s: Floats,
) -> Floats:
    """Return the expected effective quality per request of the window. [candidates].

    The terminal value charges the work a choice leaves behind. Device time has a price: what the
    best mix of variants would gain from a second more of it. And later requests miss while the
    fastest variant takes longer than their slack to clear what was left. Without both an overload
    makes all candidates equal and the best quality wins the tie, which is a collapse.
    """
    fastest = int(rollout.throughput_rows_s.argmax())
    spare = max(1.0 - float(rollout.utilization_ratio[fastest]), _LEAST_SPARE)
    limit = float(limit_s[fastest])
    slack_s = max(limit - 2.0 * float(rollout.single_s[fastest]), 0.1 * limit)
    late_s = np.maximum(rollout.leftover_s - slack_s, 0.0) / spare
    price = shadow_price(quality[known], rollout.utilization_ratio[known])
    kept = quality * (1.0 - miss_ratio)
    return np.asarray(kept - (late_s * quality[fastest] + rollout.leftover_s * price) / horizon_s)


def shadow_price(quality: Floats, utilization_ratio: Floats) -> float:
    """Return the quality per request that a device's whole time more would bring.

    The dual of the fluid programme: shares f of the requests for each variant, maximal quality
    sum(f q) within the time there is, sum(f u) <= 1. The dual value is the least over the price of
    max(q - price (u - 1)), a convex function with corners where two variants are worth the same.

    Args:
        quality: of each variant. [variants].
        utilization_ratio: the device's time that all requests would take on it. [variants].
    """
    if len(quality) == 0:
        return 0.0
    load = utilization_ratio.copy()
    load[load.argmin()] = min(load.min(), 1.0 - _LEAST_SPARE)  # somebody must bear it
    slower = load[:, None] - load[None, :]
    better = quality[:, None] - quality[None, :]
    corners = (slower > _SAME_LOAD) & (better > 0.0)
    prices = np.concatenate([[0.0], better[corners] / slower[corners]])
    worth = (quality[:, None] - prices[None, :] * (load[:, None] - 1.0)).max(axis=0)
    return float(prices[worth.argmin()])
