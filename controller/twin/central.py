"""A serving system with one queue that picks variant and batch anew for every batch.

Owns the event loop of those rivals that need it: no unmodified Triton can do this, so whoever runs
here is marked idealised. It shares requests, noise and slow-down with the simulated Triton.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from controller.twin.drive import Outcome
from controller.twin.engine import noise_factor
from controller.twin.ladder import Floats, TwinVariant
from controller.twin.server import Physics


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a dispatcher sees when the GPU is free."""

    now_s: float
    count: int  # requests that wait
    oldest_s: float  # when the first of them arrived
    arrived: int  # requests so far

    def slack_s(self, limit_s: float) -> float:
        """Return how long the first of them may still take."""
        return self.oldest_s + limit_s - self.now_s


class Dispatcher(Protocol):
    """A policy that decides batch by batch."""

    def choose(self, waiting: Waiting) -> tuple[int, int]:
        """Return the variant and how many of the waiting requests it takes, oldest first."""
        ...

    def ended(self, variant: int, rows: int, took_s: float) -> None:
        """Take note of what a batch took."""
        ...


def drive_dispatcher(
    dispatcher: Dispatcher,
    variants: Sequence[TwinVariant],
    arrivals_s: Floats,
    *,
    physics: Physics,
    seed: int,
) -> Outcome:
    """Serve all requests, one batch at a time.

    Raises ValueError where a dispatcher takes none, or more than wait or fit.
    """
    arrivals: list[float] = arrivals_s.tolist()
    tables = [variant.table_s.tolist() for variant in variants]
    done_s = np.full(len(arrivals), np.inf)
    served_by = np.full(len(arrivals), -1, dtype=np.int64)
    given = physics.given()
    took_real_s: list[float] = []
    now_s, first, serving, switches, batches = 0.0, 0, -1, 0, 0
    while first < len(arrivals):
        now_s = max(now_s, arrivals[first])
        arrived = bisect_right(arrivals, now_s, lo=first)
        count = arrived - first
        began_s = time.perf_counter()
        variant, rows = dispatcher.choose(Waiting(now_s, count, arrivals[first], arrived))
        took_real_s.append(time.perf_counter() - began_s)
        if not 1 <= rows <= min(count, len(tables[variant])):
            raise ValueError(f"a batch of {rows} of {count} requests on variant {variant}")
        factor = noise_factor(given, seed, batches) * physics.slowdown_at(now_s)
        batches += 1
        took_s = tables[variant][rows - 1] * factor
        now_s += took_s
        done_s[first : first + rows] = now_s
        served_by[first : first + rows] = variant
        dispatcher.ended(variant, rows, took_s)
        switches += variant != serving and serving >= 0
        serving = variant
        first += rows
    return Outcome(done_s - arrivals_s, served_by, switches, np.array(took_real_s))
