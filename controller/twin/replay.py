"""Replay: policies side by side on one trace and one ladder, scored alike.

Owns the comparison: which policies, the same arrivals for all, scores, intervals over seeds. It
must not print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import stats

from controller.policy.model import Policy
from controller.twin.central import Dispatcher, drive_dispatcher
from controller.twin.drive import (
    Outcome,
    drive_clairvoyant,
    drive_governor,
    drive_rival,
    policy_for,
)
from controller.twin.ladder import Ladder, TwinVariant
from controller.twin.oracle import fluid_quality
from controller.twin.rivals import Rival, Setting
from controller.twin.rivals.alert import Alert
from controller.twin.rivals.backlog import Backlog
from controller.twin.rivals.clipper import Clipper
from controller.twin.rivals.fixed import Fixed
from controller.twin.rivals.infaas import Infaas
from controller.twin.rivals.infadapter import InfAdapter
from controller.twin.rivals.jellyfish import Jellyfish
from controller.twin.rivals.model_switching import ModelSwitching
from controller.twin.rivals.proteus import Proteus
from controller.twin.rivals.ramsis import Ramsis
from controller.twin.rivals.slackfit import SlackFit
from controller.twin.server import Physics, SimulatedTriton
from controller.twin.trace import Trace

Floats = NDArray[np.float64]

GOVERNOR: Final = "governor"  # given the profile that rivals are given, too
COLD: Final = "governor:cold"  # has measured nothing yet; learning is part of the run
CLAIRVOYANT: Final = "clairvoyant"
RIVALS: Final[Mapping[str, Callable[[Setting], Rival]]] = {
    "fixed:best": lambda _: Fixed(),
    "fixed:fastest": lambda _: Fixed(),
    "model-switching": ModelSwitching,
    "model-switching-tuned": lambda s: ModelSwitching(s, window_s=0.25, safety=1.2),
    "jellyfish": Jellyfish,
    "infaas": Infaas,
    "infadapter": InfAdapter,
    "ipa": lambda s: InfAdapter(s, period_s=10.0),
    "proteus": Proteus,
    "alert": Alert,
    "backlog": Backlog,
}
# These choose variant and batch for every batch, which no unmodified Triton can do.
DISPATCHERS: Final[Mapping[str, Callable[[Setting], Dispatcher]]] = {
    "ramsis": Ramsis,
    "slackfit": SlackFit,
    "clipper:best": lambda s: Clipper(s, variant=s.by_quality[0]),
    "clipper:fastest": lambda s: Clipper(s, variant=s.fastest),
}
POLICIES: Final = (GOVERNOR, COLD, *RIVALS, *DISPATCHERS, CLAIRVOYANT)
_IDEALISED: Final = frozenset({*DISPATCHERS, CLAIRVOYANT})
# Everybody else takes a request for a row when he compares the load with a capacity.
ROWS_AWARE: Final = frozenset({GOVERNOR, COLD, "fixed:best", "fixed:fastest"})
_CONFIDENCE: Final = 0.95
_STEPS: Final = 240  # of the timeline


class ReplayError(Exception):
    """A replay that cannot be run; the text says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed."""

    trace: Trace  # as recorded; scaled to the ladder when it is run
    ladder: Ladder
    limit_s: float
    percentile: float = 99.0
    peak_load: float = 1.67  # 99th percentile of the rate, in capacities of the best variant
    cap: float = 0.95  # highest rate, in capacities of the fastest variant
    slowdown: float = 1.0  # every latency times this ...
    slowdown_from: float = 0.5  # ... from this share of the trace on
    noise: float = 0.05
    max_batch: int = 64
    as_recorded: bool = False  # the rate is not scaled
    rows_per_request: float = 1.0  # mean; one and a Poisson number more
    policy: Policy | None = None  # None: what an operator would write for the ladder

    @property
    def variants(self) -> tuple[TwinVariant, ...]:
        """Return the ladder's variants that meet the objective at all, with limited batches."""
        limited = (
            TwinVariant(v.name, v.quality, v.table_s[: self.max_batch])
            for v in self.ladder.variants
        )
        return tuple(v for v in limited if v.capacity_rps(self.limit_s) > 0.0)

    @property
    def most_rows(self) -> int:
        """Return the most rows that a request has."""
        smallest = min(variant.max_batch for variant in self.variants)
        return smallest if self.policy is None else self.policy.models[0].client_max_batch

    @property
    def drawn_rows(self) -> float:
        """Return the mean rows of a request as they are drawn."""
        more = np.arange(self.most_rows)
        chances = stats.poisson.pmf(more, self.rows_per_request - 1.0)
        return float(self.most_rows - (chances * (self.most_rows - 1 - more)).sum())

    def load(self) -> Trace:
        """Return the trace, scaled. Raises ReplayError where the ladder cannot bear any."""
        variants = self.variants
        if len(variants) < 2:
            raise ReplayError(
                f"{self.ladder.name}: fewer than two variants serve one row within half of "
                f"{self.limit_s * 1e3:g} ms; take a longer objective"
            )
        if self.as_recorded:
            return self.trace
        capacities = [variant.capacity_rps(self.limit_s) for variant in variants]
        best = max(range(len(variants)), key=lambda i: variants[i].quality)
        return self.trace.scaled(self.peak_load * capacities[best], self.cap * max(capacities))


