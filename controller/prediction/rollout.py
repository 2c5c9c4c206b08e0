"""The points at which a window is looked at, and what is read off them.

Owns how likely each point is, and quantiles and shares over them. It must not know queues:
`controller.prediction.latency` says what happens at each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.prediction.arrivals import RATE_POINTS

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

# Points of a standard normal (means of its slices), of its absolute value, and how often they are.
SPREAD: Final[Singles] = np.array([-0.9658, 0.1288, 0.8610, 1.5885, 2.4209], dtype=np.float32)
AWAY: Final[Singles] = np.array([0.2562, 0.7636, 1.3002, 1.9121, 2.6652], dtype=np.float32)
_SPREAD_OFTEN: Final[Floats] = np.array([0.4, 0.3, 0.2, 0.08, 0.02])
# Equally likely points of a window.
MOMENTS: Final[Singles] = np.array([0.25, 0.75], dtype=np.float32)
# Shares of the running batch that are left when a request arrives, equally likely.
LEFT: Final[Singles] = np.array([0.2, 0.8], dtype=np.float32)
# A request's own rows, in standard deviations from their mean, and how often: skewed, as sizes are.
OWN_OFFSETS: Final[Floats] = np.array([-0.45, 0.5, 1.7, 3.3])
_OWN_OFTEN: Final[Floats] = np.array([0.62, 0.24, 0.10, 0.04])
POINTS: Final = RATE_POINTS * len(MOMENTS) * len(SPREAD)

_BLOCKS: Final = 24  # that the points are cut into
_WEIGHT_BITS: Final = 31
_LEAST_EXPONENT: Final = np.float32(-80.0)
_ROUNDING: Final = 1e-5  # by so much sums of single precision may miss what they reach exactly


class _Often:
    """How often the points of a rollout are: own sizes x left x points, flat."""

    def __init__(self, own_often: Floats) -> None:
        left, times = len(LEFT), RATE_POINTS * len(MOMENTS)
        weights = np.multiply.outer(own_often / left, _SPREAD_OFTEN / times)
        # Which of the different weights each point has, and what they are. [points], [weights].
        self.of = (
            np.add.outer(
                np.repeat(np.arange(len(own_often)) * len(_SPREAD_OFTEN), left),
                np.tile(np.arange(len(_SPREAD_OFTEN)), times),
            )
            .ravel()
            .astype(np.int32)
        )
        self.different = weights.ravel().astype(np.float32)
        self.of_each: Floats = weights.ravel()[self.of]  # [points]. Sum: 1


# By the number of points: of requests of several sizes, and of such as are all alike.
_OFTEN: Final = {len(often.of): often for often in (_Often(_OWN_OFTEN), _Often(np.ones(1)))}


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the next window looks like on each candidate. First axis: candidates."""

    latency_s: Singles  # [candidates, points]
    utilization_ratio: Floats  # [candidates], at the mean rate
    # [candidates], expected work left at the window's end, in seconds of the fastest one's time
    leftover_s: Floats
    throughput_rows_s: Floats  # [candidates]
    single_s: Floats  # [candidates], a batch of one mean request

    @property
    def weights(self) -> Floats:
        """Return how likely each point is. [points]. Sum: 1."""
        return _OFTEN[self.latency_s.shape[1]].of_each

    def quantiles_s(self, *probabilities: float | Floats) -> tuple[Floats, ...]:
        """Return latency quantiles, each per candidate, in seconds.

        A probability is one for all candidates, or an array. [candidates].
        """
        # Sorted together with what each point weighs, which takes the place of the last bits of
        # its mantissa (2^-18 of a latency): sorting numbers is far faster than their order.
        count = len(self.latency_s)
        bits = np.asarray(self.latency_s, dtype=np.float32).view(np.int32)
        often = _OFTEN[self.latency_s.shape[1]]
        packed = bits & ~_WEIGHT_BITS
        packed |= often.of
        packed.sort(axis=1)
        weights = often.different.take((packed & _WEIGHT_BITS).astype(np.intp), mode="clip")
        # Sums by block first: to add up all of them takes as long as all the rest.
        pieces = weights.reshape(count, _BLOCKS, -1)
        ones = np.ones(pieces.shape[2], dtype=np.float32)
        below = (weights.reshape(-1, len(ones)) @ ones).reshape(count, _BLOCKS).cumsum(axis=1)
        rows = np.arange(count)
        # All at once, in the shape [probabilities, candidates].
        wanted = np.empty((len(probabilities), count, 1))
        for at, probability in enumerate(probabilities):
            wanted[at, :, 0] = probability - _ROUNDING
        block = np.minimum((below < wanted).sum(axis=2), _BLOCKS - 1)
        before = np.where(block > 0, below[rows, block - 1], 0.0)[..., None]
        inside = before + pieces[rows, block].cumsum(axis=2)
        within = np.minimum((inside < wanted).sum(axis=2), pieces.shape[2] - 1)
        found = packed.reshape(pieces.shape)[rows, block, within] & ~_WEIGHT_BITS
        return tuple(found.view(np.float32).astype(np.float64))

    def miss_ratio(self, limit_s: Floats, noise: Floats) -> Floats:
        """Return the predicted share of requests over a limit, per candidate.

        To be called where numpy's warnings are off.

        Args:
            limit_s: the latency a request must not exceed. [candidates].
            noise: the spread of the logarithm of a latency about its point. [candidates].
        """
        slope = (-1.702 / np.maximum(noise, 1e-3)).astype(np.float32)[:, None]
        # The logistic curve is within 0.01 of the normal's (Bowling et al. 2009).
        exponent = np.log(self.latency_s)
        exponent -= np.log(limit_s).astype(np.float32)[:, None]
        exponent *= slope
        # Far above the limit nothing changes, and numbers too small to be normal ones are slow.
        np.maximum(exponent, _LEAST_EXPONENT, out=exponent)
        np.exp(exponent, out=exponent)  # may overflow, far below the limit: nothing is late
        exponent += np.float32(1.0)
        missed = np.reciprocal(exponent, out=exponent)
        return np.asarray(missed @ self.weights)
