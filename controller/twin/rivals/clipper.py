"""Clipper (Crankshaw et al., NSDI 2017): adaptive batching of one fixed variant.

The largest batch grows by one while batches meet the latency objective and shrinks by a tenth
when one does not (additive increase, multiplicative decrease). Clipper's own objective is that of
a batch's execution. It never changes the variant: the fastest, or the best.
"""

from __future__ import annotations

from typing import Final

from controller.twin.central import Waiting
from controller.twin.rivals import Setting

_BACK_OFF: Final = 0.9


class Clipper:
    """Adapts the largest batch to what batches take."""

    def __init__(self, setting: Setting, *, variant: int) -> None:
        self._variant = variant
        self._limit_s = setting.limit_s
        self._most = float(setting.variants[variant].max_batch)
        self.largest = 1.0

    def choose(self, waiting: Waiting) -> tuple[int, int]:
        """Return the fixed variant and as many requests as may be."""
        return self._variant, min(int(self.largest), waiting.count)

    def ended(self, variant: int, rows: int, took_s: float) -> None:
        """Grow after a full batch in time, shrink after a late one."""
        del variant
        if took_s > self._limit_s:
            self.largest = max(self.largest * _BACK_OFF, 1.0)
        elif rows >= int(self.largest):
            self.largest = min(self.largest + 1.0, self._most)
