"""What `governor status` and `explain` show, put together from the parts.

Owns the shape of the status document. It must not change anything.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controller.interfaces.views import decision_view, json_ready, ms, source_view
from controller.planning.decision import Decision
from controller.planning.explain import explain_decision
from controller.planning.explain_instances import explain_instances
from controller.planning.pacing import interval_s
from controller.policy.model import DISPATCHER, ModelPolicy, VariantPolicy
from controller.telemetry.observation import ModelReading

if TYPE_CHECKING:
    from controller.daemon.loop import Daemon

STATUS_VERSION = 1
_NOT_ON_THE_BUS = frozenset({"candidates", "serving_for_s", "decisions"})


def status(daemon: Daemon) -> dict[str, Any]:
    """Return everything `governor status` shows, JSON-ready."""
    observation = daemon.observation
    acting = daemon.actuator.describe()
    return {
        "version": STATUS_VERSION,
        "time_unix_s": time.time(),
        "daemon": _daemon(daemon),
        "triton": {
            "grpc": daemon.policy.triton.grpc,
            "version": daemon.triton_version,
            "up": daemon.triton_up,
            "capability": _limits(daemon),
            "lease": "held" if acting.get("lease") else None,
            "variants": acting["variants"],
        },
        "gpu": json_ready(observation.gpus) if observation else [],
        "limits": list(daemon.core.limits.exceeded),
        "host": json_ready(observation.host) if observation else {},
        "sources": [source_view(s) for s in observation.sources] if observation else [],
        "models": [_model(daemon, model) for model in daemon.policy.models],
        "memory": _memory(daemon),
        "instances": daemon.sizing.view(daemon.observation),
        "actions": {
            "switch_ms": daemon.actions.switches.view(),
            "transaction_ms": daemon.actions.transactions.view(),
            "learned_s": daemon.core.costs.view(),
            "learned_disturbance": daemon.core.costs.disturbances.view(),
        },
        "tick_ms": daemon.ticks.view(),
        "process": daemon.process.view(),
        "journal": daemon.journal.health(),
        "prometheus": None
        if daemon.policy.prometheus is None
        else {"up": daemon.metrics.listening, "error": daemon.metrics.error},
        "mqtt": None if daemon.bus is None else daemon.bus.health(),
    }


def _memory(daemon: Daemon) -> dict[str, Any] | None:
    """Return the budget, and why what the variants take of the host is not measured, if so."""
    pool = daemon.pool.view()
    if pool is None:
        return None
    limited = pool["host"] is not None
    return {**pool, "host_unmeasured": daemon.triton_host.why if limited else None}


def measured(daemon: Daemon) -> dict[str, Any]:
    """Return the status with what Prometheus wants besides."""
    return {
        **status(daemon),
        "histograms": {
            "tick_duration_seconds": daemon.ticks.histogram(),
            "switch_duration_seconds": daemon.actions.switches.histogram(),
            "transaction_duration_seconds": daemon.actions.transactions.histogram(),
        },
    }


def _limits(daemon: Daemon) -> str | None:
    """Return what the governor cannot do on this server, if anything."""
    capability = daemon.actuator.capability
    return None if capability.can_act and capability.why is None else str(capability)


def _daemon(daemon: Daemon) -> dict[str, Any]:
    everything = daemon.wishes.pauses.get(None)
    return {
        "version": daemon.version,
        "pid": daemon.pid,
        "uptime_s": round(daemon.uptime_s, 3),
        "mode": daemon.policy.mode.value,
        "tick_s": interval_s(daemon.policy, at_ease=daemon.core.at_ease),
        "policy_file": str(daemon.policy_file.path),
        "host": daemon.policy_file.host,
        "policy_sha256": daemon.policy.sha256,
        "policy_error": daemon.policy_file.error,
        "schedules": list(daemon.calendar.active),
        "paused": None if everything is None else asdict(everything),
        "advice": daemon.advice,
    }


def _left_for_s(daemon: Daemon, model: str) -> float | None:
    """Return for how long a model's dispatcher is left yet, as it was late."""
    seen = daemon.observation
    left_s = None if seen is None else daemon.core.late.away_s(model, seen.now_s)
    return None if left_s is None else round(left_s, 1)


