"""Kubernetes' horizontal pod autoscaler on pending requests, with one variant.

Every 15 s: replicas times (pending requests a replica / target), rounded up, unless that ratio is
within 10 % of 1; down only to the most that was wanted in the last 300 s. The target is what one
batch takes that fits half of the objective.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from controller.twin.rivals import Setting
from controller.twin.rivals.scaling import ScalerView

_TOLERANCE: Final = 0.1
_STABLE_S: Final = 300.0


class Hpa:
    """Looks every fifteen seconds."""

    tick_s = 15.0

    def __init__(self, setting: Setting) -> None:
        best = setting.variants[setting.by_quality[0]]
        self._target = max(int((best.table_s <= setting.limit_s / 2.0).sum()), 1)
        self._wanted: deque[int] = deque(maxlen=int(_STABLE_S / self.tick_s))

    def replicas(self, view: ScalerView) -> int:
        """Return the number that brings the queue of each to its target."""
        ratio = view.pending / view.replicas / self._target
        wanted = view.replicas
        if abs(ratio - 1.0) > _TOLERANCE:
            wanted = max(math.ceil(view.replicas * ratio), 1)
        self._wanted.append(wanted)
        return wanted if wanted >= view.replicas else min(max(self._wanted), view.replicas)
