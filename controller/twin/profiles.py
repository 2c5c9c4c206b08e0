"""Profiles of a ladder's variants: the same weights under other largest batches.

Owns what a profile's service times are, for studies of whether profiles would pay. It must not
simulate anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from controller.policy.model import profile_name
from controller.twin.ladder import Ladder, TwinVariant


def with_profiles(ladder: Ladder, batches: Sequence[int], *, fixed_shape: bool) -> Ladder:
    """Return a ladder whose variants have profiles of some largest batches, too.

    Args:
        ladder: variants as measured.
        batches: largest batches; those that a variant does not reach are left out.
        fixed_shape: the profiles are compiled for their largest batch alone, as engines without
            dynamic shapes are: a smaller one is padded to it and takes as long. The variant
            itself is then such an engine of its own largest batch.
    """
    found = tuple(
        one for variant in ladder.variants for one in _profiles(variant, batches, fixed_shape)
    )
    return replace(ladder, variants=found)


def _profiles(
    variant: TwinVariant, batches: Sequence[int], fixed_shape: bool
) -> Iterator[TwinVariant]:
    yield _limited(variant, variant.max_batch, fixed_shape)
    for rows in sorted(set(batches)):
        if rows < variant.max_batch:
            name = profile_name(variant.name, f"b{rows}")
            limited = _limited(variant, rows, fixed_shape)
            yield replace(limited, name=name, profile_of=variant.name)


def _limited(variant: TwinVariant, rows: int, fixed_shape: bool) -> TwinVariant:
    table_s = variant.table_s[:rows]
    return replace(variant, table_s=np.full(rows, table_s[-1]) if fixed_shape else table_s)
