"""Loudly: that requests are refused because even the fastest variant is too slow.

Owns when that is said to have begun and ended. It must not change anything: Triton refuses, by the
limits that its queues have.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore
    from controller.policy.model import Policy

_LOG = logging.getLogger("governor")


class Shedding:
    """Tells the journal and the log of each model whose requests Triton refuses."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._before: dict[str, int] = {}  # refused when it began, by model

    def look(self, core: GovernorCore, policy: Policy) -> None:
        """Take note of who is refused now; to be called about once a second."""
        for model in policy.models:
            score = core.score(model.name)
            sheds = score.rejected_rps > 0.0
            if sheds and model.name not in self._before:
                self._before[model.name] = score.rejected_total
                text = (
                    f"Triton refuses requests of {model.name}, {score.rejected_rps:.0f} a second: "
                    "its queue is at its limit"
                )
                _LOG.warning("%s", text)
                self._journal.event("shedding", model.name, text)
            elif not sheds and model.name in self._before:
                count = score.rejected_total - self._before.pop(model.name)
                text = f"no requests of {model.name} are refused any more; {count} more were"
                _LOG.warning("%s", text)
                self._journal.event("shedding ended", model.name, text, {"rejected": count})
