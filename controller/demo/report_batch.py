"""What the batch scenario shows beside the table: days and nights, and why an engine was chosen.

Owns those numbers and sentences. It must not measure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.demo.arms import Arm, Explained, Result
from controller.demo.nightly import Plan
from controller.demo.report import Outcome

_DAY, _NIGHT = "day", "night"


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return what the published form has besides, for this scenario. Units are in the names."""
    plan = outcome.plan
    assert plan is not None  # noqa: S101 - it is of this scenario
    told = explained(outcome)
    return {
        "scenario": "batch",
        "objective_ms": plan.objective_ms,
        "day_rps": round(plan.day_rps, 1),
        "night_rps": round(plan.night_rps, 1),
        "rows_per_request": plan.rows,
        "batch_ms": {
            f"{engine.rows}": {_DAY: round(engine.day_ms, 2), _NIGHT: round(engine.night_ms, 2)}
            for engine in (plan.large, plan.small)
        },
        "phases": {result.arm.name: _phases(outcome, result) for result in outcome.results},
        "neighbour": {
            result.arm.name: [round(share, 3) for share in result.neighbour]
            for result in outcome.results
        },
        "explained": None if told is None else told.text,
    }


def doubts(outcome: Outcome) -> list[str]:
    """Return what makes this machine a poor one for the scenario, a sentence each."""
    return [] if outcome.plan is None else outcome.plan.doubts()


def findings(outcome: Outcome) -> list[str]:
    """Return what the run shows of batch sizes, a sentence each; nothing of another scenario."""
    plan, governor = outcome.plan, outcome.result(Arm())
    if plan is None:
        return []
    lines = [_scene(plan)]
    if governor is None:
        return lines
    for when in (_DAY, _NIGHT):
        shares = _answers(outcome, governor, when)
        most = sorted(shares.items(), key=lambda item: -item[1])[:2]
        told = ", ".join(f"{name} {share:.0%}" for name, share in most if share >= 0.01)
        lines.append(
            f"By {when} answered for the governor: {told}; "
            f"{_phases(outcome, governor)[when]['in_time']:.2%} in time."
        )
    told_of = explained(outcome)
    if told_of is not None:
        lines += ["", "What `governor explain` told of a switch:", told_of.text]
    return lines


def explained(outcome: Outcome) -> Explained | None:
    """Return what was told of a switch between batch sizes; None: there was none."""
    governor = outcome.result(Arm())
    if governor is None or governor.governed is None:
        return None
    rows = {served.name: served.max_batch for served in outcome.served}
    switches = [
        told for told in governor.governed.explained if told.serving in rows and told.target in rows
    ]
    # Into the night is the one that people ask about.
    smaller = [t for t in switches if (rows[t.target] or 0) < (rows[t.serving] or 0)]
    return next(iter((*smaller, *switches)), None)


def _scene(plan: Plan) -> str:
    return (
        f"By day {plan.day_rps:.0f} requests/s, and a batch of {plan.large.rows} takes "
        f"{plan.large.day_ms:.0f} ms; by night {plan.night_rps:.0f}, and with the neighbour "
        f"{plan.large.night_ms:.0f} ms (a batch of {plan.small.rows}: {plan.small.day_ms:.0f} and "
        f"{plan.small.night_ms:.0f} ms). Objective: {plan.objective_ms:.0f} ms."
    )


def _by_night(outcome: Outcome, due_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    found = np.zeros(len(due_s), np.bool_)
    for start_s, end_s in outcome.schedule.nights_s:
        found |= (due_s >= start_s) & (due_s < end_s)
    return found


def _phases(outcome: Outcome, result: Result) -> dict[str, dict[str, float]]:
    """Return the requests of the days and of the nights, and their share in time."""
    counted = result.records.counted()
    in_time = counted.answered & (counted.latency_ms <= outcome.objective_ms)
    night = _by_night(outcome, counted.due_s)
    return {
        when: {
            "requests": int(of.sum()),
            "in_time": round(float(in_time[of].mean()), 6) if of.any() else 0.0,
        }
        for when, of in ((_DAY, ~night), (_NIGHT, night))
    }


def _answers(outcome: Outcome, result: Result, when: str) -> dict[str, float]:
    """Return each engine's share of the answers of the days, or of the nights."""
    counted = result.records.counted()
    night = _by_night(outcome, counted.due_s)
    of = counted.answered & (night if when == _NIGHT else ~night)
    return {
        served.name: float((counted.variant[of] == number).mean()) if of.any() else 0.0
        for number, served in enumerate(outcome.served)
    }
