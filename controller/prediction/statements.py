"""What was stated of one model's requests, by when they arrived.

Owns how long that is remembered. It must not judge how it turned out.

Numbers side by side, not objects: there are fifty moments a second of each model, which would be
half a gigabyte of two hundred models, and all of it to be looked through by whoever collects
garbage.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_KEPT: Final = 2048  # moments, at least
_AT_ONCE: Final = 16  # are forgotten
# Until a switch takes effect requests go to the variant that is left: both have a statement.
_SLOTS: Final = 2
_NOBODY: Final = -1.0
_MOST_MOMENTS: Final = 20


class Statement(NamedTuple):
    """What was predicted of requests on a variant: latency at the objective's percentile."""

    raw_s: float  # before calibration
    stated_s: float  # after
    told_s: float  # to people
    log_drift: float = 0.0  # of the variant's device, that it was stated by; 0 until it is noted


_WIDTH: Final = 1 + len(Statement._fields)  # of a slot: the variant, and what was stated
_MOMENT: Final = _SLOTS * _WIDTH


class Statements:
    """Remembers what was stated from which moment on.

    `models` are the variants, by Triton's name.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._numbers = {model: number for number, model in enumerate(models)}
        self._until_s = [-math.inf] * len(models)  # something was stated of each
        self._newest: list[int] = []  # of whom it is now
        self._from_s: list[float] = []  # ascending
        self._said = array("d")  # of each of these, slot by slot

    def add(
        self, now_s: float, of: Mapping[str, Statement], log_drifts: Mapping[str, float]
    ) -> None:
        """Note what is stated from now on. Raises KeyError, ValueError.

        Args:
            now_s: when; never before the last time.
            of: of the variants that may get requests, two at most.
            log_drifts: of at least these, by which it is stated.
        """
        if len(of) > _SLOTS:
            raise ValueError(f"{len(of)} variants at once, of which {_SLOTS} can be told apart")
        row: list[float] = []
        for model, said in of.items():
            row += (self._numbers[model], *said[:-1], log_drifts[model])
        row += [_NOBODY] * (_MOMENT - len(row))
        # From here on nothing can fail: times and rows stay as many.
        self._from_s.append(now_s)
        self._said.extend(row)
        for number in self._newest:
            self._until_s[number] = now_s
        self._newest = [self._numbers[model] for model in of]
        for number in self._newest:
            self._until_s[number] = math.inf
        if len(self._from_s) >= _KEPT + _AT_ONCE:
            del self._from_s[:_AT_ONCE]
            del self._said[: _AT_ONCE * _MOMENT]

    def of(self, arrived_s: float, model: str) -> Statement | None:
        """Return what was stated of a request; None: nothing was."""
        number = self._numbers.get(model)
        if number is None or arrived_s >= self._until_s[number]:
            return None  # as of most variants at most times
        return self.stated_at(self.moment(arrived_s), model)

    def told(self, model: str) -> Told:
        """Return what was told of requests on one variant."""
        return Told(self, model)

    def moment(self, arrived_s: float) -> int:
        """Return at which moment it was stated what holds for a request; negative: at none."""
        return bisect_right(self._from_s, arrived_s) - 1

    def stated_at(self, moment: int, model: str) -> Statement | None:
        """Return what was stated of a variant at a moment; None: nothing was."""
        if moment < 0:
            return None
        number, first = self._numbers.get(model), moment * _MOMENT
        for slot in range(first, first + _MOMENT, _WIDTH):
            if self._said[slot] == number:
                return Statement(*self._said[slot + 1 : slot + _WIDTH])
        return None


class Told:
    """What people were told of requests on one variant."""

    def __init__(self, statements: Statements, model: str) -> None:
        self._statements, self._model = statements, model

    def at(self, came_s: Sequence[float]) -> list[float | None]:
        """Return what was told of those that came at some times; None: nothing was."""
        moments = list(map(self._statements.moment, came_s))
        told_s = {moment: self._told_s(moment) for moment in set(moments)}
        return [told_s[moment] for moment in moments]

    def least(self, from_s: float, to_s: float) -> float | None:
        """Return the least that was told of any within some time.

        None: of some nothing was, or there are too many moments to look at each.
        """
        least_s = math.inf
        first, last = self._statements.moment(from_s), self._statements.moment(to_s)
        if last - first > _MOST_MOMENTS:
            return None
        for moment in range(first, last + 1):
            told_s = self._told_s(moment)
            if told_s is None:
                return None
            least_s = min(told_s, least_s)
        return least_s

    def _told_s(self, moment: int) -> float | None:
        said = self._statements.stated_at(moment, self._model)
        return None if said is None else said.told_s
