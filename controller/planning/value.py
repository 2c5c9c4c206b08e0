"""What a candidate is worth: effective quality now, less what its backlog will cost.

Owns the objective function. It must not damp or forbid.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.latency import Rollout

Floats = NDArray[np.float64]

_LONGEST_S: Final = 5.0  # of trouble that a choice is charged for
_LEAST_SPARE: Final = 0.05


def value_per_request(
    *,
    rollout: Rollout,
    quality: Floats,
    miss_ratio: Floats,
    horizon_s: float,
    limit_s: Floats,
    contention: float,
) -> Floats:
    """Return the expected effective quality per request of the window. [candidates].

    The terminal value charges the work a choice leaves behind: the fastest variant must clear it
    (or is slowed by it, where it stays on another variant), later requests miss while it takes
    longer than their slack, and quality is forgone meanwhile. Without it an overload makes all
    candidates equal and the best quality wins the tie, which is a collapse.
    """
    arrivals = max(rollout.rate_rps * horizon_s, 1e-9)
    fastest = int(rollout.throughput_rows_s.argmax())
    spare = max(1.0 - float(rollout.utilization_ratio[fastest]), _LEAST_SPARE)
    ahead_s = rollout.leftover_s * contention
    ahead_s[fastest] = rollout.leftover_s[fastest]
    limit = float(limit_s[fastest])
    slack_s = max(limit - 2.0 * float(rollout.single_s[fastest]), 0.1 * limit)
    late_s = np.minimum(np.maximum(ahead_s - slack_s, 0.0) / spare, _LONGEST_S)
    drain_s = np.minimum(ahead_s / spare, _LONGEST_S)
    forgone = np.maximum(quality - quality[fastest], 0.0)
    cost = rollout.rate_rps * (late_s * quality[fastest] + drain_s * forgone)
    return np.asarray(quality * (1.0 - miss_ratio) - cost / arrivals)
