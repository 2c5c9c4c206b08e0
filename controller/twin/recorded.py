"""What a journal recorded, as something to replay: the load, and the service times learned.

Owns the translation. It must not open files.

A journal keeps a decision a second for each model, with the median of the rate that was forecast:
that is the load. Seconds without one (the daemon was down) are left out. Service times are those
that the governor learned; a variant it never measured cannot be simulated, nor one too slow for
the objective. Of a request's rows only the mean is known: they are drawn as one and a Poisson
number more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from controller.policy.model import ModelPolicy, Policy
from controller.prediction.service import ServiceTimes
from controller.twin.ladder import Floats, Ladder, TwinVariant
from controller.twin.trace import Trace

HELD_S: Final = 5  # that a rate is taken to last without a newer one
_MOST_ROWS: Final = 4096  # of a table
MOST_RPS: Final = 1e9


class RecordedError(Exception):
    """A journal that cannot be replayed; the text says why."""


@dataclass(frozen=True, slots=True)
class RecordedLoad:
    """What one recorded decision said of the load; None: nothing that can be used."""

    time_unix_s: float
    rate_rps: float | None
    rows_per_request: float | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A load and a ladder out of a journal."""

    trace: Trace
    ladder: Ladder
    policy: Policy  # of the one model, and of the variants that can be simulated
    rows_per_request: float
    left_out: tuple[str, ...]  # variants that were never measured, or are too slow
    unknown_s: int  # seconds in between without a record


def from_journal(
    loads: Sequence[RecordedLoad],
    learned: Mapping[str, Any] | None,
    policy: Policy,
    model: str,
) -> Recorded:
    """Return what to replay of one model.

    Args:
        loads: what each recorded decision said of the load, in order.
        learned: the core's learned state, as the daemon saves it.
        policy: what is asked about.
        model: the name clients call.

    Raises:
        RecordedError: too little was recorded or learned.
    """
    trace, unknown_s = _trace(model, loads)
    wanted = policy.model(model)
    tables = learned_tables(wanted, learned)
    simulated = {
        v.name: TwinVariant(v.name, v.quality, tables[v.model], profile_of=v.profile_of)
        for v in wanted.variants
        if v.model in tables
    }
    limit_s = wanted.objective.latency_s
    kept = tuple(
        v
        for v in wanted.variants
        if v.name in simulated and simulated[v.name].capacity_rps(limit_s) > 0.0
    )
    if len(kept) < 2:
        raise RecordedError(
            f"{model}: of the policy's {len(wanted.variants)} variants {len(kept)} are known to "
            "serve a row within half of the objective; two are needed"
        )
    rows = [one.rows_per_request for one in loads if one.rows_per_request is not None]
    alone = replace(policy, models=(replace(wanted, variants=kept),))
    if alone.tick_s != policy.tick_s:  # another model's objective is the shortest
        alone = replace(alone, interval_s=policy.tick_s)
    return Recorded(
        trace,
        Ladder("what was learned", tuple(simulated[v.name] for v in kept)),
        alone,
        max(float(np.mean(rows)), 1.0) if rows else 1.0,
        tuple(v.name for v in wanted.variants if v not in kept),
        unknown_s,
    )


def _trace(model: str, loads: Sequence[RecordedLoad]) -> tuple[Trace, int]:
    """Return the mean rate of each recorded second, and how many seconds have none."""
    by_second: dict[int, list[float]] = {}
    for one in loads:
        if one.rate_rps is not None and 0.0 <= one.rate_rps < MOST_RPS:
            by_second.setdefault(int(one.time_unix_s), []).append(one.rate_rps)
    if len(by_second) < 2:
        raise RecordedError(f"{model}: the journal has fewer than two seconds of decisions")
    rates: list[float] = []
    unknown_s, before = 0, min(by_second) - 1
    for second in sorted(by_second):
        missing = second - before - 1
        held = min(missing, HELD_S)
        rates += rates[-1:] * held
        unknown_s += missing - held
        rates.append(float(np.mean(by_second[second])))
        before = second
    return Trace(model, np.array(rates), 1.0), unknown_s


def learned_tables(model: ModelPolicy, learned: Mapping[str, Any] | None) -> dict[str, Floats]:
    """Return the learned seconds of 1, 2, ... rows of each of Triton's models that was measured.

    A table ends at the largest batch that the policy says, or else that the governor reckoned with.
    """
    declared = {variant.model: variant.max_batch for variant in model.variants}
    names = [variant.model for variant in model.variants]
    try:
        state = learned or {}
        stored = state["service"]
        longest = max(len(entry["mean"]) for entry in stored["models"].values())
        service = ServiceTimes(names, min(max(longest, model.client_max_batch), _MOST_ROWS))
        service.restore(stored)
        limits = {name: int(n) for name, n in state["models"][model.name]["limits"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordedError(f"the journal has no service times learned for {model.name}") from error
    table_s, known = service.table_s(), service.known()
    return {
        name: table_s[
            i, : declared[name] or max(limits.get(name, 1), model.client_max_batch)
        ].copy()
        for i, name in enumerate(names)
        if known[i]
    }
