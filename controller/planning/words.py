"""Words and numbers that all sentences about decisions share.

Owns how a time, a share or an exclusion is spelt. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from controller.planning.decision import Candidate, Decision, Excluded

_MS = 1e3

EXCLUDED: Mapping[Excluded, str] = {
    Excluded.MIN_QUALITY: "is below the policy's min_quality",
    Excluded.NOT_READY: "is not ready on Triton",
    Excluded.UNUSABLE: "cannot be switched to at the moment",
    Excluded.NOT_ALLOWED: "may not serve at this time, as a schedule of the policy says",
    Excluded.GPU_LOST: "has instances on a GPU that is lost",
    Excluded.NOT_LOADED: "is not loaded, as the memory budget does not hold every variant",
}


def candidate_of(decision: Decision, variant: str | None) -> Candidate | None:
    """Return what is predicted of a variant, by the operator's name; None: nothing."""
    return next((c for c in decision.candidates if c.variant == variant), None)


def spell_s(value_s: float) -> str:
    """Return a time, in milliseconds where it is short."""
    if not math.isfinite(value_s):
        return "without end"
    value_ms = value_s * _MS
    if value_ms >= 10_000:
        return f"{value_s:.0f} s"
    return f"{value_ms:.0f} ms" if value_ms >= 10 else f"{value_ms:.1f} ms"


def spell_percent(value: float) -> str:
    """Return a share as per cent."""
    if not math.isfinite(value):
        return "an unknown share"
    percent = value * 100.0
    if 0.0 < percent < 0.01:
        return "under 0.01 %"
    return f"{percent:.3g} %"


def spell_number(value: float) -> str:
    """Return a number without more digits than anybody reads."""
    if not math.isfinite(value):
        return "an unknown number of"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
