"""What the governor tells a dispatcher: who may serve, and how long batches take.

Of the standard library alone, like all that runs inside Triton.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Plan(NamedTuple):
    """What may serve, and how long each takes."""

    names: tuple[str, ...]  # Triton's, of the variants that may serve now
    quality: tuple[float, ...]
    took_s: tuple[tuple[float, ...], ...]  # of 1, 2, ... rows; as many as fit into a batch
    tail: tuple[float, ...]  # what a batch's time is multiplied with, to be kept nearly always
    limit_s: float  # the objective
    timeout_s: float | None = None  # who waits longer is refused
    most_waiting: int | None = None  # who finds so many requests waiting is refused
    allowed: float = 0.01  # share of the requests that may be later than the objective

    @classmethod
    def read(cls, value: dict[str, Any]) -> Plan:
        """Return a plan from JSON values. Raises ValueError, KeyError, TypeError."""
        plan = cls(
            tuple(map(str, value["names"])),
            tuple(map(float, value["quality"])),
            tuple(tuple(map(float, row)) for row in value["took_s"]),
            tuple(map(float, value["tail"])),
            float(value["limit_s"]),
            None if value.get("timeout_s") is None else float(value["timeout_s"]),
            None if value.get("most_waiting") is None else int(value["most_waiting"]),
            float(value.get("allowed", 0.01)),
        )
        sizes = {len(plan.names), len(plan.quality), len(plan.took_s), len(plan.tail)}
        if len(sizes) != 1 or not plan.names:
            raise ValueError("a plan needs as many of each as it has variants, and one at least")
        if not 0.0 < plan.allowed < 1.0:
            raise ValueError("what may be late is a share between 0 and 1")
        numbers = [plan.limit_s, *plan.tail, *(took for row in plan.took_s for took in row)]
        if not all(plan.took_s) or not all(math.isfinite(x) and x > 0.0 for x in numbers):
            raise ValueError("times of a plan are positive, and every variant has one")
        if not all(0.0 <= one <= 1.0 for one in plan.quality):
            raise ValueError("quality is from 0 to 1")
        return plan

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return self._asdict()


def expected_s(plan: Plan, name: str, rows: int) -> float | None:
    """Return what a batch takes by a plan; None: it says nothing of it."""
    if name not in plan.names:
        return None
    row = plan.took_s[plan.names.index(name)]
    return row[rows - 1] if rows <= len(row) else None
