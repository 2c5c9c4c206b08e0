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
        self.active: tuple[str, ...] = self.now(policy)

    def now(self, policy: Policy) -> tuple[str, ...]:
        """Return the schedules of a policy that are in force."""
        now = self._local()
        return schedules.active(policy, now.tm_wday, now.tm_hour * 60 + now.tm_min)

    @property
    def read(self) -> Policy:
        """Return the policy as it was read."""
        return self._read

    def commit(self, policy: Policy, active: tuple[str, ...]) -> None:
        """Take note that a policy is in force as some schedules change it."""
        self._read, self.active = policy, active
