"""One curve for many variants: what is known of few is borrowed from all.

Owns the regression that service times are shrunk towards. It must not know time or samples.
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
