"""What a policy is tested under: the load of its models, and what batches take on their variants.

Owns the way there from a journal, or from traces and ladders. It must not open files, run or score.

Of a journal all models share one time line, for they share a server: a second counts where any of
them has a record. A model without one lasts as it was for 5 s, and has no requests after that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from controller.policy.model import ModelPolicy, Policy, VariantPolicy
from controller.twin.ladder import Floats, Ladder
from controller.twin.recorded import (
    HELD_S,
    MOST_RPS,
    RecordedError,
    RecordedLoad,
    learned_tables,
)
from controller.twin.trace import Trace

_MAX_ROWS: Final = 64  # of a batch on a ladder, where the policy declares none
_NOISE: Final = 0.05  # of the logarithm of a batch's time, where nothing was learned of it


class Knowledge(Protocol):
    """What is known of service times."""

    noise: float

    def tables_s(self, model: ModelPolicy) -> dict[str, Floats]:
        """Return the seconds of 1, 2, ... rows, of each of a model's variants that is known."""
        ...


@dataclass(frozen=True, slots=True)
class Scene:
    """What policies are tested under."""

    source: str  # in words
    rate_rps: Mapping[str, Floats]  # of each model, second by second. [seconds]
    rows_per_request: Mapping[str, float]  # mean, of each model
    knowledge: Knowledge
    unix_s: NDArray[np.int64] | None = None  # when each second was; None: at no time of day
    unknown_s: int = 0  # seconds in between that nobody recorded, left out
    silent_s: Mapping[str, int] | None = None  # of each model: seconds taken for empty

    @property
    def duration_s(self) -> int:
        """Return its length."""
        return len(next(iter(self.rate_rps.values()))) if self.rate_rps else 0

    def arrivals_of(self, model: str) -> Trace:
        """Return the load of a model."""
        return Trace(model, self.rate_rps[model], 1.0)

    def part(self, first: int, last: int) -> Scene:
        """Return some of its seconds, the last not included."""
        unix_s = None if self.unix_s is None else self.unix_s[first:last]
        rates = {name: rate_rps[first:last] for name, rate_rps in self.rate_rps.items()}
        return replace(self, rate_rps=rates, unix_s=unix_s)

    def only(self, models: Iterable[str]) -> Scene:
        """Return the load of some models alone."""
        rates = {name: self.rate_rps[name] for name in models if name in self.rate_rps}
        return replace(self, rate_rps=rates)


class Learned:
    """What a governor learned, as its journal keeps it."""

    def __init__(self, state: Mapping[str, Any] | None) -> None:
        self._state = state
        try:
            noise = float((state or {})["service"]["noise"])
        except (KeyError, TypeError, ValueError):
            noise = math.nan
        self.noise = noise if 0.0 < noise < 1.0 else _NOISE

    def tables_s(self, model: ModelPolicy) -> dict[str, Floats]:
        """Return what was learned; nothing of a variant that was never measured."""
        try:
            found = learned_tables(model, self._state)
        except RecordedError:
            return {}
        return {v.name: found[v.model] for v in model.variants if v.model in found}


class Measured:
    """Ladders, by the name that clients call; None: of every model."""

    noise = _NOISE

    def __init__(self, ladders: Mapping[str | None, Ladder]) -> None:
        self._ladders = ladders

    def tables_s(self, model: ModelPolicy) -> dict[str, Floats]:
        """Return what the ladder says of the variants, by their names or Triton's."""
        ladder = self._ladders.get(model.name) or self._ladders.get(None)
        measured = {} if ladder is None else {v.name: v.table_s for v in ladder.variants}
        found: dict[str, Floats] = {}
        for variant in model.variants:
            name = next((one for one in _spellings(variant) if one in measured), None)
            if name is not None:
                found[variant.name] = measured[name][: variant.max_batch or _MAX_ROWS]
        return found


