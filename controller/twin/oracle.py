"""The fluid oracle: what somebody who knows the future could reach, about.

Owns the bound. Per step it takes the mix of variants that clears the step's arrivals with the
most quality; what is over every variant's capacity misses. It ignores queues, so it is no strict
bound: a policy that carries work over a step's end can pass it slightly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fluid_quality(rate_rps: Floats, quality: Floats, capacity_rps: Floats) -> float:
    """Return the effective quality of the best mix of two variants in every step.

    Args:
        rate_rps: arrivals. [steps].
        quality: per variant. [variants].
        capacity_rps: the most a variant completes in time. [variants].

    """
    # A share x of the time on a variant completes x * capacity at its quality. Of all mixes of two
    # that complete as much as arrives, the best lies on the upper hull of (capacity, capacity *
    # quality), the idle server included.
    corners = [(0.0, 0.0), *sorted(zip(capacity_rps, capacity_rps * quality, strict=True))]
    hull: list[tuple[float, float]] = []
    for x, y in corners:
        while len(hull) >= 2 and _turns_left(hull[-2], hull[-1], (x, y)):
            hull.pop()
        if hull and x == hull[-1][0]:
            hull[-1] = (x, max(y, hull[-1][1]))
            continue
        hull.append((x, y))
    xs, ys = (np.array(values) for values in zip(*hull, strict=True))
    # Nobody has to complete more than the most valuable point; what is over it misses.
    gained = np.interp(np.minimum(rate_rps, xs[-1]), xs, np.maximum.accumulate(ys))
    total = float(rate_rps.sum())
    return float(gained.sum() / total) if total > 0.0 else 0.0


def _turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) >= 0.0
