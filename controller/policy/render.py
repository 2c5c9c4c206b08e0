"""A policy written out in full: every effective value, with its unit.

Owns the way back from the frozen policy to text. What it writes is itself a policy with the same
meaning. It must not consult the file that the policy came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from controller.policy.model import (
    GpuPolicy,
    MemoryPolicy,
    ModelPolicy,
    Policy,
    QueuePolicy,
    SchedulePolicy,
    TlsPolicy,
    VariantPolicy,
    profile_name,
)
from controller.policy.schedules import DAYS
from controller.policy.units import (
    format_bytes,
    format_duration,
    format_percentage,
    format_power,
    format_temperature,
)

# A word, a path or a URL; or a quantity, which begins with a digit (.inf and .nan are numbers) and
# is not hexadecimal. YAML 1.1 readers take 12:30 and `on` for something else.
_PLAIN = re.compile(
    r"[A-Za-z][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*|[0-9]+(\.[0-9]+)?(?![xX])[A-Za-z%]+"
)
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """Return every effective value under the file's keys, JSON-ready; what is off is None."""
    triton = policy.triton
    traces = {"listen": triton.traces_listen} if triton.traces_listen is not None else None
    interval_s = policy.interval_s
    return {
        "version": 1,
        "triton": {
            "grpc": triton.grpc,
            "metrics": triton.metrics_url,
            "traces": traces,
            "restricted_key_file": triton.restricted_key_file,
            "restricted_key_name": triton.restricted_key_name,
            "tls": _tls_to_dict(triton.tls),
            "metrics_tls": _tls_to_dict(triton.metrics_tls),
        },
        "gpu": {
            "source": policy.gpu.source.value,
            "devices": "all" if policy.gpu.devices is None else list(policy.gpu.devices),
            **_limits_to_dict(policy.gpu),
        },
        "memory": _memory_to_dict(policy.memory),
        "interval": "auto" if interval_s is None else format_duration(interval_s),
        "models": {model.name: _model_to_dict(model) for model in policy.models},
        "stability": {
            "min_dwell": format_duration(policy.stability.min_dwell_s),
            "max_switches_per_minute": policy.stability.max_switches_per_minute,
            "foreign_hold": format_duration(policy.stability.foreign_hold_s),
            "stale_after": format_duration(policy.stability.stale_after_s),
        },
        "probing": {
            "enabled": policy.probing.enabled,
            "max_busy": format_percentage(policy.probing.max_busy_ratio),
            "batches": list(policy.probing.batches),
            "while_advising": policy.probing.while_advising,
        },
        "journal": {
            "path": policy.journal.path,
            "max_size": format_bytes(policy.journal.max_bytes),
        },
        "schedules": {one.name: _schedule_to_dict(one) for one in policy.schedules} or None,
        "prometheus": None if policy.prometheus is None else {"listen": policy.prometheus.listen},
        "mqtt": _mqtt_to_dict(policy),
        "mode": policy.mode.value,
        "on_stop": policy.on_stop.value,
    }


def policy_to_yaml(policy: Policy) -> str:
    """Return the policy as YAML that reads back as the same policy."""
    notes = {
        ("interval",): f"a decision every {format_duration(round(policy.tick_s, 6))}",
        ("probing", "batches"): ""
        if policy.probing.batches
        else "1, the full batch and its square root",
    }
    absent = {
        ("triton", "metrics"): "not read",
        ("triton", "traces"): "statistics only",
        ("triton", "restricted_key_file"): "no key is sent",
        ("triton", "tls"): "no TLS",
        ("triton", "metrics_tls"): "the authorities that the system trusts",
        ("journal", "path"): "the state folder",
        ("prometheus",): "off",
        ("schedules",): "none",
        ("mqtt",): "off",
        ("mqtt", "node"): "the machine's name",
        ("mqtt", "tls_ca_file"): "no TLS",
        ("mqtt", "tls_cert_file"): "no certificate of our own",
    }
    return "\n".join(_lines(policy_to_dict(policy), (), notes, absent)) + "\n"


def _limits_to_dict(gpu: GpuPolicy) -> dict[str, Any]:
    said = {}
    if gpu.max_temperature_celsius is not None:
        said["max_temperature"] = format_temperature(gpu.max_temperature_celsius)
    if gpu.max_power_watts is not None:
        said["max_power"] = format_power(gpu.max_power_watts)
    return said


def _memory_to_dict(memory: MemoryPolicy) -> dict[str, Any]:
    budgets = {"gpu_budget": memory.gpu_budget_bytes, "host_budget": memory.host_budget_bytes}
    said: dict[str, Any] = {k: format_bytes(size) for k, size in budgets.items() if size}
    if memory.gpu_budgets_bytes:
        budgeted = memory.gpu_budgets_bytes
        said["gpu_budgets"] = {str(gpu): format_bytes(size) for gpu, size in budgeted}
    if memory.max_loads_per_hour is not None:
        said["max_loads_per_hour"] = memory.max_loads_per_hour
    return {"reserve": format_bytes(memory.reserve_bytes), **said}


