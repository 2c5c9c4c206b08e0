"""llm-d's scaling law for KEDA, on one variant.

Of the last 45 s it takes the mean s of min(P90 / objective, 2). Over 0.55 it goes from n replicas
to n + ceil(n (s / 0.55 - 1)); under 0.40 to one less. (Its correction factor is left at 1.)
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np

from controller.twin.rivals import Setting
from controller.twin.rivals.scaling import ScalerView

_WINDOW_S: Final = 45.0
_UP: Final = 0.55
_DOWN: Final = 0.40
_MOST: Final = 2.0


class LlmD:
    """Looks every fifteen seconds."""

    tick_s = 15.0

    def __init__(self, setting: Setting) -> None:
        self._limit_s = setting.limit_s
        self._seen: deque[float] = deque(maxlen=int(_WINDOW_S / self.tick_s))

    def replicas(self, view: ScalerView) -> int:
        """Return how many replicas bring the strain back."""
        if len(view.latency_s) > 0:
            self._seen.append(min(float(np.quantile(view.latency_s, 0.9)) / self._limit_s, _MOST))
        if not self._seen:
            return view.replicas
        strain = float(np.mean(self._seen))
        if strain > _UP:
            return view.replicas + math.ceil(view.replicas * (strain / _UP - 1.0))
        return max(view.replicas - 1, 1) if strain < _DOWN else view.replicas
