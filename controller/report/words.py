"""The words in which a report says why and what.

Owns the phrases of reasons and kinds of actions. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from controller.planning.decision import Reason

REASONS: Final[Mapping[Reason, str]] = {
    Reason.BEST_FEASIBLE: "a better variant meets the objective: on the way to it",
    Reason.ESCAPE: "the variant that served would have missed the objective",
    Reason.RECOVERY: "nothing meets the objective: the fastest drains what waits",
    Reason.IGNORANCE: "nothing was measured yet: the fastest by rank",
    Reason.FALLBACK: "what waits decided, not the predictor",
    Reason.STALE_DATA: "readings were too old to decide on",
    Reason.DWELL: "a better variant was wanted, but the last switch was too young",
    Reason.RATE_LIMIT: "a better variant was wanted, but there were too many switches",
    Reason.PINNED: "an operator pinned it",
    Reason.PAUSED: "an operator paused the governor",
    Reason.HELD: "somebody else changed the server",
    Reason.NO_CHOICE: "the bounds left no variant",
    Reason.STEADY: "the variant that served was the best choice",
    Reason.YIELDS: "other models needed the device more",
    Reason.COOLS: "a GPU was at its limit of temperature or power",
    Reason.RELEASED: "an operator had taken it back",
    Reason.LATE_BINDING: "its dispatcher chose for each batch",
    Reason.NO_DISPATCHER: "its dispatcher did not answer",
    Reason.LULL: "the load comes back before a better variant pays",
    Reason.DISPATCHER_LATE: "its dispatcher was late where a variant alone would not have been",
}


def reason(name: str) -> str:
    """Return what a reason means; a newer governor's reason is its own word."""
    return REASONS[Reason(name)] if name in set(Reason) else name
