"""How long a request of the next tick may take on every candidate, and those that follow it.

Owns a bound of a few sums; the distribution is `latency`'s. It must not know policies or choose.

A candidate serves until the next decision takes effect, then the fastest can take over. Two
requests are the worst off: the one that comes last before that and waits for what gathered on the
candidate, and the first ones afterwards, beside what was left. The batch is the one that feeds
itself, but no larger than what can gather in the window: in an overload no batch feeds itself,
and a burst of one window does not fill the largest.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BATCHES: Final = 2.0  # the one in execution, and the request's own
_LEAST_SHARE: Final = 0.5  # of the device, that is left to what waits
_CALM: Final = 0.5  # utilisation of the fastest up to which it clears what was left unnoticed


def sojourn_bound_s(
    *,
    table_s: Floats,
    limits: NDArray[np.int64],
    waiting_rows: Floats,
    elsewhere_s: float,
    rate_rows_s: float,
    window_s: float,
    contention: float,
    known: NDArray[np.bool_],
) -> Floats:
    """Return about the longest a request takes. [candidates].

    Args:
        table_s: service times. [candidates, rows 1..max].
        limits: the largest batch each candidate forms. [candidates].
        waiting_rows: rows that wait on each candidate now. [candidates].
        elsewhere_s: seconds of other models' work on the same device.
        rate_rows_s: rows a second that may arrive.
        window_s: until the next decision takes effect.
        contention: 0 (work elsewhere does not slow a candidate) to 1 (they share one device).
        known: candidates that were measured. [candidates].
    """
    width = int(limits.max())
    table_s, rows = table_s[:, :width], np.arange(1.0, width + 1.0)
    allowed = rows <= limits[:, None]
    row_s = np.where(allowed, table_s / rows, np.inf).min(axis=1)
    fastest = int(np.where(known, row_s, np.inf).argmin())
    arriving = rate_rows_s * window_s

    feeds = allowed & (rows >= rate_rows_s * table_s)
    steady = np.where(feeds.any(axis=1), feeds.argmax(axis=1) + 1, limits)
    gathered = np.ceil(np.minimum(waiting_rows + arriving + 1.0, limits)).astype(np.int64)
    each = np.arange(len(table_s))
    batch_s = table_s[each, np.minimum(steady, gathered) - 1]
    fastest_s = float(table_s[fastest, steady[fastest] - 1])

    work_s = waiting_rows * row_s
    others_s = contention * (work_s.sum() - work_s + elsewhere_s)
    # What waits elsewhere takes half of the device until it is done.
    own_s = window_s - np.minimum(others_s, window_s / 2.0)
    left_s = np.maximum(work_s + arriving * row_s - own_s, 0.0)
    left_elsewhere_s = np.maximum(others_s - window_s / 2.0, 0.0)
    # Afterwards the fastest serves beside what is left.
    busy = rate_rows_s * row_s[fastest]
    share = 1.0 - min(busy, _LEAST_SHARE)
    slowed = np.where(left_s > 0.0, 1.0 / share, np.where(left_elsewhere_s > 0.0, 1.5, 1.0))
    last_s = (left_s + _BATCHES * batch_s) * slowed
    remains_s = left_s + left_elsewhere_s + 0.5 * batch_s
    after_s = _BATCHES * fastest_s * (1.0 + np.minimum(remains_s / fastest_s, 1.0))
    after_s += 2.0 * max(busy - _CALM, 0.0) * remains_s / share
    return np.asarray(np.maximum(last_s, after_s))
