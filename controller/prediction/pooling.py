"""One curve for many variants: what is known of few is borrowed from all.

Owns the regression that service times are shrunk towards, and what follows for a size from its
neighbours. It must not know time or samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pooled(
    values: Floats, weights: Floats, *, shared: Floats, own: Floats, penalty: float
) -> Floats:
    """Return a fit of every variant's curve: one that all share and a deviation of each.

    Ridge regression; an intercept is free, all else is penalised. Its normal equations are an
    arrow: each variant's deviation meets only the shared part. So the deviations are eliminated
    first (the Schur complement), and the work grows with the number of variants, not its cube.

    Args:
        values: what was measured. [variants, points].
        weights: how much each counts; 0: it was not measured. One at least is not 0.
            [variants, points].
        shared: features of the shared curve. [points, features].
        own: features of a deviation. [points, features].
        penalty: of a coefficient's square, beside the squared errors.
    """
    count, wide = own.shape
    common = np.column_stack([np.ones(count), shared])
    free = np.diag([0.0, *[penalty] * shared.shape[1]])
    seen = weights * np.where(weights > 0.0, values, 0.0)
    among = free + common.T @ (weights.sum(axis=0)[:, None] * common)
    within = weights @ (own[:, :, None] * own[:, None, :]).reshape(count, -1)
    within = within.reshape(-1, wide, wide) + penalty * np.eye(wide)
    across = weights @ (own[:, :, None] * common[:, None, :]).reshape(count, -1)
    across = across.reshape(-1, wide, common.shape[1])
    alone = np.linalg.solve(within, (seen @ own)[:, :, None])[:, :, 0]
    carried = np.linalg.solve(within, across)
    left = among - np.tensordot(across, carried, axes=((0, 1), (0, 1)))
    right = common.T @ seen.sum(axis=0) - np.tensordot(across, alone, axes=((0, 1), (0, 1)))
    together = np.linalg.solve(left, right)
    return np.asarray(common @ together + (alone - carried @ together) @ own.T)


def between(values: Floats, trust: Floats, *, trusted: float, flat: float) -> Floats:
    """Return how much is known of each point by those on both sides of it, 0 to 1.

    A curve that only rises is known between two points at which it is known to be the same: an
    engine of a fixed shape takes as long for three rows as for two and four.

    Args:
        values: the curves, each of which rises. [variants, points].
        trust: how much is known of each point by itself, 0 to 1. [variants, points].
        trusted: from where on that is enough to tell of others.
        flat: how far two points may be apart.
    """
    count = values.shape[1]
    at = np.arange(count)
    enough = trust > trusted
    below = np.maximum.accumulate(np.where(enough, at, -1), axis=1)
    above = np.minimum.accumulate(np.where(enough, at, count)[:, ::-1], axis=1)[:, ::-1]
    inside = (below >= 0) & (above < count)
    below, above = np.maximum(below, 0), np.minimum(above, count - 1)
    rise = np.take_along_axis(values, above, axis=1) - np.take_along_axis(values, below, axis=1)
    least = np.minimum(
        np.take_along_axis(trust, below, axis=1), np.take_along_axis(trust, above, axis=1)
    )
    return np.where(inside & (rise <= flat), least, 0.0)
