"""What a day came to, in numbers.

Owns how sums become what people are told, and what is said to be unknown. Pure: the journal is
read elsewhere. The document it returns is what `governor report --json` prints.

What is not known is None: without traces nobody knows which requests were late, and no mean tells.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from controller.journal.minutes import GPU, MINUTE_S, MachineMinute, ModelMinute
from controller.report import words
from controller.report.series import FEWEST, known_quantile_s
from controller.report.zone import local, zone_of

VERSION: Final = 1
_MOST_EVENTS: Final = 300
_FAILED: Final = frozenset({"failed", "rolled_back", "unknown"})
_DONE: Final = frozenset({"done", "nothing_to_do"})
_KNOWN_WORTH_SAYING: Final = 0.98  # of the requests; with less, the rest is told of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a journal holds of some time."""

    since_unix_s: float
    until_unix_s: float
    journal: str  # its path
    models: Sequence[tuple[int, str, ModelMinute]] = ()
    machine: Sequence[tuple[int, MachineMinute]] = ()
    actions: Sequence[Mapping[str, Any]] = ()  # oldest first
    events: Sequence[Mapping[str, Any]] = ()
    dropped_before: Mapping[str, float] = field(default_factory=dict)  # by table
    has_minutes: bool = True
    # Of variants, by model: as the newest decisions that are kept have them.
    qualities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    minutes_since_unix_s: float | None = 0.0  # the oldest that is kept; None: none is yet

    @property
    def known_since_unix_s(self) -> float:
        """Return from when on it is known whether anybody watched."""
        if self.minutes_since_unix_s is None:
            return self.until_unix_s
        return min(max(self.since_unix_s, self.minutes_since_unix_s), self.until_unix_s)

    @property
    def names(self) -> list[str]:
        """Return the models of which anything is known."""
        acted = {str(one["model"]) for one in self.actions if one.get("model")}
        return sorted({name for _, name, _ in self.models} | acted)

    def of(self, model: str) -> Recorded:
        """Return what is of one model, and of nobody's."""
        mine = (None, model)
        return Recorded(
            self.since_unix_s,
            self.until_unix_s,
            self.journal,
            [one for one in self.models if one[1] == model],
            self.machine,
            [one for one in self.actions if one.get("model") == model],
            [one for one in self.events if one.get("model") in mine],
            self.dropped_before,
            self.has_minutes,
            self.qualities,
            self.minutes_since_unix_s,
        )


def summary(recorded: Recorded) -> Json:
    """Return the numbers of a time. JSON-ready."""
    total: dict[str, ModelMinute] = defaultdict(ModelMinute)
    for _, name, minute in recorded.models:
        total[name].add(minute)
    models = [_model(name, total[name], recorded) for name in sorted(total)]
    machine = _machine(recorded)
    events = list(recorded.events)[-_MOST_EVENTS:]
    return {
        "version": VERSION,
        "since_unix_s": recorded.since_unix_s,
        "until_unix_s": recorded.until_unix_s,
        "zone": zone_of(recorded.until_unix_s),
        "journal": recorded.journal,
        "notes": _notes(recorded, models, machine),
        "machine": machine,
        "models": models,
        "actions": _actions(recorded.actions),
        "events": events,
        "events_in_all": len(recorded.events),
    }


def variants_of(name: str, seen: Mapping[str, Any], recorded: Recorded) -> list[str]:
    """Return the variants that served or could, the best first; unknown ones by name, last."""
    quality = recorded.qualities.get(name, {})
    return sorted(seen, key=lambda variant: (-quality.get(variant, -1.0), variant))


