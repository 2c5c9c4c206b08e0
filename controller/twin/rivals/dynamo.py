"""NVIDIA Dynamo's load planner, on one variant.

Every 5 s: one replica more while the estimated latency exceeds the objective on all workers; one
less where the load of N on N - 1 stays within 80 % of what they bear. Its estimate is a linear
regression of latency on load over the last 64 looks that refuses a negative slope.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from controller.twin.rivals import Setting
from controller.twin.rivals.scaling import ScalerView

_SAMPLES: Final = 64
_WITHIN: Final = 0.8


class Dynamo:
    """Looks every five seconds."""

    tick_s = 5.0

    def __init__(self, setting: Setting) -> None:
        self._limit_s = setting.limit_s
        self._bears_rps = setting.capacity_rps[setting.by_quality[0]] / setting.gpus
        self._seen: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def replicas(self, view: ScalerView) -> int:
        """Return one more, one less, or as many as there are."""
        each_rps = view.load_rps / view.replicas
        if len(view.latency_s) > 0:
            self._seen.append((each_rps, float(view.latency_s.mean())))
        if self._estimate_s(each_rps) > self._limit_s:
            return view.replicas + 1
        fewer = view.replicas - 1
        if fewer > 0 and view.load_rps / fewer <= _WITHIN * self._bears_rps:
            return fewer
        return view.replicas

    def _estimate_s(self, each_rps: float) -> float:
        if len(self._seen) == 0:
            return 0.0
        rates, latencies_s = np.array(self._seen).T
        spread = float(((rates - rates.mean()) ** 2).sum())
        slope = 0.0
        if spread > 0.0:
            slope = max(float(((rates - rates.mean()) * latencies_s).sum()) / spread, 0.0)
        return float(latencies_s.mean() + slope * (each_rps - rates.mean()))
