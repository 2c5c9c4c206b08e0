"""A whole policy before it goes live: all of its models on one simulated server.

Owns the runs, their scores by model, and saying what of a policy is not simulated. The governor
runs as in the daemon, with the service times that are known from the start. It must not read files
or print.

Variants of which no service time is known are left out. Every policy that is compared gets the
same requests at the same times.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from controller.planning.core import GovernorCore
from controller.policy import schedules
from controller.policy.model import Mode, ModelPolicy, Policy
from controller.twin.drive import Outcome, looks, profile_of
from controller.twin.ladder import TwinVariant
from controller.twin.late import drive_late
from controller.twin.load import Load
from controller.twin.port import TwinPort
from controller.twin.scene import Scene
from controller.twin.scoring import Score, finite, half_width, score
from controller.twin.server import Physics, SimulatedTriton

_AFTER: Final = 5.0  # objectives that the server is given to finish after the last arrival
_INSTANT_S: Final = 1e-9
_MEANS: Final = ("slo_attainment", "effective_quality", "mean_quality", "p99_ms", "switches")
_COMPARED: Final = ("slo_attainment", "effective_quality")

Times = tuple[tuple[float, tuple[str, ...]], ...]  # from when on which schedules are in force


@dataclass(frozen=True, slots=True)
class Cast:
    """A policy as it can be simulated under a scene."""

    policy: Policy  # of the models and variants that are known
    variants: tuple[tuple[TwinVariant, ...], ...]  # of each model
    times: Times
    untested: Mapping[str, str]  # why, by model
    left_out: tuple[tuple[str, str], ...]  # (model, variant) never measured
    notes: tuple[str, ...]  # what is not as it would be


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One model with one seed."""

    score: Score
    # Of the time that each variant served; of the requests, where these were bound late. [variants]
    shares: tuple[float, ...]


def cast(policy: Policy, scene: Scene, in_force: Sequence[str] = ()) -> Cast:
    """Return what of a policy can be simulated.

    Args:
        policy: as it was read.
        scene: what it is tested under.
        in_force: schedules that hold all the time; none: those of the time of day, if it is known.
    """
    times = _times(policy, scene, in_force)
    kept: list[ModelPolicy] = []
    variants: list[tuple[TwinVariant, ...]] = []
    untested: dict[str, str] = {}
    left_out: list[tuple[str, str]] = []
    for model in policy.models:
        tables_s = scene.knowledge.tables_s(model)
        known = tuple(v for v in model.variants if v.name in tables_s)
        left_out += [(model.name, v.name) for v in model.variants if v.name not in tables_s]
        alone = replace(model, variants=known)
        why = _untested(alone, policy, scene, times)
        if why is not None:
            untested[model.name] = why
            continue
        kept.append(alone)
        variants.append(
            tuple(
                TwinVariant(v.name, v.quality, tables_s[v.name], profile_of=v.profile_of)
                for v in known
            )
        )
    simulated = replace(policy, models=tuple(kept))
    if kept and simulated.tick_s != policy.tick_s:  # another model's objective is the shortest
        simulated = replace(simulated, interval_s=policy.tick_s)
    simulated, shared = _apart(simulated)
    notes = (*_notes(policy, simulated, scene, in_force), *shared)
    return Cast(simulated, tuple(variants), times, untested, tuple(left_out), notes)


def _untested(model: ModelPolicy, policy: Policy, scene: Scene, times: Times) -> str | None:
    """Return why a model, with those of its variants that are known, cannot be simulated."""
    if model.name not in scene.rate_rps:
        return f"no load of it in {scene.source}"
    if not model.variants:
        return "none of its variants was ever measured"
    for names in {names for _, names in times}:
        (then,) = schedules.under(replace(policy, models=(model,)), names).models
        if not any(then.lets(variant) for variant in then.variants):
            when = f" under {', '.join(names)}" if names else ""
            return f"none of the variants that may serve{when} was ever measured"
    return None


def _times(policy: Policy, scene: Scene, in_force: Sequence[str]) -> Times:
    """Return which schedules are in force when; by the local time of this machine."""
    if in_force or scene.unix_s is None or not policy.schedules:
        return ((0.0, tuple(in_force)),)
    found: list[tuple[float, tuple[str, ...]]] = []
    minute = -1
    for at, unix_s in enumerate(scene.unix_s.tolist()):
        if unix_s // 60 == minute:
            continue
        minute = unix_s // 60
        then = time.localtime(unix_s)
        names = schedules.active(policy, then.tm_wday, then.tm_hour * 60 + then.tm_min)
        if not found or found[-1][1] != names:
            found.append((float(at), names))
    return tuple(found)


def _apart(policy: Policy) -> tuple[Policy, list[str]]:
    """Give each variant a Triton model of its own: a simulated one belongs to one alias."""
    seen: set[str] = set()
    models, notes = [], []
    for model in policy.models:
        variants = []
        for variant in model.variants:
            if variant.model in seen:
                notes.append(f"{variant.model} serves two models, and is simulated once for each")
                variants.append(replace(variant, model=f"{variant.model} of {model.name}"))
            else:
                variants.append(variant)
            seen.add(variant.model)
        models.append(replace(model, variants=tuple(variants)))
    return replace(policy, models=tuple(models)), notes


