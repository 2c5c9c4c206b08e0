"""What is learned and wished, kept over a restart.

Owns when it is written to the journal and how it comes back. It must not know what it means.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from controller.daemon.operator import OperatorWishes
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore
    from controller.policy.model import Policy

_LOG = logging.getLogger("governor")

_DEMAND_EVERY_S: Final = 300.0  # a day of it is large, and changes slowly


class Learned:
    """The learned state of one daemon and its place in the journal."""

    def __init__(self, core: GovernorCore, wishes: OperatorWishes, journal: Journal) -> None:
        self._core = core
        self._wishes = wishes
        self._journal = journal
        self._restored = False
        self._demand_s = time.monotonic()

    def save(self, policy: Policy, started: dict[str, object], *, everything: bool = False) -> None:
        """Write what is known; but nothing may replace what is stored before it was read.

        Args:
            policy: in force.
            started: told with the start, if it is only now that the journal can be read.
            everything: also what is written seldom.
        """
        if not self._restored:
            self.restore(policy, started)
            return
        self._journal.save_learned("core", self._core.state())
        self._journal.save_learned("operator", self._wishes.state())
        now_s = time.monotonic()
        if everything or now_s - self._demand_s >= _DEMAND_EVERY_S:
            self._demand_s = now_s
            kept = {"time_unix_s": time.time(), "models": self._core.demand_state(now_s)}
            self._journal.save_learned("demand", kept)

    def restore(self, policy: Policy, started: dict[str, object]) -> None:
        """Take back what the journal has, once it can be read."""
        if not self._journal.health()["up"]:
            return
        self._restored = True
        learned = self._journal.load_learned("core")
        if isinstance(learned, dict):
            for problem in self._core.restore(learned):
                self._tell(problem)
        demand = self._journal.load_learned("demand")
        if isinstance(demand, dict):
            try:
                gone_s = max(time.time() - float(demand["time_unix_s"]), 0.0)
                self._core.restore_demand(demand["models"], time.monotonic() - gone_s)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._tell(f"what variants were worth could not be restored: {error!r}")
        self._wishes.restore(self._journal.load_learned("operator"), policy)
        text = f"governor {started.get('version')} started"
        self._journal.event("start", None, text, {"pid": started.get("pid")})

    def _tell(self, problem: str) -> None:
        _LOG.warning("learned data: %s", problem)
        self._journal.event("learned", None, problem)