def _schedule_to_dict(schedule: SchedulePolicy) -> dict[str, Any]:
    return {
        "days": [DAYS[day] for day in sorted(schedule.days)],
        "from": _time_of_day(schedule.from_minute),
        "to": _time_of_day(schedule.to_minute),
        "models": {
            one.model: {
                **({} if one.variants is None else {"variants": sorted(one.variants)}),
                **({} if one.min_quality is None else {"min_quality": one.min_quality}),
            }
            for one in schedule.models
        },
    }


def _time_of_day(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _model_to_dict(model: ModelPolicy) -> dict[str, Any]:
    return {
        "objective": {
            "latency": format_duration(model.objective.latency_s),
            "percentile": _short(model.objective.percentile),
        },
        "alias": model.alias.value,
        "client_max_batch": model.client_max_batch,
        "min_quality": model.min_quality,
        "weight": model.weight,
        **_queue_to_dict(model.queue),
        **({"mode": model.mode.value} if model.mode is not None else {}),
        **({} if model.dispatcher is None else {"dispatcher": asdict(model.dispatcher)}),
        "variants": {
            variant.name: _variant_to_dict(variant, model)
            for variant in model.variants
            if variant.profile_of is None
        },
    }


def _queue_to_dict(queue: QueuePolicy | None) -> dict[str, Any]:
    if queue is None:
        return {}
    times = {"timeout": queue.timeout_s, "max_delay": queue.max_delay_s}
    counts = {
        "max_size": queue.max_size,
        "priority_levels": queue.priority_levels,
        "default_priority_level": queue.default_priority_level,
    }
    return {
        "queue": {
            **{key: format_duration(value) for key, value in times.items() if value is not None},
            **{key: value for key, value in counts.items() if value is not None},
        }
    }


def _variant_to_dict(variant: VariantPolicy, of: ModelPolicy) -> dict[str, Any]:
    declared = {"host": variant.host_memory_bytes, "gpu": variant.gpu_memory_bytes}
    memory = {where: format_bytes(size) for where, size in declared.items() if size is not None}
    profiles = {
        one.name.removeprefix(profile_name(variant.name, "")): {
            "model": one.model,
            "max_batch": one.max_batch,
        }
        for one in of.variants
        if one.profile_of == variant.name
    }
    return {
        "model": variant.model,
        "quality": variant.quality,
        **({"memory": memory} if memory else {}),
        **({"max_batch": variant.max_batch} if variant.max_batch is not None else {}),
        **({} if variant.gpus is None else {"gpus": list(variant.gpus) or "auto"}),
        **({"max_instances": variant.max_instances} if variant.max_instances is not None else {}),
        **({"profiles": profiles} if profiles else {}),
    }


def _short(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def _mqtt_to_dict(policy: Policy) -> dict[str, Any] | None:
    mqtt = policy.mqtt
    if mqtt is None:
        return None
    return {
        "host": mqtt.host,
        "port": mqtt.port,
        "node": mqtt.node,
        "topic_prefix": mqtt.topic_prefix,
        "username": mqtt.username,
        "password_file": mqtt.password_file,
        "tls_ca_file": mqtt.tls_ca_file,
        "tls_cert_file": mqtt.tls_cert_file,
        "tls_key_file": mqtt.tls_key_file,
    }


def _tls_to_dict(tls: TlsPolicy | None) -> dict[str, Any] | None:
    keys = ("ca_file", "cert_file", "key_file", "server_name")
    return None if tls is None else {key: getattr(tls, key) for key in keys}


def _lines(
    mapping: Mapping[str, Any],
    path: tuple[str, ...],
    notes: Mapping[tuple[str, ...], str],
    absent: Mapping[tuple[str, ...], str],
) -> list[str]:
    lines: list[str] = []
    indent = "  " * len(path)
    for key, value in mapping.items():
        here = (*path, key)
        if value is None:
            lines.append(f"{indent}# {key}:  # {absent.get(here, 'none')}")
        elif isinstance(value, dict):
            lines.append(f"{indent}{_scalar(key)}:")
            lines += _lines(value, here, notes, absent)
        else:
            note = f"  # {notes[here]}" if notes.get(here) else ""
            lines.append(f"{indent}{_scalar(key)}: {_scalar(value)}{note}")
    return lines


def _scalar(value: object) -> str:
    """Return a scalar or a flat list as YAML; JSON is YAML wherever plain text might not be."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text  # Python's escapes are those of YAML's double quotes
    )