def _notes(
    policy: Policy, simulated: Policy, scene: Scene, in_force: Sequence[str]
) -> Iterator[str]:
    if policy.memory.is_limited:
        yield "the memory budget: every variant stays loaded"
    if policy.schedules and scene.unix_s is None and not in_force:
        yield "schedules: a trace has no time of day (--schedule NAME puts one in force)"
    advised = [model.name for model in policy.models if policy.mode_of(model) is Mode.ADVISE]
    if advised:
        whose = "" if len(advised) == len(policy.models) else f" of {', '.join(advised)}"
        yield f"mode: advise{whose}: it is tested as if it acted"
    late = [model.name for model in simulated.models if model.dispatcher is not None]
    if late and not _binds_late(simulated):
        yield f"dispatcher of {', '.join(late)}: tested as if the alias led to a variant"
    queued = [model.name for model in simulated.models if model.queue is not None]
    if queued and not _binds_late(simulated):
        yield f"queue of {', '.join(queued)}: none of its limits, delays and priorities holds"
    if policy.gpu.is_limited:
        yield "gpu.max_temperature, gpu.max_power: no GPU reaches them"
    if policy.gpu.devices is not None and len(policy.gpu.devices) > 1:
        yield "several GPUs: all variants share one"


def busiest(scene: Scene, of: Cast, length_s: float) -> Scene:
    """Return the part of a scene that has the most work for the fastest variants."""
    length = max(round(length_s), 1)
    if length >= scene.duration_s:
        return scene
    work = np.zeros(scene.duration_s)
    for model, variants in zip(of.policy.models, of.variants, strict=True):
        row_s = min(float(v.table_s[-1]) / v.max_batch for v in variants)
        work += scene.rate_rps[model.name] * scene.rows_per_request[model.name] * row_s
    sums = np.cumsum(np.concatenate([[0.0], work]))
    first = int(np.argmax(sums[length:] - sums[:-length]))
    return scene.part(first, first + length)


def run_one(of: Cast, scene: Scene, seed: int) -> dict[str, ModelRun]:
    """Run all models with one seed; return those that had a request."""
    policy = of.policy
    loads = [
        _load(model, variants, scene, seed)
        for model, variants in zip(policy.models, of.variants, strict=True)
    ]
    physics = Physics(noise=scene.knowledge.noise)
    server = SimulatedTriton.shared(loads, physics=physics, seed=seed)
    if _binds_late(policy):
        return _run_late(of, server, loads[0], scene, seed)
    core = GovernorCore(schedules.under(policy, of.times[0][1]))
    core.restore(profile_of(server, policy))
    port = TwinPort(server, *policy.models)
    served_s = np.zeros(len(server.variants))
    ahead = list(of.times[1:])
    took_s: list[float] = []
    before_s = 0.0
    for look in looks(server, core, port, policy, duration_s=scene.duration_s, seed=seed):
        took_s.append(look.took_s)
        # What was asked for just now takes some milliseconds: these served since the last look.
        serving = [server.serving_of(alias) for alias in range(len(loads))]
        served_s[serving] += look.observation.now_s - before_s
        before_s = look.observation.now_s
        if ahead and before_s >= ahead[0][0]:
            core.set_policy(schedules.under(policy, ahead.pop(0)[1]))
    longest_s = max(load.limit_s for load in loads)
    server.advance(max(server.now_s, float(scene.duration_s)) + _AFTER * longest_s)
    return _scored(server, policy, loads, served_s, np.array(took_s))


def _binds_late(policy: Policy) -> bool:
    """Return whether a dispatcher is simulated: one queue, one device."""
    return len(policy.models) == 1 and policy.models[0].dispatcher is not None


def _run_late(
    of: Cast, server: SimulatedTriton, load: Load, scene: Scene, seed: int
) -> dict[str, ModelRun]:
    """Run a model with a dispatcher; a variant's share is that of the requests it answered."""
    policy = of.policy
    first, *later = [(at_s, schedules.under(policy, names)) for at_s, names in of.times]
    outcome = drive_late(
        server,
        first[1],
        rows=load.rows,
        profiled=True,
        duration_s=float(scene.duration_s),
        seed=seed,
        later=later,
    )
    if not len(outcome.latency_s):
        return {}
    answered = outcome.served_by[outcome.served_by >= 0]
    counts = np.bincount(answered, minlength=len(load.variants))
    quality = np.array([variant.quality for variant in server.variants])
    shares = tuple((counts / max(counts.sum(), 1)).tolist())
    return {policy.models[0].name: ModelRun(score(outcome, quality, load.limit_s), shares)}


def _load(model: ModelPolicy, variants: tuple[TwinVariant, ...], scene: Scene, seed: int) -> Load:
    # By its name: another policy may have its models in another order.
    own = (seed << 32) + zlib.crc32(model.name.encode())
    arrivals_s = scene.arrivals_of(model.name).arrivals_s(own)
    mean = scene.rows_per_request[model.name]
    rows = None
    if mean > 1.0:
        more = np.random.default_rng((own, 1)).poisson(mean - 1.0, len(arrivals_s))
        rows = np.minimum(1 + more, model.client_max_batch)
    rates = [v.max_batch / v.service_s(v.max_batch) for v in variants]
    fastest = rates.index(max(rates))
    return Load(variants, arrivals_s, fastest, model.objective.latency_s, rows)


