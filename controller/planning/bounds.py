"""Bounds: which variants may be chosen at all.

Owns what the policy and the server forbid. It must not rank what is left.
"""

from __future__ import annotations

from controller.planning.decision import Excluded
from controller.policy.model import ModelPolicy, VariantPolicy
from controller.telemetry.observation import MemoryReading, ModelReading, VariantReading


def exclusion(
    policy: ModelPolicy,
    variant: VariantPolicy,
    reading: VariantReading | None,
    model: ModelReading | None,
    memory: MemoryReading | None,
    *,
    serves: bool,
) -> Excluded | None:
    """Return why a variant must not be chosen now, or None.

    The one that `serves` may be in the middle of an operation: staying there asks nothing of it.
    """
    if variant.quality < policy.min_quality:
        return Excluded.MIN_QUALITY
    if policy.allowed is not None and variant.name not in policy.allowed:
        return Excluded.NOT_ALLOWED
    own = None if memory is None else memory.variants.get(variant.model)
    if own is not None and not own.held:
        return Excluded.NOT_LOADED
    if not serves and model is not None and variant.model in model.unusable:
        return Excluded.UNUSABLE
    if reading is not None and reading.ready is False:
        return Excluded.NOT_READY
    return None
