"""Replay: policies side by side on one trace and one ladder, scored alike.

Owns the comparison: the same arrivals for all, over seeds and cores. It must not print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from controller.twin import contest
from controller.twin.contest import POLICIES
from controller.twin.ladder import TwinVariant
from controller.twin.oracle import fluid_quality
from controller.twin.plan import Plan, ReplayError
from controller.twin.scoring import STEPS, Score, mean_by_step, score, summed_up, timeline
from controller.twin.trace import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """One policy with one seed, in sum and over time."""

    score: Score
    effective_quality: Floats  # of what arrived in each step; NaN: nothing. [STEPS]


def run_one(plan: Plan, load: Trace, policy: str, seed: int) -> Run:
    """Replay one policy with one seed."""
    arrivals_s = load.arrivals_s(seed)
    if len(arrivals_s) == 0:
        raise ReplayError(f"{load.name}: no request arrives in this window; take a longer one")
    outcome = contest.run(plan, load, policy, arrivals_s, seed)
    quality = np.array([v.quality for v in plan.variants])
    return Run(
        score(outcome, quality, plan.limit_s),
        timeline(outcome, quality, plan.limit_s, arrivals_s, load.duration_s),
    )


def replay(
    plan: Plan, policies: Sequence[str], seeds: Sequence[int], *, jobs: int = -1
) -> dict[str, Any]:
    """Replay policies over seeds; return the document that `governor replay --json` writes.

    Raises:
        ReplayError: a policy is unknown, or the ladder does not serve the objective.
    """
    unknown = [name for name in policies if name not in POLICIES]
    if unknown:
        raise ReplayError(f"unknown policy {unknown[0]!r}: {', '.join(POLICIES)}")
    possible = contest.possible(plan)
    outsiders = [name for name in policies if name not in possible]
    if outsiders:
        what = "requests of several rows" if plan.rows_per_request > 1.0 else f"--gpus {plan.gpus}"
        raise ReplayError(f"{outsiders[0]} cannot do with {what}; these can: {', '.join(possible)}")
    load = plan.load()
    # The score needs the fastest fixed variant as its zero, whoever else runs.
    wanted = list(dict.fromkeys((*policies, "fixed:fastest")))
    tasks = [(name, seed) for name in wanted for seed in seeds]
    runs = Parallel(n_jobs=jobs)(delayed(run_one)(plan, load, *task) for task in tasks)
    by_policy: dict[str, list[Score]] = {name: [] for name in wanted}
    over_time: dict[str, list[Floats]] = {name: [] for name in wanted}
    for (name, _), one in zip(tasks, runs, strict=True):
        by_policy[name].append(one.score)
        over_time[name].append(one.effective_quality)
    oracle = oracle_quality(plan, load)
    floor = np.array([one.effective_quality for one in by_policy["fixed:fastest"]])
    return {
        "trace": plan.trace.name,
        "ladder": plan.ladder.name,
        "slo_ms": plan.limit_s * 1e3,
        "percentile": plan.percentile,
        "seeds": list(seeds),
        "oracle": {"effective_quality": oracle},
        "policies": [
            {
                "name": name,
                "idealised": name in contest.IDEALISED,
                **summed_up(by_policy[name], floor, oracle),
            }
            for name in policies
        ],
        "timeline": {
            "step_s": load.duration_s / STEPS,
            "load_rps": _load_by_step(load),
            "capacity_rps": {
                v.name: plan.gpus * v.capacity_rps(plan.limit_s) / plan.drawn_rows
                for v in plan.variants
            },
            "effective_quality": {name: mean_by_step(over_time[name]) for name in policies},
        },
    }


def _load_by_step(load: Trace) -> list[float]:
    """Return the mean rate of each step."""
    edges_s = load.duration_s * np.arange(STEPS + 1) / STEPS
    at_s = load.step_s * np.arange(len(load.rate_rps) + 1)
    total = np.interp(edges_s, at_s, np.concatenate([[0.0], np.cumsum(load.rate_rps)]))
    means = np.diff(total) * load.step_s / np.diff(edges_s)
    return [float(mean) for mean in means]


def oracle_quality(plan: Plan, load: Trace) -> float:
    """Return the fluid bound, with the slow-down known."""
    variants = plan.variants
    quality = np.array([v.quality for v in variants])
    rows = plan.drawn_rows / plan.gpus
    capacity = np.array([v.capacity_rps(plan.limit_s) for v in variants]) / rows
    slow = [TwinVariant(v.name, v.quality, v.table_s * plan.slowdown) for v in variants]
    slow_capacity = np.array([v.capacity_rps(plan.limit_s) for v in slow]) / rows
    change = int(plan.slowdown_from * len(load.rate_rps))
    before, after = load.rate_rps[:change], load.rate_rps[change:]
    total = float(load.rate_rps.sum())
    gained = fluid_quality(before, quality, capacity) * float(before.sum())
    gained += fluid_quality(after, quality, slow_capacity) * float(after.sum())
    return gained / total