def _model(name: str, sums: ModelMinute, recorded: Recorded) -> Json:
    scored, missed = sums.known + sums.known_failed, sums.known_late + sums.known_failed
    counted = sums.known + sums.unknown
    enough = sums.in_time + sums.late >= FEWEST
    watched_s = max(sums.seconds, 1e-9)
    return {
        "name": name,
        "objective": {"latency_ms": _ms(sums.latency_s or None), "percentile": sums.percentile},
        "watched_s": _round(sums.seconds),
        "requests": {
            "arrived": max(round(sums.arrived), 0),
            "completed": sums.completed,
            "failed": sums.failed,
            "mean_rps": _round(max(sums.arrived, 0.0) / watched_s),
            "peak_rps": _round(sums.peak_rps),
            "most_waiting": sums.waiting_most,
        },
        "traced": {"in_time": sums.in_time, "late": sums.late},
        "known_share": _round(sums.known / counted) if counted > 0.0 else None,
        "attainment": _round(1.0 - missed / scored, 6) if enough and scored > 0.0 else None,
        "late_or_failed": _round(missed) if enough else None,
        "budget_used": _round(missed / sums.allowed) if enough and sums.allowed > 0.0 else None,
        "effective_quality": _round(sums.known_quality / scored) if enough and scored else None,
        "mean_quality": _round(sums.quality / sums.completed) if sums.completed else None,
        "latency_ms": {
            "p50": _ms(known_quantile_s(sums, 0.50)),
            "p95": _ms(known_quantile_s(sums, 0.95)),
            "p99": _ms(known_quantile_s(sums, 0.99)),
            "at_objective": _ms(known_quantile_s(sums, sums.percentile / 100.0)),
            "mean": _ms((sums.queue_s + sums.compute_s) / sums.completed)
            if sums.completed
            else None,
        },
        "told_ms": _ms(sums.told_s / sums.told_of) if sums.told_of else None,
        "told_kept": _round(sums.singles_kept / sums.singles) if sums.singles >= FEWEST else None,
        "switches": sums.switches,
        "failed_actions": sums.failed_actions,
        "variants": [
            {
                "name": variant,
                "quality": recorded.qualities.get(name, {}).get(variant),
                "seconds": _round(sums.variants[variant][0]),
                "share": _round(sums.variants[variant][0] / watched_s),
                "completed": round(sums.variants[variant][1]),
                "requests_share": _round(sums.variants[variant][1] / max(sums.completed, 1)),
            }
            for variant in variants_of(name, sums.variants, recorded)
        ],
        "reasons": [
            {
                "reason": reason,
                "means": words.reason(reason),
                "seconds": _round(seconds),
                "share": _round(seconds / watched_s),
            }
            for reason, seconds in sorted(sums.reasons.items(), key=lambda item: -item[1])
        ],
    }


def _machine(recorded: Recorded) -> Json:
    sums = MachineMinute()
    for _, minute in recorded.machine:
        sums.add(minute)
    watched_s = max(sums.seconds, 1e-9)
    return {
        "span_s": _round(recorded.until_unix_s - recorded.known_since_unix_s),
        "watched_s": _round(sums.seconds),
        "not_watched": _gaps(recorded),
        "triton_gone_s": _round(sums.seconds - sums.triton_s),
        "host_cpu_ratio": _round(sums.host_s / watched_s) if sums.ticks else None,
        "ticks": sums.ticks,
        "tick_ms": _ms(sums.tick_s / sums.ticks) if sums.ticks else None,
        "slowest_tick_ms": _ms(sums.slowest_tick_s) if sums.ticks else None,
        "gpus": [_gpu(gpu, seen) for gpu, seen in sorted(sums.gpus.items())],
    }


def _gpu(index: str, seen: Sequence[float]) -> Json:
    of = dict(zip(GPU, seen, strict=True))
    return {
        "index": index,
        "utilization_ratio": _round(of["busy_s"] / of["seconds"]) if of["seconds"] else None,
        "throttled_s": _round(of["throttled_s"]),
        "memory_most_bytes": round(of["memory_bytes"]) or None,
        "hottest_celsius": of["celsius"] or None,
    }