def _scored(
    server: SimulatedTriton,
    policy: Policy,
    loads: Sequence[Load],
    served_s: NDArray[np.float64],
    took_s: NDArray[np.float64],
) -> dict[str, ModelRun]:
    quality = np.array([variant.quality for variant in server.variants])
    latency_s, served_by = server.latency_s(), server.served_by()
    found: dict[str, ModelRun] = {}
    first = 0
    for alias, (model, load) in enumerate(zip(policy.models, loads, strict=True)):
        part = server.requests_of(alias)
        own_s = served_s[first : first + len(load.variants)]
        first += len(load.variants)
        if part.stop == part.start:
            continue
        outcome = Outcome(latency_s[part], served_by[part], server.switches_of(alias), took_s)
        shares = tuple((own_s / max(own_s.sum(), _INSTANT_S)).tolist())
        found[model.name] = ModelRun(score(outcome, quality, load.limit_s), shares)
    return found


def rehearse(
    casts: Sequence[Cast], scene: Scene, seeds: Sequence[int], *, jobs: int = -1
) -> dict[str, Any]:
    """Run policies over seeds; return the numbers, and what was assumed, ready for JSON."""
    tasks = [(at, seed) for at, one in enumerate(casts) if one.policy.models for seed in seeds]
    runs = Parallel(n_jobs=jobs)(delayed(run_one)(casts[at], scene, seed) for at, seed in tasks)
    by_cast: list[list[dict[str, ModelRun]]] = [[] for _ in casts]
    for (at, _), one in zip(tasks, runs, strict=True):
        by_cast[at].append(one)
    return {
        "source": scene.source,
        "simulated_s": scene.duration_s,
        "unknown_s": scene.unknown_s,
        "seeds": list(seeds),
        "policies": [_summed_up(one, scene, own) for one, own in zip(casts, by_cast, strict=True)],
        "difference": list(_differences(*by_cast)) if len(casts) == 2 else None,
    }


def _summed_up(of: Cast, scene: Scene, runs: Sequence[Mapping[str, ModelRun]]) -> dict[str, Any]:
    untested = dict(of.untested)
    models = []
    for model in of.policy.models:
        own = [run[model.name] for run in runs if model.name in run]
        if len(own) < len(runs):
            untested[model.name] = "no request of it arrives in this time"
            continue
        silent_s = (scene.silent_s or {}).get(model.name, 0)
        models.append(_of_model(model, own, silent_s, bound_late=_binds_late(of.policy)))
    return {
        "sha256": of.policy.sha256,
        "models": models,
        "untested": [{"model": model, "why": why} for model, why in untested.items()],
        "never_measured": [{"model": m, "variant": variant} for m, variant in of.left_out],
        "not_simulated": list(of.notes),
    }


def _of_model(
    model: ModelPolicy, runs: Sequence[ModelRun], silent_s: int, *, bound_late: bool
) -> dict[str, Any]:
    columns = {name: _column(runs, name) for name in _MEANS}
    requests = sum(run.score.requests for run in runs)
    in_time = sum(run.score.slo_attainment * run.score.requests for run in runs) / requests
    return {
        "name": model.name,
        "latency_ms": model.objective.latency_s * 1e3,
        "percentile": model.objective.percentile,
        "requests": requests / len(runs),
        **{name: finite(float(values.mean())) for name, values in columns.items()},
        # Of all requests of all seeds: each is one that the objective speaks of.
        "slo_attainment": in_time,
        "bound_late": bound_late,
        "objective_met": round(100.0 * in_time, 9) >= model.objective.percentile,
        "variants": {
            variant.name: float(np.mean([run.shares[at] for run in runs]))
            for at, variant in enumerate(model.variants)
        },
        "silent_s": silent_s,
        "ci95": {name: half_width(values) for name, values in columns.items()},
    }


def _column(runs: Sequence[ModelRun], name: str) -> NDArray[np.float64]:
    return np.array([getattr(run.score, name) for run in runs], dtype=np.float64)


def _differences(
    ours: Sequence[Mapping[str, ModelRun]], theirs: Sequence[Mapping[str, ModelRun]]
) -> Iterator[dict[str, Any]]:
    """Yield the first policy less the second, by model: paired, as both had the same requests."""
    for name in ours[0] if ours else ():
        pairs = [
            (one[name], other[name])
            for one, other in zip(ours, theirs, strict=False)
            if name in one and name in other
        ]
        if not pairs:
            continue
        columns = {
            key: _column([one for one, _ in pairs], key) - _column([o for _, o in pairs], key)
            for key in _COMPARED
        }
        yield {
            "model": name,
            **{key: float(values.mean()) for key, values in columns.items()},
            "ci95": {key: half_width(values) for key, values in columns.items()},
        }
