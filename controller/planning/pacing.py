"""The pace of looks: ticks at their interval, and glances between at what waits.

Owns when the next look is. It must not know the time but by being told, nor what is pressing.

A burst that comes just after a tick would find a slow variant for a whole tick more. So between
ticks what waits is glanced at, which takes a fraction of a tick's work; where it is pressing the
tick comes at once. What cannot be helped stays pressing: early ticks are limited to as many as
there are others, so that nothing makes a governor tick at each glance.

Where dispatchers choose for every model and nothing is left to measure, ticks only tell them how
the device is, which takes none that come sooner than every 100 ms.
"""

from __future__ import annotations

from typing import Final

from controller.policy.model import Policy

_SAVED: Final = 3  # early ticks that may follow one another
_AT_EASE_S: Final = 0.1  # between ticks that decide nothing


def interval_s(policy: Policy, *, at_ease: bool) -> float:
    """Return the time between two ticks.

    Args:
        policy: an operator who sets the interval gets that.
        at_ease: whether dispatchers choose, and nothing is left to measure.
    """
    slower = at_ease and policy.interval_s is None
    return max(policy.tick_s, _AT_EASE_S) if slower else policy.tick_s


class Pacing:
    """Tells when to look next, and whether that is a glance only."""

    def __init__(self, policy: Policy, first_s: float) -> None:
        self.at_s = first_s  # the next look
        self.is_glance = False
        self._policy = policy
        self._tick_s = first_s  # the next tick
        self._early = _SAVED
        self._at_ease = False

    def set_policy(self, policy: Policy) -> None:
        """Follow a new policy from the next tick on."""
        self._policy = policy

    def ticked(self, now_s: float, *, at_ease: bool = False) -> None:
        """Take note that there was a tick, early or not, which ended now."""
        self._at_ease = at_ease
        tick_s = interval_s(self._policy, at_ease=at_ease)
        if self.is_glance:
            self._early -= 1
            self._tick_s = now_s + tick_s
        else:
            self._early = min(self._early + 1, _SAVED)
            self._tick_s = max(self._tick_s + tick_s, now_s)
        self._look(now_s)

    def glanced(self, now_s: float) -> None:
        """Take note of a glance that found nothing pressing."""
        self._look(now_s)

    def _look(self, now_s: float) -> None:
        glance_s = None if self._at_ease else self._policy.glance_s
        # The last piece is not cut again: the tick itself will look.
        cuts = glance_s is not None and self._tick_s - now_s > 1.5 * glance_s
        self.is_glance = cuts and self._early > 0
        self.at_s = now_s + glance_s if self.is_glance and glance_s is not None else self._tick_s
