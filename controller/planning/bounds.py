"""Bounds: which variants may be chosen at all.

Owns what the policy and the server forbid. It must not rank what is left.
"""

from __future__ import annotations

from collections.abc import Collection

from controller.planning.decision import Excluded
from controller.policy.model import ModelPolicy
from controller.telemetry.observation import Observation


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
    held = {} if observation.memory is None else observation.memory.variants
    unusable = frozenset() if model is None else model.unusable
    least, names = policy.min_quality, policy.allowed
    found: list[Excluded | None] = []
    for i, variant in enumerate(policy.variants):
        own, reading = held.get(variant.model), readings.get(variant.model)
        reason = None
        if variant.quality < least:
            reason = Excluded.MIN_QUALITY
        elif names is not None and variant.name not in names:
            reason = Excluded.NOT_ALLOWED
        elif own is not None and not own.held:
            reason = Excluded.NOT_LOADED
        elif variant.model in unusable and i != serving:
            # The one that serves may be in the middle of an operation: staying asks nothing of it.
            reason = Excluded.UNUSABLE
        elif reading is not None and reading.ready is False:
            reason = Excluded.NOT_READY
        found.append(reason)
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


def may_serve(policy: ModelPolicy, excluded: list[Excluded | None]) -> list[bool]:
    """Return which variants would be worth their memory: none that is bound to a lost GPU."""
    return [
        policy.lets(variant) and (reason is not Excluded.GPU_LOST or variant.gpus is not None)
        for variant, reason in zip(policy.variants, excluded, strict=True)
    ]
