"""One policy on one simulated server, from the first request to the last.

Owns the stepping: who looks when, and what he sees. The governor runs as in the daemon, through
the two ports; rivals get the view that their papers assume. It must not score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.core import STATE_FORMAT, GovernorCore
from controller.planning.decision import Decision
from controller.planning.pacing import Pacing
from controller.policy.model import (
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import Observation
from controller.twin.clairvoyant import best_schedule
from controller.twin.port import TwinPort
from controller.twin.rivals import Rival, View
from controller.twin.rivals.scaling import Scaler, ScalerView
from controller.twin.server import SimulatedTriton

Floats = NDArray[np.float64]

MODEL: Final = "replayed"
_PROFILED: Final = 100.0  # batches of each size that a profile comes from
_MINUTE_S: Final = 60.0
_AFTER: Final = 5.0  # objectives that the server is given to finish after the last arrival


@dataclass(frozen=True, slots=True)
class Look:
    """One tick of a governor: what it saw and decided, and the real seconds that took."""

    observation: Observation
    decisions: tuple[Decision, ...]
    took_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of every request of a run."""

    latency_s: Floats  # [requests], infinite: never answered
    served_by: NDArray[np.int64]  # [requests]
    switches: int
    decision_s: Floats  # seconds of real time of each decision
    # What was stated of each request when it arrived: its latency at the objective's percentile.
    # NaN where nothing was. [requests]; None: nobody states anything
    stated_s: Floats | None = None
    gpus: float = 1.0  # that served, mean over time


def drive_rival(
    server: SimulatedTriton, rival: Rival, *, duration_s: float, limit_s: float, seed: int
) -> Outcome:
    """Let a rival look at its interval, from a random phase on."""
    took_s: list[float] = []

    def look() -> None:
        view = View(
            server.now_s,
            server.serving,
            server.arrived,
            [server.pending(i) for i in range(len(server.variants))],
            [(batch.variant, batch.rows, batch.took_s) for batch in server.take_executed()],
        )
        began_s = time.perf_counter()
        variant = rival.choose(view)
        took_s.append(time.perf_counter() - began_s)
        if variant is not None and variant != server.serving:
            server.switch(variant)

    _run(server, look, rival.tick_s, duration_s, limit_s, seed)
    return _outcome(server, took_s)


def drive_scaler(
    server: SimulatedTriton, scaler: Scaler, *, duration_s: float, limit_s: float, seed: int
) -> Outcome:
    """Let a scaler change how many GPUs serve; a new one starts in the time that its server says.

    It begins with as many as bear the first minute with the capacity that it assumes.
    """
    pool, variant, most = server.pool, server.serving, server.physics.gpus
    arrivals_s = server.arrivals_s()
    bears_rps = server.variants[variant].capacity_rps(limit_s)
    first = math.ceil(np.searchsorted(arrivals_s, _MINUTE_S) / _MINUTE_S / bears_rps)
    replicas = min(max(first, 1), most)
    for gpu in range(replicas, most):
        pool.unload(variant, gpu)
    took_s: list[float] = []
    seen_s, seen, used_s = 0.0, 0, 0.0

    def look() -> None:
        nonlocal seen_s, seen, replicas, used_s
        elapsed_s = server.now_s - seen_s
        view = ScalerView(
            replicas,
            (server.arrived - seen) / elapsed_s if elapsed_s > 0.0 else 0.0,
            server.pending(variant),
            server.latency_between_s(seen_s, server.now_s),
        )
        used_s += replicas * elapsed_s
        seen_s, seen = server.now_s, server.arrived
        began_s = time.perf_counter()
        wanted = min(max(scaler.replicas(view), 1), most)
        took_s.append(time.perf_counter() - began_s)
        while replicas < wanted and pool.load(variant, replicas):
            replicas += 1
        while replicas > wanted and pool.unload(variant, replicas - 1):
            replicas -= 1

    _run(server, look, scaler.tick_s, duration_s, limit_s, seed)
    used_s += replicas * max(duration_s - seen_s, 0.0)
    return replace(_outcome(server, took_s), gpus=used_s / duration_s)