def _gaps(recorded: Recorded) -> list[list[int]]:
    """Return [from, to) of whole minutes of which there is no row, Unix time.

    Of the time before the oldest row nobody knows whether anybody watched.
    """
    if not recorded.has_minutes:
        return []
    there = {begins for begins, _ in recorded.machine}
    gaps: list[list[int]] = []
    first = math.ceil(recorded.known_since_unix_s / MINUTE_S) * MINUTE_S
    last = math.floor(recorded.until_unix_s / MINUTE_S) * MINUTE_S
    for begins in range(first, last, MINUTE_S):
        if begins in there:
            continue
        if gaps and gaps[-1][1] == begins:
            gaps[-1][1] = begins + MINUTE_S
        else:
            gaps.append([begins, begins + MINUTE_S])
    if gaps and gaps[-1] == [last - MINUTE_S, last]:
        gaps.pop()  # the minute that has just ended may not be written yet
    return gaps


def _actions(actions: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Return what each kind of action on each model came to."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in actions:
        groups[str(one.get("model")), str(one.get("kind"))].append(one)
    found = []
    for (model, kind), group in sorted(groups.items()):
        outcomes = [str(one.get("outcome")) for one in group]
        failed = [one for one in group if str(one.get("outcome")) in _FAILED]
        done = [one for one in group if str(one.get("outcome")) in _DONE]
        found.append(
            {
                "model": model,
                "kind": kind,
                "count": len(group),
                "done": len(done),
                "failed": len(failed),
                "refused": sum(outcome in {"refused", "busy"} for outcome in outcomes),
                "switch_s": _spread([one.get("switch_s") for one in done]),
                "took_s": _spread(
                    [one.get("transaction_s") or one.get("switch_s") for one in done]
                ),
                "last_error": next((o["error"] for o in reversed(group) if o.get("error")), None),
            }
        )
    return found


def _spread(seconds: Sequence[Any]) -> Json:
    ordered = sorted(one for one in seconds if isinstance(one, (int, float)) and one >= 0.0)
    if not ordered:
        return {"median": None, "p99": None}
    last = len(ordered) - 1
    return {
        "median": _round(ordered[len(ordered) // 2]),
        "p99": _round(ordered[min(math.ceil(0.99 * len(ordered)), last)]),
    }


def _notes(recorded: Recorded, models: Sequence[Json], machine: Json) -> list[str]:
    """Return what a reader must know before he believes the numbers."""
    notes = []
    if not recorded.has_minutes:
        notes.append(
            "This journal is from a governor that kept no minutes (schema version 1), so there is"
            " nothing to draw: only what was done and what happened is shown. The first start of a"
            " newer governor adds them; nothing is lost."
        )
    for model in models:
        name, known = model["name"], model["known_share"]
        if known == 0.0:
            notes.append(
                f"{name}: no request was traced, so which were in time is unknown; of latency only"
                " the mean is known. Start Triton with traces sent to the governor"
                " (governor doctor tells how)."
            )
        elif known is not None and known < _KNOWN_WORTH_SAYING:
            notes.append(
                f"{name}: for {100.0 * (1.0 - known):.0f} % of its requests there were no traces"
                " near in time; what is told of the objective leaves them out."
            )
    if machine["triton_gone_s"] >= 1.0:
        notes.append(
            f"Triton did not answer for {machine['triton_gone_s']:.0f} s; requests that clients"
            " sent meanwhile are counted nowhere."
        )
    for table, before in recorded.dropped_before.items():
        if before > recorded.since_unix_s:
            notes.append(
                f"The {table} before {local(before)} were dropped to make room"
                " (journal.max_size in the policy)."
            )
    notes += _begin_of_minutes(recorded)
    if len(recorded.events) > _MOST_EVENTS:
        notes.append(f"Of {len(recorded.events)} events the newest {_MOST_EVENTS} are shown.")
    return notes


def _begin_of_minutes(recorded: Recorded) -> list[str]:
    """Return what is to be said of the time before the oldest minute, if it is asked for."""
    since = recorded.minutes_since_unix_s
    if not recorded.has_minutes or "minutes" in recorded.dropped_before:
        return []
    if since is None:
        return ["No minute is kept yet: what the governor watched is known from its first one on."]
    if since < recorded.since_unix_s + MINUTE_S:
        return []
    unknown = "whether a governor watched before, this journal does not know"
    return [f"Minutes are kept since {local(since)}; {unknown}."]


def _round(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _round(seconds * 1e3, 4)
