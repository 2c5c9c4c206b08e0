"""SuperServe's SlackFit (Khare et al., NSDI 2025).

Offline, the latencies of all (variant, batch) pairs are cut into buckets of equal width, and each
bucket keeps its pair of the largest batch, of those the most accurate. At every dispatch the slack
of the oldest request picks the largest bucket that fits; where none does, the smallest is taken,
which is a choice of ours. SuperServe switches subnetworks within a batch's time and has a queue
ordered by deadlines; an unmodified Triton has neither.
"""

from __future__ import annotations

from typing import Final

from controller.twin.central import Waiting
from controller.twin.rivals import Setting

_BUCKETS: Final = 32


class SlackFit:
    """Takes the configuration of the bucket that fits the slack of the head of the queue."""

    def __init__(self, setting: Setting) -> None:
        self._limit_s = setting.limit_s
        pairs = [
            (float(took_s), rows, index)
            for index, variant in enumerate(setting.variants)
            for rows, took_s in enumerate(variant.table_s, start=1)
            if took_s <= setting.limit_s
        ]
        least_s = min(took_s for took_s, _, _ in pairs)
        self._width_s = (setting.limit_s - least_s) / _BUCKETS
        self._least_s = least_s
        quality = [variant.quality for variant in setting.variants]
        self._kept: list[tuple[float, int, int] | None] = [None] * _BUCKETS
        for pair in pairs:
            bucket = self._bucket(pair[0])
            kept = self._kept[bucket]
            rank = (pair[1], quality[pair[2]])
            if kept is None or rank > (kept[1], quality[kept[2]]):
                self._kept[bucket] = pair

    def choose(self, waiting: Waiting) -> tuple[int, int]:
        """Return the pair of the largest bucket that fits, else of the smallest."""
        slack_s = waiting.slack_s(self._limit_s)
        kept = [pair for pair in self._kept[: self._bucket(slack_s) + 1] if pair is not None]
        fitting = next((pair for pair in reversed(kept) if pair[0] <= slack_s), kept[0])
        _, rows, variant = fitting
        return variant, min(rows, waiting.count)

    def ended(self, variant: int, rows: int, took_s: float) -> None:
        """Learn nothing: the profile stays as it was made."""

    def _bucket(self, took_s: float) -> int:
        return min(max(int((took_s - self._least_s) / self._width_s), 0), _BUCKETS - 1)
