"""A decision: what was chosen, from what, with which predictions, and why.

Owns the words in which the governor explains itself. It must not decide anything.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class Reason(enum.StrEnum):
    """Why the target is what it is. Append only: journals of the past hold these words."""

    BEST_FEASIBLE = "best_feasible"  # the most effective quality that meets the objective
    ESCAPE = "escape"  # the serving variant would miss its objective
    RECOVERY = "recovery"  # nothing meets the objective: the fastest drains the backlog
    IGNORANCE = "ignorance"  # nothing is known yet: the fastest by rank
    FALLBACK = "fallback"  # the backlog threshold decided, not the predictor
    STALE_DATA = "stale_data"  # readings are too old to decide on: keep
    DWELL = "dwell"  # a better variant is wanted, but the last switch is too young
    RATE_LIMIT = "rate_limit"  # a better variant is wanted, but there were too many switches
    PINNED = "pinned"  # an operator pinned it
    PAUSED = "paused"  # an operator paused the governor
    HELD = "held"  # somebody else changed the server: hands off
    NO_CHOICE = "no_choice"  # the bounds leave no candidate
    STEADY = "steady"  # the serving variant is still the best choice
    YIELDS = "yields"  # others that share the device need its time more
    COOLS = "cools"  # a GPU is above the temperature or power that the policy allows
    RELEASED = "released"  # an operator took the model back: observed, no longer acted on
    LATE_BINDING = "late_binding"  # a dispatcher gives each batch the variant that fits it
    NO_DISPATCHER = "no_dispatcher"  # the dispatcher does not answer: a variant serves meanwhile
    LULL = "lull"  # a better variant would do now, but the load comes back before that pays
    DISPATCHER_LATE = "dispatcher_late"  # a variant alone does better than the dispatcher: for now


class Excluded(enum.StrEnum):
    """Why a candidate was not allowed to be chosen. Append only."""

    MIN_QUALITY = "min_quality"
    NOT_READY = "not_ready"
    UNUSABLE = "unusable"
    NOT_LOADED = "not_loaded"  # the memory budget does not hold every variant
    NOT_ALLOWED = "not_allowed"  # a schedule names others
    GPU_LOST = "gpu_lost"  # it has instances on a GPU that is lost, or was until just now


class Candidate(NamedTuple):
    """One operating point that could serve, and what is predicted for it.

    A tuple, since there may be thousands a tick.
    """

    variant: str  # the operator's name
    model: str  # Triton's
    quality: float
    excluded: Excluded | None
    known: bool  # False: predictions are a guess from siblings or from rank
    service_s: float  # of a batch of one request, in the present state of the machine
    utilization_ratio: float  # work arriving per second of work it can do
    p50_s: float
    p99_s: float  # at the objective's percentile, calibrated: what is decided by
    told_p99_s: float  # the same, as people are told: meant to hold for that share of all requests
    miss_ratio: float  # predicted share of requests that miss, calibrated
    value: float  # expected effective quality per request, less the backlog's cost
    feasible: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one model at one tick."""

    now_s: float
    sequence: int
    model: str
    serving: str | None  # operator's name of the variant that serves; None: none known
    desired: str | None  # before damping
    target: str | None  # after damping and bounds; None: leave everything
    reason: Reason
    candidates: tuple[Candidate, ...]
    rate_rps: float  # median forecast
    rate_p95_rps: float
    rows_per_request: float
    backlog_requests: int
    backlog_s: float  # seconds of work waiting
    drift_ratio: float  # present service time over what was learned
    urgent: bool = False  # an escape: nothing may delay it
    advised: bool = False  # nobody carries it out
    objective_s: float | None = None  # the latency that was to be met

    @property
    def changes(self) -> bool:
        """Return whether carrying this out would switch the alias."""
        return self.target is not None and self.target != self.serving
