"""Between two ticks: wait for the next one, and glance at what waits meanwhile.

Owns the waiting and what happens where a glance fails. It must not tick.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from controller.planning.pacing import Pacing
from controller.policy.model import Policy
from controller.telemetry.source import Clock

_LOG = logging.getLogger("governor")

_READ_SHARE: Final = 0.5  # of the time until the next look that a glance may take
_TOLD: Final = 10  # failures in full; after these, one in a thousand


class Rest:
    """Waits from tick to tick; `is_pressing` is told how many seconds it may take."""

    def __init__(
        self, policy: Policy, is_pressing: Callable[[float], Awaitable[bool]], *, clock: Clock
    ) -> None:
        self._pacing = Pacing(policy, clock())
        self._is_pressing = is_pressing
        self._clock = clock
        self._failed = 0

    def set_policy(self, policy: Policy) -> None:
        """Follow a new policy from the next tick on."""
        self._pacing.set_policy(policy)

    async def after_tick(self, stopping: asyncio.Task[bool], *, at_ease: bool = False) -> None:
        """Return when the next tick is due, by the clock or by what waits; or `stopping` is done.

        Never raises for a glance that fails: the tick will come.
        """
        self._pacing.ticked(self._clock(), at_ease=at_ease)
        while True:
            wait_s = max(self._pacing.at_s - self._clock(), 0.0)
            done, _ = await asyncio.wait({stopping}, timeout=wait_s)
            if done or not self._pacing.is_glance or await self._glance(wait_s * _READ_SHARE):
                return
            self._pacing.glanced(self._clock())

    async def _glance(self, budget_s: float) -> bool:
        try:
            return await self._is_pressing(budget_s)
        except Exception:  # noqa: BLE001 - no glance is worth the service
            self._failed += 1
            if self._failed <= _TOLD or self._failed % 1000 == 0:
                _LOG.exception("glance failed (%d so far)", self._failed)
            return False
