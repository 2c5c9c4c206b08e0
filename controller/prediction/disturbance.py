"""What loads and unloads disturb: the share of requests that miss by them, learned from them.

Owns the comparison of what became of requests while an operation was under way with what is usual
for the same model on the same variant, and what that comes to by kind of operation. It must not
weigh it against anything.

Method. Of each operation the share of late or failed requests is compared with that of the twenty
seconds before it and the five after. A model with clearly more arrivals than then is left out: its
requests may be late for that. What one operation shows is clipped to what most of the last ones and
the prior show (a weighted median; the prior counts as two operations), and counts the less the
fewer requests tell it, as in a random-effects mean (DerSimonian & Laird 1986) with a given spread.
So no single operation makes much of it, whatever coincided.

Switches are left out: they are made because the load changes, and what it does by itself is what
would be measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

PRIOR: Final = 0.05
MOST: Final = 0.5
_PRIOR_WEIGHT: Final = 2.0  # operations
_KEPT: Final = 16  # operations of each kind
_BEFORE_S: Final = 20.0
_AFTER_S: Final = 5.0
_SECOND_S: Final = 1.0  # within which requests are counted together
_SECONDS: Final = 640  # that are kept of an operation: loads end by then, or are given up
_FEWEST: Final = 20.0  # requests, to tell what is usual
_LEAST: Final = 5.0  # requests, to say anything of an operation
_SPREAD: Final = 0.1  # standard deviation of what operations of one kind disturb
_TOGETHER: Final = 4.0  # requests of one batch are late together
_CLIP: Final = 2.0  # standard deviations of a count, beside the spread
_MORE: Final = 1.15  # times the usual arrivals, in the whole operation
_MUCH_MORE: Final = 1.5  # in one of its seconds
_SURE: Final = 3.0  # standard deviations of a Poisson count
_RARE: Final = 0.02  # nobody can tell smaller shares from so few requests
_TINY: Final = 1e-9


class Ended(NamedTuple):
    """Requests of one model that ended on one variant since the last look."""

    variant: str
    requests: float
    late: float  # or failed
    came_s: float  # about when they arrived


class Traffic(NamedTuple):
    """What one model did since the last look."""

    model: str
    arrived: float
    ended: Sequence[Ended]


@dataclass(slots=True)
class _Second:
    """What one model did within about a second."""

    from_s: float
    span_s: float = 0.0
    arrived: float = 0.0
    ended: dict[str, tuple[float, float]] = field(default_factory=dict)  # requests, late

    def add(self, ended: Ended) -> None:
        requests, late = self.ended.get(ended.variant, (0.0, 0.0))
        self.ended[ended.variant] = (requests + ended.requests, late + ended.late)


@dataclass(slots=True)
class _Operation:
    """One that is under way, or that ended a moment ago."""

    variant: str
    kind: str
    from_s: float
    to_s: float = math.inf
    alone: bool = True
    during: dict[str, deque[_Second]] = field(default_factory=dict)


class Disturbances:
    """What operations disturb, by kind: load, reload, unload."""

    def __init__(self) -> None:
        self._shown: dict[str, deque[tuple[float, float]]] = {}  # share, weight; of each operation
        self._usual: dict[str, deque[_Second]] = {}
        self._last: _Operation | None = None
        self._stalled_s = -math.inf

    def look(
        self,
        now_s: float,
        window_s: float,
        operations: Mapping[str, str],
        traffic: Iterable[Traffic],
        *,
        stalled: bool = False,
    ) -> None:
        """Take in what became of requests since the last look.

        Args:
            now_s: when they were counted.
            window_s: since they were counted before; 0: nothing is new.
            operations: the kinds of those under way, by Triton's name of the variant.
            traffic: of each model.
            stalled: whether the host stood still; what that caught teaches nothing.
        """
        self._follow(now_s, window_s, operations)
        self._stalled_s = now_s if stalled else self._stalled_s
        last = self._last
        busy = last is not None and last.to_s == math.inf
        for model in traffic:
            calm = met = None
            if last is not None:
                met = _second(last.during, model.model, _SECONDS, now_s)
            if not busy:  # a long operation must not push out what was before it
                calm = _second(self._usual, model.model, round(2.0 * _BEFORE_S), now_s)
            if not stalled and (place := calm or met) is not None:
                place.span_s += window_s
                place.arrived += model.arrived
            for ended in model.ended:
                # What an operation held up ends after it.
                held_up = last is not None and ended.came_s < last.to_s
                place = met if held_up else calm
                if place is not None and ended.came_s >= self._stalled_s:
                    place.add(ended)
        if last is not None and now_s - last.to_s >= _AFTER_S:
            self._settle()

    def _follow(self, now_s: float, window_s: float, operations: Mapping[str, str]) -> None:
        """Take note of which operation is under way."""
        # Nobody knows when within the window it began or ended.
        last, middle_s = self._last, now_s - 0.5 * window_s
        if last is not None and last.to_s == math.inf and last.variant not in operations:
            last.to_s = middle_s
        if operations and (last is None or last.to_s < math.inf):
            self._settle()
            variant, kind = next(iter(operations.items()))
            self._last = last = _Operation(variant, kind, middle_s)
        if last is not None and len(operations) > 1:
            last.alone = False

    def _settle(self) -> None:
        """Learn from the last operation."""
        last, self._last = self._last, None
        if last is None or not last.alone:
            return
        excess = requests = noise = 0.0
        known = self.share(last.kind)
        for model, during in last.during.items():
            first_s, end_s = last.from_s - _BEFORE_S, last.to_s + _AFTER_S
            usual = [one for one in self._usual.get(model, ()) if first_s <= one.from_s <= end_s]
            if _is_a_burst(during, usual):
                continue
            for variant in {name for one in during for name in one.ended}:
                count, late = _total(during, variant)
                of, were_late = _total(usual, variant)
                if of < _FEWEST:
                    continue
                before = were_late / of
                excess += late - count * before
                requests += count
                # By what is known, not by what was seen: few late ones would count for sure ones.
                noise += count * _binomial(before + known) + count**2 / of * _binomial(before)
        if requests < _LEAST:
            return
        variance = _TOGETHER * noise / requests**2
        weight = 1.0 / (1.0 + variance / _SPREAD**2)
        self._shown.setdefault(last.kind, deque(maxlen=_KEPT)).append((excess / requests, weight))

    # -- what it comes to ------------------------------------------------------------------

    def share(self, kind: str) -> float:
        """Return which share of all requests misses by such an operation, while it lasts.

        From 0 to `MOST`. The prior where none was seen.
        """
        shown = [(PRIOR, _PRIOR_WEIGHT), *self._shown.get(kind, ())]
        middle, total, weights = _median(shown), 0.0, 0.0
        for share, weight in shown:
            reach = _SPREAD + _CLIP * _SPREAD * math.sqrt(max(1.0 / weight - 1.0, 0.0))
            total += weight * min(max(share, middle - reach), middle + reach)
            weights += weight
        return min(max(total / weights, 0.0), MOST)

    def view(self) -> dict[str, dict[str, float]]:
        """Return {kind: {share, operations}} for people, of kinds that were seen."""
        return {
            kind: {"share": round(self.share(kind), 4), "operations": len(shown)}
            for kind, shown in sorted(self._shown.items())
        }

    def state(self) -> dict[str, list[list[float]]]:
        """Return what was learned. JSON-ready."""
        return {kind: [list(one) for one in shown] for kind, shown in self._shown.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, TypeError, AttributeError."""
        known = {}
        for kind, stored in state.items():
            shown = [(float(share), float(weight)) for share, weight in stored]
            if not all(-1.0 <= share <= 1.0 and 0.0 < weight <= 1.0 for share, weight in shown):
                raise ValueError(f"{kind}: no share of requests")
            known[str(kind)] = deque(shown, maxlen=_KEPT)
        self._shown = known


