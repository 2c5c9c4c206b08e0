"""Model-Switching (Zhang et al., HotCloud 2020).

Offline, for each load, the most accurate variant whose share of late requests stays within the
budget; online, the measured load is looked up every window. The paper's window is a second; with
a quarter of one and a safety factor on the load it does better, and is offered so, too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from controller.twin.ladder import TwinVariant
from controller.twin.rivals import ArrivalRate, Setting, View
from controller.twin.server import SimulatedTriton

_PROFILE_S: Final = 20.0  # of simulated load for each point of the profile
_STEPS: Final = 7  # halvings between no load and full capacity


class ModelSwitching:
    """Looks the load up in a table made offline."""

    def __init__(self, setting: Setting, *, window_s: float = 1.0, safety: float = 1.0) -> None:
        self.tick_s = window_s
        self._safety = safety
        self._setting = setting
        self._rate = ArrivalRate()
        self._bears_rps = [
            bears_rps(variant.table_s.tobytes(), setting.limit_s, setting.allowed_miss_ratio)
            for variant in setting.variants
        ]

    def choose(self, view: View) -> int | None:
        """Return the most accurate variant that bears the load of the last window."""
        load_rps = self._safety * self._rate.since_last(view)
        return self._setting.most_accurate(lambda v: self._bears_rps[v] >= load_rps)


@lru_cache(maxsize=256)
def bears_rps(table: bytes, limit_s: float, allowed_miss_ratio: float) -> float:
    """Return the highest Poisson load under which a variant keeps within the budget.

    Args:
        table: the bytes of seconds of each batch size (so that results can be kept).
        limit_s: the objective.
        allowed_miss_ratio: the share of requests that may be late.

    """
    variant = TwinVariant("profiled", 0.0, np.frombuffer(table, dtype=np.float64))
    low, high = 0.0, variant.capacity_rps(limit_s)
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if _miss_ratio(variant, middle, limit_s) <= allowed_miss_ratio:
            low = middle
        else:
            high = middle
    return low


def _miss_ratio(variant: TwinVariant, rate_rps: float, limit_s: float) -> float:
    rng = np.random.default_rng(1)
    count = rng.poisson(rate_rps * _PROFILE_S)
    if count == 0:
        return 0.0 if variant.service_s(1) <= limit_s else 1.0
    arrivals_s = np.sort(rng.random(count) * _PROFILE_S)
    server = SimulatedTriton((variant,), arrivals_s, serving=0, seed=1)
    server.advance(_PROFILE_S + 10.0 * limit_s)
    return float(np.mean(server.latency_s() > limit_s))