def drive_governor(
    server: SimulatedTriton,
    policy: Policy,
    *,
    profiled: bool,
    duration_s: float,
    limit_s: float,
    seed: int,
) -> Outcome:
    """Let the governor govern; `profiled`: it knows the ladder's service times from the start."""
    core = GovernorCore(policy)
    if profiled:
        core.restore(profile_of(server, policy))
    port = TwinPort(server, *policy.models)
    took_s: list[float] = []
    looked_s: list[float] = []
    stated: list[list[float]] = []
    for look in looks(server, core, port, policy, duration_s=duration_s, seed=seed):
        took_s.append(look.took_s)
        for decision in look.decisions:
            looked_s.append(look.observation.now_s)
            stated.append([c.told_p99_s if c.known else math.nan for c in decision.candidates])
    _finish(server, duration_s, limit_s)
    outcome = _outcome(server, took_s)
    # Of the variant that the alias led to when a request arrived. [looks, variants].
    told_s = np.array([[math.nan] * len(server.variants), *stated])
    last = np.searchsorted(looked_s, server.arrivals_s(), side="right")
    return replace(outcome, stated_s=told_s[last, np.maximum(outcome.served_by, 0)])


def looks(
    server: SimulatedTriton,
    core: GovernorCore,
    port: TwinPort,
    policy: Policy,
    *,
    duration_s: float,
    seed: int,
) -> Iterator[Look]:
    """Let a core govern a server as in the daemon; yield each tick after it was carried out."""
    pacing = Pacing(policy, phase_s(policy.tick_s, seed))
    while pacing.at_s < duration_s:
        server.advance(pacing.at_s)
        if pacing.is_glance and not core.is_pressing(*port.glance()):
            pacing.glanced(server.now_s)
            continue
        observation = port.read()
        began_s = time.perf_counter()
        decisions = core.step(observation)
        took_s = time.perf_counter() - began_s
        for decision in decisions:
            port.act(decision)
        for resize in core.resizes(observation):
            port.resize(resize)
        for probe in core.probes(observation):
            port.send_probe(probe)
            core.probe_spent(port.probe_cost_s(probe), observation.now_s)
        pacing.ticked(server.now_s)
        yield Look(observation, decisions, took_s)


def profile_of(server: SimulatedTriton, policy: Policy) -> dict[str, Any]:
    """Return what a governor would have stored that had measured every batch size often."""
    named = (variant.model for model in policy.models for variant in model.variants)
    service = {
        name: {
            "mean": np.log(variant.table_s).tolist(),
            "weight": [_PROFILED] * variant.max_batch,
            "total": [_PROFILED] * variant.max_batch,
        }
        for name, variant in zip(named, server.variants, strict=True)
    }
    learned = {"models": service, "noise": server.physics.noise}
    return {"format": STATE_FORMAT, "service": learned, "models": {}}


def drive_clairvoyant(
    server: SimulatedTriton, *, duration_s: float, limit_s: float, tick_s: float
) -> Outcome:
    """Follow the best of the schedules that a beam search finds with the true arrivals."""
    for index, variant in enumerate(best_schedule(server, duration_s=duration_s, tick_s=tick_s)):
        server.advance(index * tick_s)
        if variant != server.serving:
            server.switch(variant)
    _finish(server, duration_s, limit_s)
    return _outcome(server, [])


def policy_for(
    server: SimulatedTriton,
    limit_s: float,
    percentile: float,
    *,
    max_instances: int | None = None,
) -> Policy:
    """Return the policy that an operator would write for a simulated server."""
    limits = [variant.max_batch for variant in server.variants]
    has_profiles = any(variant.profile_of is not None for variant in server.variants)
    variants = tuple(
        VariantPolicy(
            v.name,
            v.name,
            v.quality,
            max_batch=v.max_batch if has_profiles else None,
            profile_of=v.profile_of,
            max_instances=max_instances,
        )
        for v in server.variants
    )
    promise = min(limits) if has_profiles else max(limits)
    model = ModelPolicy(MODEL, Objective(limit_s, percentile), variants, client_max_batch=promise)
    return Policy(triton=TritonPolicy("127.0.0.1:8001", None, None), models=(model,))


def _run(
    server: SimulatedTriton,
    look: Callable[[], None],
    tick_s: float,
    duration_s: float,
    limit_s: float,
    seed: int,
) -> None:
    first_s = phase_s(tick_s, seed)
    count = int((duration_s - first_s) / tick_s) + 1
    for index in range(count):
        server.advance(first_s + index * tick_s)
        look()
    _finish(server, duration_s, limit_s)


def phase_s(tick_s: float, seed: int) -> float:
    """Return when somebody looks first who looks at every tick."""
    return float(np.random.default_rng(seed).random()) * tick_s


def _finish(server: SimulatedTriton, duration_s: float, limit_s: float) -> None:
    server.advance(max(server.now_s, duration_s) + _AFTER * limit_s)


def _outcome(server: SimulatedTriton, took_s: list[float]) -> Outcome:
    return Outcome(
        server.latency_s(),
        server.served_by(),
        server.switches,
        np.array(took_s),
        gpus=float(server.physics.gpus),
    )
