"""The rule that always holds: a threshold on the backlog in seconds of work.

Owns the choice when the predictor cannot be trusted or failed. It must stay simple enough to be
right when everything else is wrong.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SHARE: Final = 1.0 / 3.0  # of the objective that backlog and service may fill
_UTILIZATION: Final = 0.5


def by_backlog(
    *,
    quality: Floats,
    allowed: NDArray[np.bool_],
    backlog_s: float,
    service_s: Floats,
    utilization_ratio: Floats,
    limit_s: float,
) -> int:
    """Return the index of the best variant whose backlog and service leave room in the objective.

    Args:
        quality: per variant.
        allowed: per variant; at least one is.
        backlog_s: seconds of work that wait on the device.
        service_s: seconds of one batch, per variant.
        utilization_ratio: per variant, at the measured rate.
        limit_s: the objective.

    """
    usable = allowed & np.isfinite(service_s) & np.isfinite(utilization_ratio)
    room = usable & (backlog_s + service_s <= _SHARE * limit_s) & (utilization_ratio < _UTILIZATION)
    if room.any():
        return int(np.where(room, quality, -np.inf).argmax())
    if usable.any():
        return int(np.where(usable, utilization_ratio, np.inf).argmin())
    return int(np.where(allowed, -quality, -np.inf).argmax())