def _second(kept: dict[str, deque[_Second]], model: str, most: int, now_s: float) -> _Second:
    """Return where what happens now is counted."""
    seconds = kept.setdefault(model, deque(maxlen=most))
    if not seconds or not 0.0 <= now_s - seconds[-1].from_s < _SECOND_S:
        seconds.append(_Second(now_s))
    return seconds[-1]


def _total(seconds: Iterable[_Second], variant: str) -> tuple[float, float]:
    """Return (requests, late ones) on a variant."""
    found = [one.ended[variant] for one in seconds if variant in one.ended]
    return sum(requests for requests, _ in found), sum(late for _, late in found)


def _binomial(share: float) -> float:
    """Return the variance of a request's being late; never quite none."""
    share = min(max(share, _RARE), 1.0 - _RARE)
    return share * (1.0 - share)


def _is_a_burst(during: Iterable[_Second], usual: Sequence[_Second]) -> bool:
    """Return whether clearly more arrived than is usual, or nobody knows what is usual."""
    span_s = sum(one.span_s for one in usual)
    if span_s <= 0.0:
        return True
    usual_rps = sum(one.arrived for one in usual) / span_s
    counted = [(one.arrived, usual_rps * one.span_s) for one in during]
    arrived, expected = (sum(one[at] for one in counted) for at in (0, 1))
    highest = max(one.arrived for one in usual)
    return _is_more(arrived, expected, _MORE) or any(
        count > highest and _is_more(count, mean, _MUCH_MORE) for count, mean in counted
    )


def _is_more(count: float, mean: float, times: float) -> bool:
    return count > times * mean + _SURE * math.sqrt(max(mean, _TINY))


def _median(weighted: Iterable[tuple[float, float]]) -> float:
    """Return the weighted median: half of the weight is at it or below."""
    ordered = sorted(weighted)
    half, passed = 0.5 * sum(weight for _, weight in ordered), 0.0
    for value, weight in ordered:
        passed += weight
        if passed >= half:
            return value
    return ordered[-1][0]
