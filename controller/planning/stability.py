"""Damping: when a wish for better quality has to wait.

Owns dwell and rate limit. It must not hold back an escape, a recovery or an operator.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from controller.planning.decision import Reason
from controller.policy.model import StabilityPolicy

_MINUTE_S: Final = 60.0


class Damper:
    """Holds back moves towards better quality that follow too soon."""

    def __init__(self, policy: StabilityPolicy) -> None:
        self._policy = policy
        self._last_s: float | None = None
        self._upgrades_s: deque[float] = deque()

    def set_policy(self, policy: StabilityPolicy) -> None:
        """Follow a new policy without forgetting what happened."""
        self._policy = policy

    def hold(self, now_s: float) -> Reason | None:
        """Return why a move towards better quality must wait, or None."""
        if self._last_s is not None and now_s - self._last_s < self._policy.min_dwell_s:
            return Reason.DWELL
        while self._upgrades_s and now_s - self._upgrades_s[0] >= _MINUTE_S:
            self._upgrades_s.popleft()
        if len(self._upgrades_s) >= self._policy.max_switches_per_minute:
            return Reason.RATE_LIMIT
        return None

    def moved(self, now_s: float, *, upgrade: bool) -> None:
        """Take note of a switch that was decided."""
        self._last_s = now_s
        if upgrade:
            self._upgrades_s.append(now_s)