def _model(daemon: Daemon, policy: ModelPolicy) -> dict[str, Any]:
    reading = daemon.readings.get(policy.name) or ModelReading(policy.name, None)
    decision = daemon.decisions.get(policy.name)
    score = daemon.core.score(policy.name)
    coverage, factors = daemon.core.calibration(policy.name)
    pin = daemon.wishes.pins.get(policy.name)
    release = daemon.wishes.releases.get(policy.name)
    serving = next((v for v in policy.variants if v.model == reading.serving), None)
    dispatcher = daemon.dispatchers.view(policy.name)
    late = dispatcher is not None and dispatcher["model"] == reading.serving
    chosen = _candidate(decision, serving.name if serving else None)
    return {
        "name": policy.name,
        "serving": DISPATCHER if late else serving.name if serving else None,
        "serving_model": reading.serving,
        "serving_for_s": None
        if reading.since_s is None or daemon.observation is None
        else round(daemon.observation.now_s - reading.since_s, 3),
        "desired": decision.desired if decision else None,
        "reason": decision.reason.value if decision else None,
        "quality": dispatcher["quality"] if dispatcher and late else _quality(serving),
        "dispatcher": None
        if dispatcher is None
        else {**dispatcher, "left_for_s": _left_for_s(daemon, policy.name)},
        "pinned": None if pin is None else asdict(pin),
        "paused": reading.paused and not reading.released,
        "mode": daemon.standing.of(policy.name),
        "released": None if release is None else asdict(release),
        "held": reading.held,
        "objective": {
            "latency_ms": ms(policy.objective.latency_s),
            "percentile": policy.objective.percentile,
        },
        "rate_rps": decision.rate_rps if decision else None,
        "queue": decision.backlog_requests if decision else None,
        "backlog_ms": ms(decision.backlog_s) if decision else None,
        "predicted_p99_ms": dispatcher["told_p99_ms"]
        if dispatcher and late
        else ms(chosen.told_p99_s)
        if chosen
        else None,
        "measured_p99_ms": ms(score.measured_s),
        "attainment": score.attainment,
        "burn_rate": score.burn_rate,
        "effective_quality": score.effective_quality,
        "rejected_rps": score.rejected_rps,
        "rejected": score.rejected_total,
        "switches": daemon.actions.switch_counts.get(policy.name, 0),
        "failed_actions": daemon.actions.failure_counts.get(policy.name, 0),
        "decisions": dict(daemon.decision_counts.get(policy.name, ())),
        "calibration": {
            "coverage": dispatcher["coverage"] if dispatcher and late else coverage,
            "factor": factors.get(reading.serving or "", 1.0),
            "factors": factors,
        },
        "candidates": decision_view(decision)["candidates"] if decision else [],
    }


def _quality(variant: VariantPolicy | None) -> float | None:
    return None if variant is None else variant.quality


def bus_view(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the bus tells of each model: no candidates, nothing that only counts time."""
    return [
        {key: value for key, value in model.items() if key not in _NOT_ON_THE_BUS}
        for model in models
    ]


def _candidate(decision: Decision | None, variant: str | None) -> Any:
    if decision is None or variant is None:
        return None
    return next((c for c in decision.candidates if c.variant == variant), None)


def explain(daemon: Daemon, model: str | None) -> dict[str, Any]:
    """Return the newest decisions in plain English. Raises KeyError for an unknown model."""
    wanted = [daemon.policy.model(model)] if model is not None else list(daemon.policy.models)
    models: list[dict[str, Any]] = []
    sizes = daemon.core.sizes()
    instances = {} if daemon.observation is None else daemon.observation.instances
    for policy in wanted:
        decision = daemon.decisions.get(policy.name)
        if decision is None:
            text = f"{policy.name}: nothing was decided yet; the first tick has not ended."
            models.append({"name": policy.name, "text": text, "decision": None})
            continue
        models.append(
            {
                "name": policy.name,
                "text": explain_decision(decision, policy, daemon.core.costs)
                + explain_instances(policy, sizes, instances),
                "decision": decision_view(decision),
                "last_switch": _last_switch(daemon, policy),
            }
        )
    return {"models": models}


def _last_switch(daemon: Daemon, policy: ModelPolicy) -> dict[str, Any] | None:
    """Return why it last switched: the newest decision mostly says that all is as it should be."""
    decision = daemon.acting.switched.get(policy.name)
    if decision is None:
        return None
    return {
        "monotonic_s": decision.now_s,
        "ago_s": max(time.monotonic() - decision.now_s, 0.0),
        "serving": decision.serving,
        "target": decision.target,
        "text": explain_decision(decision, policy),
    }


def in_a_line(daemon: Daemon) -> str:
    """Return what `systemctl status` shows."""
    if not daemon.triton_up:
        return f"waiting for Triton at {daemon.policy.triton.grpc}"
    parts = [
        f"{d.model}: {d.serving or 'nothing'} ({_standing(daemon, d)}), {d.rate_rps:.0f}/s"
        for d in daemon.decisions.values()
    ]
    return "; ".join(parts)


def _standing(daemon: Daemon, decision: Decision) -> str:
    """Return why a decision is as it is, and whether anybody carries it out."""
    mode = daemon.standing.of(decision.model)
    return f"advice: {decision.reason}" if mode == "advise" else decision.reason.value
