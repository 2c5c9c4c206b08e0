"""What each variant is expected to be asked, and the device's time that this takes.

Owns the share of a model's requests that each of its variants is counted for, where places are
chosen. It must not choose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from controller.planning.pool import Wish

_ANY: Final = 0.02  # of a model's requests: each of its variants may be the one at any time


class Work(NamedTuple):
    """What is expected of one variant."""

    name: str  # Triton's
    model: int  # the first that it serves
    rate_rps: float  # by weight
    busy: float  # seconds of its device a second, at the speed that was learned


def expected_work(
    wishes: Sequence[Wish],
    weights: Sequence[float],
    device_s: Sequence[Sequence[float]],
    there: Collection[str],
) -> Iterator[Work]:
    """Yield what is expected of each variant; of one of several models, once, of all together.

    At each moment the best of those that are there serves; of a model without any, of all.

    Args:
        wishes: of the models: what they met, and what each variant was worth to them.
        weights: of the models.
        device_s: seconds of its device that a request takes, of each model's variants.
        there: what is loaded or is to be.
    """
    found: dict[str, Work] = {}
    for at, (wish, weight, takes_s) in enumerate(zip(wishes, weights, device_s, strict=True)):
        share = np.full(len(wish.models), _ANY * float(wish.rate_rps.sum()))
        columns = [i for i, name in enumerate(wish.models) if name in there]
        columns = columns or list(range(len(wish.models)))
        if wish.rate_rps.size:
            best = np.asarray(columns)[wish.worth[:, columns].argmax(axis=1)]
            np.add.at(share, best, wish.rate_rps)
        for name, rate_rps, seconds in zip(wish.models, share.tolist(), takes_s, strict=True):
            before = found.get(name, Work(name, at, 0.0, 0.0))
            found[name] = before._replace(
                rate_rps=before.rate_rps + weight * rate_rps, busy=before.busy + rate_rps * seconds
            )
    yield from found.values()
