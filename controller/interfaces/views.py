"""How decisions and readings look from outside: JSON-ready dictionaries.

Owns the names and units of the admin API's JSON. Pure: it must not read a clock or keep state.
Whatever is not a finite number goes out as null, so that every parser reads it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

from controller.planning.decision import Candidate, Decision
from controller.telemetry.observation import SourceHealth

_MS = 1e3


def json_ready(value: Any) -> Any:
    """Turn records, enums, sets, NumPy values and odd floats into what JSON can say."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return finite(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: json_ready(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((json_ready(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    tolist = getattr(value, "tolist", None)  # NumPy, without importing it
    return json_ready(tolist()) if tolist is not None else str(value)


def finite(value: float | None) -> float | None:
    """Return a plain float, or None for NaN, infinity and None."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def ms(value_s: float | None) -> float | None:
    """Return seconds as milliseconds to the microsecond, None where there is no number."""
    number = finite(value_s)
    return None if number is None else round(number * _MS, 3)


def ratio(value: float | None) -> float | None:
    """Return a ratio to six digits, None where there is no number."""
    number = finite(value)
    return None if number is None else round(number, 6)


def candidate_view(candidate: Candidate) -> dict[str, Any]:
    """Return one candidate as `status` and `explain` show it."""
    return {
        "variant": candidate.variant,
        "model": candidate.model,
        "quality": ratio(candidate.quality),
        "excluded": None if candidate.excluded is None else candidate.excluded.value,
        "known": bool(candidate.known),
        "service_ms": ms(candidate.service_s),
        "utilization_ratio": ratio(candidate.utilization_ratio),
        "p50_ms": ms(candidate.p50_s),
        "p99_ms": ms(candidate.p99_s),
        "told_p99_ms": ms(candidate.told_p99_s),
        "miss_ratio": ratio(candidate.miss_ratio),
        "value": ratio(candidate.value),
        "feasible": bool(candidate.feasible),
    }


def decision_view(decision: Decision) -> dict[str, Any]:
    """Return a decision with its candidates; times in milliseconds but for `now_s`."""
    return {
        "now_s": finite(decision.now_s),
        "sequence": decision.sequence,
        "model": decision.model,
        "serving": decision.serving,
        "desired": decision.desired,
        "target": decision.target,
        "reason": decision.reason.value,
        "changes": decision.changes,
        "urgent": bool(decision.urgent),
        "rate_rps": finite(decision.rate_rps),
        "rate_p95_rps": finite(decision.rate_p95_rps),
        "rows_per_request": finite(decision.rows_per_request),
        "backlog_requests": int(decision.backlog_requests),
        "backlog_ms": ms(decision.backlog_s),
        "drift_ratio": ratio(decision.drift_ratio),
        "candidates": [candidate_view(candidate) for candidate in decision.candidates],
    }


def source_view(source: SourceHealth) -> dict[str, Any]:
    """Return how well a source does."""
    return {
        "name": source.name,
        "up": bool(source.up),
        "age_s": finite(source.age_s),
        "failures": int(source.failures),
        "error": source.error,
        "detail": source.detail,
    }


def quantiles_ms(values_s: Sequence[float]) -> dict[str, Any]:
    """Return count, median and 99th percentile (nearest rank) of durations."""
    ordered = sorted(value for value in values_s if math.isfinite(value))
    if not ordered:
        return {"count": 0, "p50": None, "p99": None}
    last = len(ordered) - 1
    return {
        "count": len(ordered),
        "p50": ms(ordered[math.ceil(0.50 * len(ordered)) - 1]),
        "p99": ms(ordered[min(last, math.ceil(0.99 * len(ordered)) - 1)]),
    }


def health_view(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether all is well, and a sentence for each thing that is not."""
    problems: list[str] = []
    triton = status.get("triton") or {}
    if not triton.get("up"):
        problems.append(f"Triton at {triton.get('grpc')} does not answer")
    elif triton.get("capability"):
        problems.append(str(triton["capability"]))
    problems += [
        f"source {source['name']}: {source.get('error') or 'down'}"
        for source in status.get("sources") or ()
        if source.get("error") or not source.get("up")
    ]
    for model in status.get("models") or ():
        if model.get("serving") is None:
            problems.append(f"model {model['name']}: nothing is known to serve it")
        if model.get("rejected_rps"):
            rate = f"{model['rejected_rps']:.1f} requests a second"
            problems.append(f"model {model['name']}: Triton refuses {rate}: its queue is full")
        if model.get("held"):
            problems.append(f"model {model['name']}: held: {model['held']}")
    for name in ("journal", "mqtt"):
        part = status.get(name)
        if part and not part.get("up"):
            problems.append(f"{name}: {part.get('error') or 'down'}")
    return {"ok": not problems, "problems": problems}
