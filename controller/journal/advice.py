"""What the governor would have done over a time, beside what was done: from its decisions.

Owns the sums over recorded decisions. It must not predict anything: every figure was stated by a
decision of that time, for the variants that it compared.

A decision holds until the next one of its model is recorded, at most `_HOLDS_S`: they are recorded
once a second, and at once when they ask for another change. Times without any are told as not
watched. A decision's figures for a variant are what was predicted had it been switched to at that
moment, from the queue that there really was; so where advice is not followed, an overload's queue
weighs on what is predicted of the better choice, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controller.journal.reader import JournalReader
from controller.journal.records import SCORE_EVENT

_HOLDS_S: Final = 2.5
_NOBODY_ACTED: Final = frozenset({"paused", "released", "held"})


@dataclass(slots=True)
class Side:
    """What was predicted of one way to serve, summed over expected requests."""

    requests: float = 0.0
    in_time: float = 0.0  # of these
    quality: float = 0.0  # of those in time
    within_s: float = 0.0  # seconds in which what is told of the percentile is in the objective
    known_s: float = 0.0
    told_s: list[tuple[float, float]] = field(default_factory=list)  # (latency, requests)

    def add(
        self,
        requests: float,
        held_s: float,
        candidate: Mapping[str, Any],
        objective_s: float | None,
    ) -> None:
        """Take in what a decision said of a variant, over the time that it held."""
        miss, told_s = _number(candidate.get("miss_ratio")), _number(candidate.get("told_p99_s"))
        if not candidate.get("known") or miss is None:
            return
        self.known_s += held_s
        met = requests * (1.0 - min(max(miss, 0.0), 1.0))
        self.requests += requests
        self.in_time += met
        self.quality += met * (_number(candidate.get("quality")) or 0.0)
        if told_s is not None:
            self.told_s.append((told_s, requests))
            if objective_s is not None and told_s <= objective_s:
                self.within_s += held_s

    def view(self) -> dict[str, Any]:
        """Return ratios; None where nothing is known."""
        return {
            "predicted_attainment": _ratio(self.in_time, self.requests),
            "predicted_effective_quality": _ratio(self.quality, self.requests),
            "told_p99_ms": {
                "p50": _ms(_quantile(self.told_s, 0.5)),
                "p95": _ms(_quantile(self.told_s, 0.95)),
            },
            "told_within_objective_ratio": _ratio(self.within_s, self.known_s),
            "known_s": round(self.known_s, 3),
        }


@dataclass(slots=True)
class _Model:
    watched_s: float = 0.0
    acted_s: float = 0.0
    requests: float = 0.0
    would_switch: int = 0
    objective_s: float | None = None
    served_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    chosen_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    unknown_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    excluded_s: defaultdict[tuple[str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    quality: dict[str, float] = field(default_factory=dict)
    as_served: Side = field(default_factory=Side)
    as_chosen: Side = field(default_factory=Side)


def advice(
    reader: JournalReader, since_unix_s: float, until_unix_s: float, model: str | None = None
) -> list[dict[str, Any]]:
    """Return, of each model, what served and what would have been chosen. JSON-ready.

    Raises JournalUnreadableError.
    """
    names = sorted(reader.models()) if model is None else [model]
    scores = reader.events_of(SCORE_EVENT, since_unix_s, until_unix_s)
    found = []
    for name in names:
        sums = _sums(reader, name, since_unix_s, until_unix_s)
        if sums.watched_s > 0.0:
            measured = _measured([data[name] for _, data in scores if name in data])
            found.append(_view(name, sums, measured, until_unix_s - since_unix_s))
    return found


def _sums(reader: JournalReader, name: str, since_unix_s: float, until_unix_s: float) -> _Model:
    sums, before, wanted = _Model(), None, None
    for time_unix_s, decision in reader.decisions(name, since_unix_s, until_unix_s):
        if before is not None:
            held_s = min(max(time_unix_s - before[0], 0.0), _HOLDS_S)
            wanted = _add(sums, before[1], held_s, wanted)
        before = time_unix_s, decision
    if before is not None:
        _add(sums, before[1], min(max(until_unix_s - before[0], 0.0), 1.0), wanted)
    return sums


def _add(
    sums: _Model, decision: Mapping[str, Any], held_s: float, wanted: str | None
) -> str | None:
    """Take one decision in; return which variant was wanted."""
    serving = _text(decision.get("serving"))
    desired = _text(decision.get("desired")) or serving
    if wanted is not None and desired not in (None, wanted):
        sums.would_switch += 1
    if serving is None:
        return desired or wanted
    requests = (_number(decision.get("rate_rps")) or 0.0) * held_s
    objective_s = _number(decision.get("objective_s"))
    sums.watched_s += held_s
    sums.requests += requests
    sums.objective_s = objective_s if objective_s is not None else sums.objective_s
    acted = not decision.get("advised") and decision.get("reason") not in _NOBODY_ACTED
    sums.acted_s += held_s if acted else 0.0
    sums.served_s[serving] += held_s
    sums.chosen_s[desired or serving] += held_s
    for candidate in decision.get("candidates") or ():
        variant = str(candidate.get("variant"))
        sums.quality[variant] = _number(candidate.get("quality")) or 0.0
        if candidate.get("excluded") is not None:
            sums.excluded_s[variant, str(candidate["excluded"])] += held_s
        elif not candidate.get("known"):
            sums.unknown_s[variant] += held_s
        if variant == serving:
            sums.as_served.add(requests, held_s, candidate, objective_s)
        if variant == (desired or serving):
            sums.as_chosen.add(requests, held_s, candidate, objective_s)
    return desired or wanted


def _view(
    name: str, sums: _Model, measured: dict[str, Any] | None, asked_s: float
) -> dict[str, Any]:
    variants = []
    for variant in sorted(sums.quality, key=lambda one: -sums.quality[one]):
        excluded = {
            why: round(held_s / sums.watched_s, 6)
            for (one, why), held_s in sums.excluded_s.items()
            if one == variant
        }
        variants.append(
            {
                "variant": variant,
                "quality": sums.quality[variant],
                "served_ratio": round(sums.served_s.get(variant, 0.0) / sums.watched_s, 6),
                "chosen_ratio": round(sums.chosen_s.get(variant, 0.0) / sums.watched_s, 6),
                "not_measured_ratio": round(sums.unknown_s.get(variant, 0.0) / sums.watched_s, 6),
                "excluded_ratio": excluded,
            }
        )
    return {
        "name": name,
        "asked_s": round(asked_s, 3),
        "watched_s": round(sums.watched_s, 3),
        "acted_ratio": round(sums.acted_s / sums.watched_s, 6),
        "expected_requests": round(sums.requests, 1),
        "objective_ms": _ms(sums.objective_s),
        "variants": variants,
        "as_served": sums.as_served.view(),
        "as_chosen": sums.as_chosen.view(),
        "measured": measured,
        "would_switch": sums.would_switch,
        "would_switch_per_minute": round(60.0 * sums.would_switch / sums.watched_s, 3),
    }


def _measured(scores: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what completed requests say of what really served; None: none was traced."""
    told = [(s, _number(s.get("requests")) or 0.0) for s in scores if _is_told(s)]
    requests = sum(count for _, count in told)
    if not requests:
        return None
    return {
        "traced_requests": int(requests),
        "attainment": sum((_number(s.get("attainment")) or 0.0) * n for s, n in told) / requests,
        "effective_quality": sum((_number(s.get("effective_quality")) or 0.0) * n for s, n in told)
        / requests,
    }


def _is_told(score: Mapping[str, Any]) -> bool:
    return _number(score.get("attainment")) is not None


def _quantile(weighted: list[tuple[float, float]], q: float) -> float | None:
    """Return a quantile of values by their weights; None: there are none."""
    ordered = sorted(weighted)
    total = sum(weight for _, weight in ordered)
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if total > 0.0 and reached >= q * total:
            return value
    return None


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole > 0.0 else None


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s * 1e3, 3)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
