"""Bounds: which variants may be chosen at all.

Owns what the policy and the server forbid. It must not rank what is left.
"""

from __future__ import annotations

from collections.abc import Collection

from controller.planning.decision import Excluded
from controller.policy.model import ModelPolicy, VariantPolicy
from controller.telemetry.observation import (
    MemoryReading,
    ModelReading,
    Observation,
    VariantReading,
)


def exclusions(
    policy: ModelPolicy, observation: Observation, lost: Collection[int], serving: int | None
) -> list[Excluded | None]:
    """Return why each variant must not be chosen now, or None.

    Args:
        policy: of the model.
        observation: what there is now.
        lost: the GPUs on which nothing should run. A variant with an instance there is out; where
            no other is left, only those are that have none elsewhere.
        serving: the index of the variant that serves.
    """
    model, readings = observation.models.get(policy.name), observation.variants
    found = [
        exclusion(
            policy,
            variant,
            readings.get(variant.model),
            model,
            observation.memory,
            serves=i == serving,
        )
        for i, variant in enumerate(policy.variants)
    ]
    if not lost:
        return found  # as nearly always
    places = [observation.placement.get(variant.model, ()) for variant in policy.variants]
    for enough in (any, all):
        excluded = [
            Excluded.GPU_LOST
            if reason is None and gpus and enough(gpu in lost for gpu in gpus)
            else reason
            for reason, gpus in zip(found, places, strict=True)
        ]
        if None in excluded:
            break
    return excluded


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


def may_serve(policy: ModelPolicy, excluded: list[Excluded | None]) -> list[bool]:
    """Return which variants would be worth their memory: none that is bound to a lost GPU."""
    return [
        policy.lets(variant) and (reason is not Excluded.GPU_LOST or variant.gpus is not None)
        for variant, reason in zip(policy.variants, excluded, strict=True)
    ]
