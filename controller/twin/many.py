"""Several models on one simulated server: the governor, and who knows the present.

Owns the runs and their score. The governor runs as in the daemon; what it is compared with chooses
at every tick for all models at once, by a mixed-integer programme over the true rate of each in the
present second and the true service times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from controller.planning.core import GovernorCore
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.twin.drive import looks, phase_s, profile_of
from controller.twin.load import Load
from controller.twin.places import Mover
from controller.twin.port import TwinPort
from controller.twin.server import Physics, SimulatedTriton

Floats = NDArray[np.float64]

_PRESENT_S: Final = 1.0  # about now, over which the true rate is taken
_AFTER: Final = 5.0  # objectives that the server is given to finish after the last arrival


@dataclass(frozen=True, slots=True)
class Shared:
    """One of the models that share a server."""

    name: str
    load: Load
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of all requests, by model and together."""

    effective_quality: Floats  # of each model
    attainment: Floats  # of each
    together: float  # effective quality of all requests, each by its model's weight
    switches: int
    decision_s: Floats  # seconds of real time of each tick
    moves: int = 0  # of variants from one GPU to another


def policy_of(models: Sequence[Shared], gpus: tuple[int, ...] | None = None) -> Policy:
    """Return the policy that an operator would write; `gpus`: as `VariantPolicy.gpus`."""
    return Policy(
        triton=TritonPolicy("127.0.0.1:8001", None, None),
        models=tuple(
            ModelPolicy(
                model.name,
                Objective(model.load.limit_s, 99.0),
                tuple(
                    VariantPolicy(v.name, v.name, v.quality, max_batch=v.max_batch, gpus=gpus)
                    for v in model.load.variants
                ),
                client_max_batch=min(v.max_batch for v in model.load.variants),
                weight=model.weight,
            )
            for model in models
        ),
    )


def govern(
    models: Sequence[Shared], policy: Policy, *, physics: Physics, duration_s: float, seed: int
) -> Result:
    """Let the governor govern, with a profile of every batch."""
    server = SimulatedTriton.shared([m.load for m in models], physics=physics, seed=seed)
    core = GovernorCore(policy)
    core.restore(profile_of(server, policy))
    port = TwinPort(server, *policy.models)
    mover, took_s = Mover(server, core, policy), []
    for look in looks(server, core, port, policy, duration_s=duration_s, seed=seed):
        took_s.append(look.took_s)
        mover.after_tick()
    return _result(server, models, duration_s, took_s)


def fixed(
    models: Sequence[Shared],
    chosen: Sequence[int],
    *,
    physics: Physics,
    duration_s: float,
    seed: int,
) -> Result:
    """Let each model stay on one of its variants."""
    server = SimulatedTriton.shared([m.load for m in models], physics=physics, seed=seed)
    _switch(server, models, chosen)
    return _result(server, models, duration_s, [])


def knows_the_present(
    models: Sequence[Shared],
    *,
    physics: Physics,
    duration_s: float,
    tick_s: float,
    most: float,
    seed: int,
) -> Result:
    """Let a mixed-integer programme choose at every tick, from what is true now.

    Args:
        models: that share the server.
        physics: of the server.
        duration_s: of the run.
        tick_s: between two choices.
        most: share of the devices' time that the choices together may take.
        seed: of the run.
    """
    server = SimulatedTriton.shared([m.load for m in models], physics=physics, seed=seed)
    choose = _programme(models, most, physics.gpus)
    took_s: list[float] = []
    now_s = phase_s(tick_s, seed)
    while now_s < duration_s:
        server.advance(now_s)
        rates_rps = [_rate_rps(model.load.arrivals_s, now_s) for model in models]
        began_s = time.perf_counter()
        chosen = choose(rates_rps)
        took_s.append(time.perf_counter() - began_s)
        _switch(server, models, chosen)
        now_s += tick_s
    return _result(server, models, duration_s, took_s)


def _programme(
    models: Sequence[Shared], most: float, gpus: int
) -> Callable[[Sequence[float]], list[int]]:
    """Return the multiple-choice knapsack: (rates of the models) -> a variant of each."""
    sizes = [len(model.load.variants) for model in models]
    owner = np.repeat(np.arange(len(models)), sizes)
    quality = np.array([v.quality for m in models for v in m.load.variants])
    weight = np.array([m.weight for m in models])
    bears = np.array(
        [v.capacity_rps(m.load.limit_s) or 1e-3 for m in models for v in m.load.variants]
    )
    one_each = LinearConstraint((owner[None, :] == np.arange(len(models))[:, None]) * 1.0, 1, 1)
    fastest = [int(np.argmax(np.where(owner == m, bears, 0.0))) for m in range(len(models))]
    firsts = np.cumsum([0, *sizes[:-1]])
    everywhere = tuple(range(gpus))
    places = [m.load.gpus or everywhere for m in models]
    on = np.array([[(gpu in places[m]) / len(places[m]) for m in owner] for gpu in range(gpus)])

    def choose(rates_rps: Sequence[float]) -> list[int]:
        rates = np.asarray(rates_rps)[owner]
        time_ = rates / bears
        found = milp(
            -(weight[owner] * rates * quality),
            constraints=[one_each, LinearConstraint(on * time_, -np.inf, most)],
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
        )
        if not found.success:  # not even the fastest fit
            return [int(at - first) for at, first in zip(fastest, firsts, strict=True)]
        taken = np.flatnonzero(found.x > 0.5)
        return [int(at - first) for at, first in zip(taken, firsts, strict=True)]

    return choose


def _switch(server: SimulatedTriton, models: Sequence[Shared], chosen: Sequence[int]) -> None:
    first = 0
    for alias, (model, variant) in enumerate(zip(models, chosen, strict=True)):
        if server.serving_of(alias) != first + variant:
            server.switch(first + variant)
        first += len(model.load.variants)


def _rate_rps(arrivals_s: Floats, now_s: float) -> float:
    within = np.searchsorted(arrivals_s, (now_s - _PRESENT_S / 2, now_s + _PRESENT_S / 2))
    return float(within[1] - within[0]) / _PRESENT_S


def _result(
    server: SimulatedTriton, models: Sequence[Shared], duration_s: float, took_s: list[float]
) -> Result:
    longest_s = max(model.load.limit_s for model in models)
    server.advance(max(server.now_s, duration_s) + _AFTER * longest_s)
    latency_s, served_by = server.latency_s(), server.served_by()
    quality = np.array([variant.quality for variant in server.variants])
    earned, counted, own, timely = 0.0, 0.0, [], []
    for alias, model in enumerate(models):
        part = server.requests_of(alias)
        in_time = latency_s[part] <= model.load.limit_s
        worth = np.where(in_time, quality[served_by[part]], 0.0)
        own.append(worth.mean())
        timely.append(in_time.mean())
        earned += model.weight * float(worth.sum())
        counted += model.weight * len(worth)
    return Result(
        np.array(own),
        np.array(timely),
        earned / counted,
        server.switches,
        np.array(took_s),
        server.pool.moves,
    )