@dataclass(frozen=True, slots=True)
class Run:
    """One policy with one seed, in sum and over time."""

    score: Score
    effective_quality: Floats  # of what arrived in each step; NaN: nothing. [_STEPS]


@dataclass(frozen=True, slots=True)
class Score:
    """How one policy did with one seed. Field's usual score: effective quality."""

    requests: int
    slo_attainment: float
    effective_quality: float
    mean_quality: float  # of what was answered
    p99_ms: float
    switches: int
    decision_ms: float  # mean
    coverage: float  # share of requests within what was stated of them; NaN: nobody states
    stated_over_p99: float  # mean of what was stated, in p99 of what came; NaN: nobody states


def score(outcome: Outcome, quality: Floats, limit_s: float) -> Score:
    """Score a run; whatever was not answered is a miss."""
    met, got = _met(outcome, quality, limit_s)
    answered = outcome.served_by >= 0
    count = len(met)
    p99_s = float(np.quantile(outcome.latency_s, 0.99, method="higher"))
    coverage, stated_over_p99 = _calibration(outcome, p99_s)
    return Score(
        requests=count,
        slo_attainment=float(met.sum() / count),
        effective_quality=float((got * met).sum() / count),
        mean_quality=float(got[answered].mean()) if answered.any() else 0.0,
        p99_ms=p99_s * 1e3,
        switches=outcome.switches,
        decision_ms=float(outcome.decision_s.mean() * 1e3) if len(outcome.decision_s) else 0.0,
        coverage=coverage,
        stated_over_p99=stated_over_p99,
    )


def _calibration(outcome: Outcome, p99_s: float) -> tuple[float, float]:
    """Return how many requests were within what was stated, and how sharp that was."""
    if outcome.stated_s is None or not np.isfinite(outcome.stated_s).any():
        return math.nan, math.nan
    told = np.isfinite(outcome.stated_s)
    stated_s = outcome.stated_s[told]
    return float((outcome.latency_s[told] <= stated_s).mean()), float(stated_s.mean() / p99_s)


def _met(outcome: Outcome, quality: Floats, limit_s: float) -> tuple[NDArray[np.bool_], Floats]:
    """Return which requests were answered in time, and the quality of all answers. [requests]."""
    answered = outcome.served_by >= 0
    got = np.where(answered, quality[outcome.served_by], 0.0)
    return answered & (outcome.latency_s <= limit_s), got


def timeline(
    outcome: Outcome, quality: Floats, limit_s: float, arrivals_s: Floats, duration_s: float
) -> Floats:
    """Return the effective quality of what arrived in each step; NaN: nothing did. [_STEPS]."""
    met, got = _met(outcome, quality, limit_s)
    step = np.minimum((arrivals_s / duration_s * _STEPS).astype(np.int64), _STEPS - 1)
    count = np.bincount(step, minlength=_STEPS)
    total = np.bincount(step, weights=got * met, minlength=_STEPS)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def run_one(plan: Plan, load: Trace, policy: str, seed: int) -> Run:
    """Replay one policy with one seed."""
    variants = plan.variants
    change_s = plan.slowdown_from * load.duration_s
    slowdown = plan.slowdown
    physics = Physics(
        noise=plan.noise, slowdown=lambda now_s: slowdown if now_s >= change_s else 1.0
    )
    arrivals_s = load.arrivals_s(seed)
    if len(arrivals_s) == 0:
        raise ReplayError(f"{load.name}: no request arrives in this window; take a longer one")
    quality = np.array([v.quality for v in variants])
    if policy in DISPATCHERS:
        dispatcher = DISPATCHERS[policy](_setting(plan))
        outcome = drive_dispatcher(dispatcher, variants, arrivals_s, physics=physics, seed=seed)
    else:
        outcome = _on_triton(plan, load, policy, arrivals_s, physics, seed)
    return Run(
        score(outcome, quality, plan.limit_s),
        timeline(outcome, quality, plan.limit_s, arrivals_s, load.duration_s),
    )


