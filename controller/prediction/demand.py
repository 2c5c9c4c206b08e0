"""What each variant of a model would have been worth, of late and at this time of day.

Owns the memory from which the need for variants is foretold, a day of it in some hundred samples.
It must not know what is loaded: a variant that is not, is worth what it would be if it were.

Samples are of single moments, not means: where two variants take turns within a second, it is
what the better of them is worth *at each moment* that tells what having both is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SPANS_S: Final = (1.0, 16.0, 256.0)  # that a sample stands for
_KEPT: Final = (64, 60, 360)  # samples of each: a minute, a quarter of an hour, a day and a bit
_DAY_S: Final = 86_400.0
# What comes is like what was: (share, seconds within which it is forgotten).
_LIKE: Final = ((0.6, 60.0), (0.3, 900.0), (0.1, 21_600.0))
_LIKE_YESTERDAY: Final = 1.0  # beside these, from where a day is remembered
_AROUND_S: Final = 900.0  # of a time of day
_TINY: Final = 1e-12
_GOLDEN: Final = 0.6180339887498949  # its multiples, less their whole part, are spread evenly


class Demand:
    """The moments of one model; `phase`, 0 to 1, differs between models, or all are due at once."""

    def __init__(self, variants: int, phase: float = 0.0) -> None:
        self._variants = variants
        self._phase = phase
        self._levels = tuple(_Ring(kept, variants) for kept in _KEPT)
        self._due_s = -math.inf

    def is_due(self, now_s: float) -> bool:
        """Return whether this moment is to be kept."""
        return now_s >= self._due_s

    def observe(self, now_s: float, rate_rps: float, worth: Sequence[float]) -> None:
        """Keep a moment: the requests a second, and what one is worth on each variant."""
        first = self._levels[0]
        first.add(now_s, rate_rps, worth)
        # Not at even steps, which might always meet the same phase of what takes turns.
        jitter = (first.taken * _GOLDEN + self._phase) % 1.0
        self._due_s = math.floor(now_s) + _SPANS_S[0] * (1.0 + jitter)
        for level in range(1, len(_SPANS_S)):
            finer, every = self._levels[level - 1], round(_SPANS_S[level] / _SPANS_S[level - 1])
            if finer.taken % every:
                return
            own = self._levels[level]
            # Any of those that it stands for.
            own.add(*finer.back(int(every * (((own.taken + 1) * _GOLDEN) % 1.0))))

    def expected(self, now_s: float, lead_s: float) -> tuple[Floats, Floats]:
        """Return what is to be expected from some seconds after now on.

        Returns:
            (requests a second, [samples]; worth of one on each variant, [samples, variants]).
            Each rate is multiplied by how likely its moment is.
        """
        at_s, rate_rps, worth, span_s = self._samples()
        age_s = np.maximum(now_s - at_s, 0.0)
        weight = sum(share / like_s * np.exp(-age_s / like_s) for share, like_s in _LIKE) * span_s
        weight /= max(float(weight.sum()), _TINY)
        # The time of day of what comes next, a day ago.
        then = np.abs(age_s + lead_s - _DAY_S) <= _AROUND_S
        if then.any():
            weight += _LIKE_YESTERDAY * then / then.sum()
            weight /= 1.0 + _LIKE_YESTERDAY
        return weight * rate_rps, worth

    def _samples(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return what is remembered, each moment at the finest step that still has it."""
        parts, oldest_s = [], math.inf
        for ring, span_s in zip(self._levels, _SPANS_S, strict=True):
            at_s, rate_rps, worth = ring.kept()
            kept = at_s < oldest_s
            parts.append((at_s[kept], rate_rps[kept], worth[kept], np.full(kept.sum(), span_s)))
            oldest_s = min(oldest_s, float(at_s.min(initial=math.inf)))
        at_s, rate_rps, worth, spans_s = (np.concatenate(part) for part in zip(*parts, strict=True))
        return at_s, rate_rps, worth, spans_s

    def take_over(self, old: Demand, variants: Sequence[int | None]) -> None:
        """Keep what another policy's demand knows; `variants`: where each stood there."""
        for ring, before in zip(self._levels, old._levels, strict=True):
            ring.take_over(before, variants)
        self._due_s = old._due_s

    def state(self, now_s: float) -> dict[str, Any]:
        """Return what was seen, by age, but for the last minute's details. JSON-ready."""
        return {"moments": [ring.state(now_s) for ring in self._levels[1:]]}

    def restore(self, state: Mapping[str, Any], now_s: float) -> None:
        """Take back what `state` returned, as of now. Raises ValueError, KeyError, TypeError."""
        rings = []
        for stored, kept in zip(state["moments"], _KEPT[1:], strict=True):
            ring = _Ring(kept, self._variants)
            for age_s, rate_rps, *worth in stored:
                numbers = [float(age_s), float(rate_rps), *map(float, worth)]
                if len(worth) != self._variants or not all(map(math.isfinite, numbers)):
                    raise ValueError("a moment of the demand is out of range")
                ring.add(now_s - numbers[0], numbers[1], numbers[2:])
            rings.append(ring)
        self._levels = (self._levels[0], *rings)


class _Ring:
    """The last moments of one step."""

    def __init__(self, size: int, variants: int) -> None:
        self.taken = 0
        self._at_s = np.zeros(size)
        self._rate_rps = np.zeros(size)
        self._worth = np.zeros((size, variants))

    def add(self, at_s: float, rate_rps: float, worth: Sequence[float] | Floats) -> None:
        at = self.taken % len(self._at_s)
        self._at_s[at], self._rate_rps[at], self._worth[at] = at_s, rate_rps, worth
        self.taken += 1

    def back(self, steps: int) -> tuple[float, float, Floats]:
        """Return a moment so many steps before the last, or the oldest."""
        at = (self.taken - 1 - min(steps, self.taken - 1)) % len(self._at_s)
        return float(self._at_s[at]), float(self._rate_rps[at]), self._worth[at]

    def kept(self) -> tuple[Floats, Floats, Floats]:
        """Return what there is, in no order."""
        count = min(self.taken, len(self._at_s))
        return self._at_s[:count], self._rate_rps[:count], self._worth[:count]

    def take_over(self, old: _Ring, variants: Sequence[int | None]) -> None:
        self.taken, self._at_s, self._rate_rps = old.taken, old._at_s, old._rate_rps
        for column, before in enumerate(variants):
            if before is not None:
                self._worth[:, column] = old._worth[:, before]

    def state(self, now_s: float) -> list[list[float]]:
        """Return the moments, the oldest first."""
        at_s, rate_rps, worth = self.kept()
        moments = np.column_stack((now_s - at_s, rate_rps, worth))[np.argsort(at_s)]
        found: list[list[float]] = moments.round(4).tolist()
        return found
