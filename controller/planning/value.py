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
    known: NDArray[np.bool_],
    horizon_s: float,
    limit_s: Floats,
) -> Floats:
    """Return the expected effective quality per request of the window. [candidates].

    The terminal value charges the work a choice leaves behind: the fastest variant must clear it,
    later requests miss while it takes longer than their slack, and meanwhile they get the fastest
    one's quality instead of the average that could be had (the differential value of a renewal
    cycle, Puterman 1994, section 8.2). Without it an overload makes all candidates equal and the
    best quality wins the tie, which is a collapse.
    """
    fastest = int(rollout.throughput_rows_s.argmax())
    spare = max(1.0 - float(rollout.utilization_ratio[fastest]), _LEAST_SPARE)
    limit = float(limit_s[fastest])
    slack_s = max(limit - 2.0 * float(rollout.single_s[fastest]), 0.1 * limit)
    late_s = np.minimum(np.maximum(rollout.leftover_s - slack_s, 0.0) / spare, _LONGEST_S)
    drain_s = np.minimum(rollout.leftover_s / spare, _LONGEST_S)
    kept = quality * (1.0 - miss_ratio)
    # One window of a candidate, then the fastest until what it left more is cleared; repeated.
    longer_s = np.maximum(drain_s - drain_s[fastest], 0.0)
    cycle = (kept * horizon_s + quality[fastest] * longer_s) / (horizon_s + longer_s)
    average = float(np.max(cycle, where=known, initial=quality[fastest]))
    forgone = average - quality[fastest]
    return np.asarray(kept - (late_s * quality[fastest] + drain_s * forgone) / horizon_s)
