"""Loudly: that requests are refused, that a GPU is at a limit of the policy, or lost.

Owns when each is said to have begun and ended. It must not change anything: Triton refuses, by
the limits of its queues, and the core makes models give way.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore
    from controller.policy.model import Policy

_LOG = logging.getLogger("governor")


class Alarms:
    """Tells the journal and the log what an operator should not have to look for."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._before: dict[str, int] = {}  # refused when it began, by model
        self._at_limit = False
        self._lost: frozenset[int] = frozenset()

    def look(self, core: GovernorCore, policy: Policy) -> None:
        """Take note of how things are now; to be called about once a second."""
        for model in policy.models:
            score = core.score(model.name)
            sheds = score.rejected_rps > 0.0
            if sheds and model.name not in self._before:
                self._before[model.name] = score.rejected_total
                text = (
                    f"Triton refuses requests of {model.name}, {score.rejected_rps:.0f} a second: "
                    "its queue is at its limit"
                )
                self._tell("shedding", model.name, text)
            elif not sheds and model.name in self._before:
                count = score.rejected_total - self._before.pop(model.name)
                text = f"no requests of {model.name} are refused any more; {count} more were"
                self._tell("shedding ended", model.name, text)
        exceeded = core.limits.exceeded
        if bool(exceeded) != self._at_limit:
            self._at_limit = bool(exceeded)
            text = "; ".join(exceeded) or "every GPU is within the policy's limits again"
            self._tell("limit" if exceeded else "limit ended", None, text)

        for gpu in sorted(core.lost - self._lost):
            text = f"GPU {gpu} is lost: what runs there is left, and nothing is loaded on it"
            self._tell("gpu lost", None, text)
        for gpu in sorted(self._lost - core.lost):
            self._tell("gpu lost ended", None, f"GPU {gpu} is well again, and used")
        self._lost = core.lost

    def _tell(self, kind: str, model: str | None, text: str) -> None:
        _LOG.warning("%s", text)
        self._journal.event(kind, model, text)
