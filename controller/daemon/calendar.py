"""The policy by the clock on the wall.

Owns which of the policy's schedules are in force now. It must not apply them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from controller.policy import schedules
from controller.policy.model import Policy


class Calendar:
    """The policy as it was read, and as it holds now.

    Args:
        policy: as it was read.
        local: returns the local time.
    """

    def __init__(
        self, policy: Policy, local: Callable[[], time.struct_time] = time.localtime
    ) -> None:
        self._local = local
        self._read = policy
        self.active: tuple[str, ...] = self._now()

    def follow(self, policy: Policy) -> Policy:
        """Take another policy as it was read; return it as it holds now."""
        self._read = policy
        self.active = self._now()
        return self.policy

    def turn(self) -> bool:
        """Return whether other schedules are in force than when this was asked last."""
        before, self.active = self.active, self._now()
        return before != self.active

    @property
    def policy(self) -> Policy:
        """Return the policy as it holds now."""
        return schedules.under(self._read, self.active)

    def _now(self) -> tuple[str, ...]:
        now = self._local()
        return schedules.active(self._read, now.tm_wday, now.tm_hour * 60 + now.tm_min)