def _spellings(variant: VariantPolicy) -> tuple[str, ...]:
    """Return what a ladder may call a variant; a profile has its variant's times."""
    names = (variant.name, variant.model, variant.profile_of)
    return tuple(name for name in names if name is not None)


def from_journal(
    source: str,
    loads: Mapping[str, Sequence[RecordedLoad]],
    learned: Mapping[str, Any] | None,
) -> Scene:
    """Return what was recorded of some models, by their names.

    Raises:
        RecordedError: too little was recorded.
    """
    seen = {name: _by_second(own) for name, own in loads.items()}
    recorded = sorted({second for own in seen.values() for second in own})
    if len(recorded) < 2:
        raise RecordedError(
            f"{source} has fewer than two seconds of decisions on {', '.join(loads)}"
        )
    seconds: list[int] = []
    unknown_s = 0
    for second in recorded:
        missing = second - seconds[-1] - 1 if seconds else 0
        held = min(missing, HELD_S)
        seconds += [*range(second - missing, second - missing + held), second]
        unknown_s += missing - held
    rates, silent_s = {}, {}
    for name, own in seen.items():
        if own:
            rates[name], silent_s[name] = _rates(own, seconds)
    rows = {
        name: [one.rows_per_request for one in own if one.rows_per_request is not None]
        for name, own in loads.items()
    }
    return Scene(
        source,
        rates,
        {name: max(float(np.mean(own)), 1.0) if own else 1.0 for name, own in rows.items()},
        Learned(learned),
        np.array(seconds, dtype=np.int64),
        unknown_s,
        silent_s,
    )


def _by_second(loads: Sequence[RecordedLoad]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for one in loads:
        if one.rate_rps is not None and 0.0 <= one.rate_rps < MOST_RPS:
            found.setdefault(int(one.time_unix_s), []).append(one.rate_rps)
    return {second: float(np.mean(rates)) for second, rates in found.items()}


def _rates(seen: Mapping[int, float], seconds: Sequence[int]) -> tuple[Floats, int]:
    """Return the rate in each second, and how many were taken for empty."""
    rates, silent_s = np.zeros(len(seconds)), 0
    last_s, last = -math.inf, 0.0
    for at, second in enumerate(seconds):
        if second in seen:
            last_s, last = second, seen[second]
        if second - last_s <= HELD_S:
            rates[at] = last
        else:
            silent_s += 1
    return rates, silent_s


def from_files(
    policies: Sequence[Policy],
    traces: Mapping[str | None, Trace],
    ladders: Mapping[str | None, Ladder],
    peak_rps: float | None,
) -> Scene:
    """Return the load of traces, by the name that clients call; None: of every model.

    The shortest trace ends them all.

    Args:
        policies: whose models are asked about.
        traces: the load.
        ladders: what batches take.
        peak_rps: what the 99th percentile of every rate is scaled to; None: as recorded.
    """
    rates: dict[str, Floats] = {}
    for name in dict.fromkeys(model.name for policy in policies for model in policy.models):
        trace = traces.get(name) or traces.get(None)
        if trace is not None:
            rates[name] = _each_second(trace if peak_rps is None else _scaled(trace, peak_rps))
    length = min((len(rate_rps) for rate_rps in rates.values()), default=0)
    used = dict.fromkeys(trace.name for trace in traces.values())
    return Scene(
        f"{', '.join(used)} on {', '.join(dict.fromkeys(own.name for own in ladders.values()))}",
        {name: rate_rps[:length] for name, rate_rps in rates.items()},
        dict.fromkeys(rates, 1.0),
        Measured(ladders),
    )


def _scaled(trace: Trace, peak_rps: float) -> Trace:
    busy = float(np.quantile(trace.rate_rps, 0.99)) > 0.0
    return trace.scaled(peak_rps, math.inf if busy else peak_rps)


def _each_second(trace: Trace) -> Floats:
    """Return the rate in each second of a trace whose steps are whole seconds."""
    return np.repeat(trace.rate_rps, round(trace.step_s))
