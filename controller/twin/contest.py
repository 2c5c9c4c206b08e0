"""Who takes part in a replay, and how each is run.

Owns the list of policies. It must not score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from controller.twin.central import Dispatcher, drive_dispatcher
from controller.twin.drive import (
    Outcome,
    drive_clairvoyant,
    drive_governor,
    drive_rival,
    drive_scaler,
    policy_for,
)
from controller.twin.ladder import Floats
from controller.twin.late import drive_late, late_policy
from controller.twin.plan import Plan
from controller.twin.rivals import Rival, Setting
from controller.twin.rivals.alert import Alert
from controller.twin.rivals.backlog import Backlog
from controller.twin.rivals.clipper import Clipper
from controller.twin.rivals.dynamo import Dynamo
from controller.twin.rivals.fixed import Fixed
from controller.twin.rivals.hpa import Hpa
from controller.twin.rivals.infaas import Infaas
from controller.twin.rivals.infadapter import InfAdapter
from controller.twin.rivals.jellyfish import Jellyfish
from controller.twin.rivals.llmd import LlmD
from controller.twin.rivals.model_switching import ModelSwitching, bears_rps
from controller.twin.rivals.pressure import Pressure
from controller.twin.rivals.proteus import Proteus
from controller.twin.rivals.ramsis import Ramsis
from controller.twin.rivals.scaling import Scaler
from controller.twin.rivals.slackfit import SlackFit
from controller.twin.server import SimulatedTriton
from controller.twin.trace import Trace

GOVERNOR: Final = "governor"  # given the profile that rivals are given, too
COLD: Final = "governor:cold"  # has measured nothing yet; learning is part of the run
LATE: Final = "governor:late"  # with a dispatcher, which binds requests when batches begin
LATE_COLD: Final = "governor:late-cold"
CLAIRVOYANT: Final = "clairvoyant"
# One variant for ever. The last two are what an offline search finds for the mean rate and for
# the highest: the most accurate that bears it within the budget.
FIXED: Final = ("fixed:best", "fixed:fastest", "fixed:for-mean", "fixed:for-peak")
RIVALS: Final[Mapping[str, Callable[[Setting], Rival]]] = {
    **dict.fromkeys(FIXED, lambda _: Fixed()),
    "model-switching": ModelSwitching,
    "model-switching-tuned": lambda s: ModelSwitching(s, window_s=0.25, safety=1.2),
    "jellyfish": Jellyfish,
    "infaas": Infaas,
    "infadapter": InfAdapter,
    "ipa": lambda s: InfAdapter(s, period_s=10.0),
    "proteus": Proteus,
    "alert": Alert,
    "backlog": Backlog,
    "pressure": Pressure,
}
# These keep the best variant and change the number of GPUs that serve it.
SCALERS: Final[Mapping[str, Callable[[Setting], Scaler]]] = {
    "dynamo": Dynamo,
    "llm-d": LlmD,
    "hpa": Hpa,
}
# These choose variant and batch for every batch, which no unmodified Triton can do.
DISPATCHERS: Final[Mapping[str, Callable[[Setting], Dispatcher]]] = {
    "ramsis": Ramsis,
    "slackfit": SlackFit,
    "clipper:best": lambda s: Clipper(s, variant=s.by_quality[0]),
    "clipper:fastest": lambda s: Clipper(s, variant=s.fastest),
}
START_S: Final = 60.0  # of a replica: a pod's image and its model
POLICIES: Final = (GOVERNOR, COLD, LATE, LATE_COLD, *RIVALS, *SCALERS, *DISPATCHERS, CLAIRVOYANT)
IDEALISED: Final = frozenset({*DISPATCHERS, CLAIRVOYANT})
# Everybody else takes a request for a row when he compares the load with a capacity.
ROWS_AWARE: Final = frozenset({GOVERNOR, COLD, LATE, LATE_COLD, "fixed:best", "fixed:fastest"})
# Everybody else takes one GPU for the whole capacity.
GPUS_AWARE: Final = frozenset({*FIXED, *SCALERS, "jellyfish", "infadapter", "ipa", "proteus"})


def possible(plan: Plan) -> tuple[str, ...]:
    """Return the policies that know what a plan asks of them."""
    names = [name for name in POLICIES if (name in SCALERS) <= (plan.gpus > 1)]
    if plan.rows_per_request > 1.0:
        names = [name for name in names if name in ROWS_AWARE]
    if plan.gpus > 1:
        names = [name for name in names if name in GPUS_AWARE]
    return tuple(names)


def run(plan: Plan, load: Trace, policy: str, arrivals_s: Floats, seed: int) -> Outcome:
    """Let a policy serve some requests."""
    setting, physics = plan.setting(), plan.physics(load)
    if policy in DISPATCHERS:
        dispatcher = DISPATCHERS[policy](setting)
        return drive_dispatcher(dispatcher, plan.variants, arrivals_s, physics=physics, seed=seed)
    if policy in SCALERS:
        physics = replace(physics, load_s=START_S)
    server = SimulatedTriton(
        plan.variants,
        arrivals_s,
        serving=_first(plan, load, policy, setting),
        rows=_rows(plan, len(arrivals_s), seed),
        limit_s=plan.limit_s,
        physics=physics,
        seed=seed,
    )
    governed = plan.policy or policy_for(
        server, plan.limit_s, plan.percentile, max_instances=plan.max_instances
    )
    bound_late = len(governed.models) == 1 and governed.models[0].dispatcher is not None
    if policy in {LATE, LATE_COLD} or (bound_late and policy in {GOVERNOR, COLD}):
        return drive_late(
            server,
            late_policy(governed),
            rows=_rows(plan, len(arrivals_s), seed),
            profiled=policy in {LATE, GOVERNOR},
            duration_s=load.duration_s,
            seed=seed,
        )
    window: dict[str, Any] = {"duration_s": load.duration_s, "limit_s": plan.limit_s}
    if policy == CLAIRVOYANT:
        return drive_clairvoyant(server, tick_s=governed.tick_s, **window)
    if policy in {GOVERNOR, COLD}:
        profiled = policy == GOVERNOR
        return drive_governor(server, governed, profiled=profiled, seed=seed, **window)
    if policy in SCALERS:
        return drive_scaler(server, SCALERS[policy](setting), seed=seed, **window)
    return drive_rival(server, RIVALS[policy](setting), seed=seed, **window)


def _first(plan: Plan, load: Trace, policy: str, setting: Setting) -> int:
    """Return the variant that serves at first."""
    if policy == "fixed:best" or policy in SCALERS:
        return setting.by_quality[0]
    if policy in {"fixed:for-mean", "fixed:for-peak"}:
        rate = load.rate_rps.mean() if policy == "fixed:for-mean" else load.rate_rps.max()
        bears = [
            bears_rps(v.table_s.tobytes(), plan.limit_s, setting.allowed_miss_ratio)
            for v in plan.variants
        ]
        return setting.most_accurate(lambda variant: plan.gpus * bears[variant] >= rate)
    return setting.fastest


def _rows(plan: Plan, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Draw the rows of each request; None: one each."""
    if plan.rows_per_request <= 1.0:
        return None
    more = np.random.default_rng((seed, 1)).poisson(plan.rows_per_request - 1.0, count)
    return np.minimum(1 + more, plan.most_rows)
