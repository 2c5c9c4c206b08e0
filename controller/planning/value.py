"""What a candidate is worth: effective quality now, less the price of the device's time.

Owns the objective function. It must not damp or forbid.

Method: drift plus penalty (Neely 2010). Device time has a price that grows with the work that
waits, up to what makes the fastest candidate the best one. So the queue finds the mix by itself:
nothing waits, and the best quality is free; much waits, and time is worth all the quality that a
slower candidate adds. No forecast of the load is in it that a change of load could make wrong.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FULL: Final = 0.5  # waiting work, as a share of the objective, at which the price is highest
# How the price grows. Of 1, 2 and 3 in replay, 2 got as much of the headroom at 200 ms and 2 points
# less at 60 ms, and switched a fifth to a third less often.
_CURVE: Final = 2.0


def value_per_request(
    *, quality: Floats, miss_ratio: Floats, request_s: Floats, price_per_s: float
) -> Floats:
    """Return the expected effective quality of a request, less what its device time costs.

    Args:
        quality: of each candidate, 0 to 1. [candidates].
        miss_ratio: predicted share of late requests. [candidates].
        request_s: device time of a request in a full batch. [candidates].
        price_per_s: quality that a second of device time is worth.
    """
    return np.asarray(quality * (1.0 - miss_ratio) - price_per_s * request_s)


def price_per_s(
    *,
    quality: Floats,
    request_s: Floats,
    usable: NDArray[np.bool_],
    waiting_s: float,
    limit_s: float,
) -> float:
    """Return the quality that a second of the device's time is worth now; 0: nothing waits.

    Args:
        quality: of each candidate, 0 to 1. [candidates].
        request_s: device time of a request in a full batch. [candidates].
        usable: candidates among which there is a choice. [candidates].
        waiting_s: seconds of work that wait.
        limit_s: the latency objective.
    """
    if not usable.any() or not waiting_s > 0.0:
        return 0.0
    fastest = int(np.where(usable, request_s, np.inf).argmin())
    slower_s, better = request_s - request_s[fastest], quality - quality[fastest]
    dearer = usable & (slower_s > 0.0) & (better > 0.0)
    if not dearer.any():
        return 0.0
    highest = float((better[dearer] / slower_s[dearer]).max())
    return float(highest * min(waiting_s / (_FULL * limit_s), 1.0) ** _CURVE)