def _on_triton(
    plan: Plan, load: Trace, policy: str, arrivals_s: Floats, physics: Physics, seed: int
) -> Outcome:
    variants = plan.variants
    setting = _setting(plan)
    first = setting.by_quality[0] if policy == "fixed:best" else setting.fastest
    rows = None
    if plan.rows_per_request > 1.0:
        more = np.random.default_rng((seed, 1)).poisson(
            plan.rows_per_request - 1.0, len(arrivals_s)
        )
        rows = np.minimum(1 + more, plan.most_rows)
    server = SimulatedTriton(
        variants,
        arrivals_s,
        serving=first,
        rows=rows,
        limit_s=plan.limit_s,
        physics=physics,
        seed=seed,
    )
    governed = plan.policy or policy_for(server, plan.limit_s, plan.percentile)
    run: dict[str, Any] = {"duration_s": load.duration_s, "limit_s": plan.limit_s}
    if policy == CLAIRVOYANT:
        return drive_clairvoyant(server, tick_s=governed.tick_s, **run)
    if policy in {GOVERNOR, COLD}:
        profiled = policy == GOVERNOR
        return drive_governor(server, governed, profiled=profiled, seed=seed, **run)
    return drive_rival(server, RIVALS[policy](setting), seed=seed, **run)


def _setting(plan: Plan) -> Setting:
    return Setting(plan.variants, plan.limit_s, 1.0 - plan.percentile / 100.0)


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
    if plan.rows_per_request > 1.0 and not set(policies) <= ROWS_AWARE:
        raise ReplayError(
            "requests of several rows are only known to " + ", ".join(sorted(ROWS_AWARE))
        )
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
    oracle = _oracle(plan, load)
    floor = np.array([one.effective_quality for one in by_policy["fixed:fastest"]])
    return {
        "trace": plan.trace.name,
        "ladder": plan.ladder.name,
        "slo_ms": plan.limit_s * 1e3,
        "percentile": plan.percentile,
        "seeds": list(seeds),
        "oracle": {"effective_quality": oracle},
        "policies": [_summed_up(name, by_policy[name], floor, oracle) for name in policies],
        "timeline": {
            "step_s": load.duration_s / _STEPS,
            "load_rps": _load_by_step(load),
            "capacity_rps": {
                v.name: v.capacity_rps(plan.limit_s) / plan.drawn_rows for v in plan.variants
            },
            "effective_quality": {name: _mean_by_step(over_time[name]) for name in policies},
        },
    }


def _load_by_step(load: Trace) -> list[float]:
    """Return the mean rate of each step."""
    edges_s = load.duration_s * np.arange(_STEPS + 1) / _STEPS
    at_s = load.step_s * np.arange(len(load.rate_rps) + 1)
    total = np.interp(edges_s, at_s, np.concatenate([[0.0], np.cumsum(load.rate_rps)]))
    means = np.diff(total) * load.step_s / np.diff(edges_s)
    return [float(mean) for mean in means]


def _mean_by_step(runs: Sequence[Floats]) -> list[float | None]:
    """Return the mean over seeds; None: nothing arrived with any."""
    seen = np.stack(runs)
    known = np.isfinite(seen)
    count = known.sum(axis=0)
    means = np.where(known, seen, 0.0).sum(axis=0) / np.maximum(count, 1)
    return [float(m) if n else None for m, n in zip(means, count.tolist(), strict=True)]


def _oracle(plan: Plan, load: Trace) -> float:
    """Return the fluid bound, with the slow-down known."""
    variants = plan.variants
    quality = np.array([v.quality for v in variants])
    rows = plan.drawn_rows
    capacity = np.array([v.capacity_rps(plan.limit_s) for v in variants]) / rows
    slow = [TwinVariant(v.name, v.quality, v.table_s * plan.slowdown) for v in variants]
    slow_capacity = np.array([v.capacity_rps(plan.limit_s) for v in slow]) / rows
    change = int(plan.slowdown_from * len(load.rate_rps))
    before, after = load.rate_rps[:change], load.rate_rps[change:]
    total = float(load.rate_rps.sum())
    gained = fluid_quality(before, quality, capacity) * float(before.sum())
    gained += fluid_quality(after, quality, slow_capacity) * float(after.sum())
    return gained / total


def _summed_up(name: str, scores: list[Score], floor: Floats, oracle: float) -> dict[str, Any]:
    columns = {
        field: np.array([getattr(one, field) for one in scores], dtype=np.float64)
        for field in (
            "slo_attainment",
            "effective_quality",
            "mean_quality",
            "p99_ms",
            "switches",
            "decision_ms",
            "coverage",
            "stated_over_p99",
        )
    }
    room = np.where(np.abs(oracle - floor) > 1e-9, oracle - floor, math.nan)
    columns["headroom_captured"] = (columns["effective_quality"] - floor) / room
    means = {field: _number(float(values.mean())) for field, values in columns.items()}
    return {
        "name": name,
        "idealised": name in _IDEALISED,
        **means,
        "ci95": {field: _half_width(values) for field, values in columns.items()},
    }


def _half_width(values: Floats) -> float | None:
    """Return half of the interval of the mean over seeds (Student's t); None: there is none."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    return _number(float(stats.t.ppf(0.5 + _CONFIDENCE / 2.0, len(values) - 1)) * spread)


def _number(value: float) -> float | None:
    """Return a number that JSON has: an infinite latency is none."""
    return value if math.isfinite(value) else None
