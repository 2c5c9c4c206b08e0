"""What one alias of a simulated server is asked, and what can answer.

Owns the check that every variant takes every request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.twin.ladder import TwinVariant

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Load:
    """What one alias is asked, and what can answer.

    Raises ValueError where a request is larger than a variant's largest batch.
    """

    variants: tuple[TwinVariant, ...]
    arrivals_s: Floats  # [requests], ascending
    serving: int  # the variant at first, of its own
    limit_s: float = math.inf
    rows: Ints | None = None  # of each request; None: one. [requests]
    gpus: tuple[int, ...] | None = None  # that its variants have instances on; None: every one

    def __post_init__(self) -> None:
        count, smallest = len(self.arrivals_s), min(one.max_batch for one in self.variants)
        rows = self.all_rows
        if len(rows) != count or not ((rows >= 1) & (rows <= smallest)).all():
            raise ValueError(f"rows of {count} requests, 1 to {smallest} each, are needed")

    @property
    def all_rows(self) -> Ints:
        """Return the rows of every request."""
        if self.rows is None:
            return np.ones(len(self.arrivals_s), dtype=np.int64)
        return np.asarray(self.rows, dtype=np.int64)
