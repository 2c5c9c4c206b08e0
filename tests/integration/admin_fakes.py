"""A `Control` that keeps what it is told, and status as the daemon produces it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controller.interfaces.control import Caller, CommandResult

VARIANTS = {"digits": ("wide", "narrow"), "words": ("large", "small")}


def a_model(name: str, serving: str = "wide", **changes: Any) -> dict[str, Any]:
    candidate = {
        "variant": serving,
        "quality": 0.927,
        "excluded": None,
        "known": True,
        "service_ms": 4.2,
        "utilization_ratio": 0.42,
        "p50_ms": 9.0,
        "p99_ms": 41.0,
        "miss_ratio": 0.001,
        "value": 0.92,
        "feasible": True,
    }
    model = {
        "name": name,
        "serving": serving,
        "serving_model": f"{name}_{serving}",
        "serving_for_s": 73.0,
        "desired": serving,
        "reason": "steady",
        "quality": 0.927,
        "pinned": None,
        "paused": False,
        "held": None,
        "objective": {"latency_ms": 60.0, "percentile": 99.0},
        "rate_rps": 211.7,
        "queue": 4,
        "backlog_ms": 12.0,
        "predicted_p99_ms": 41.0,
        "measured_p99_ms": 38.6,
        "attainment": 0.9941,
        "burn_rate": 0.59,
        "effective_quality": 0.921,
        "switches": 17,
        "failed_actions": 0,
        "calibration": {"coverage": 0.991, "factor": 1.08},
        "candidates": [candidate],
    }
    return {**model, **changes}


def a_status(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    status = {
        "version": 1,
        "time_unix_s": 1_790_000_000.0,
        "daemon": {
            "version": "0.1.0",
            "pid": 4711,
            "uptime_s": 11_520.0,
            "mode": "act",
            "tick_s": 0.02,
            "policy_file": "/etc/triton-governor/policy.yaml",
            "policy_sha256": "0" * 64,
            "paused": None,
            "advice": None,
        },
        "triton": {
            "grpc": "127.0.0.1:8001",
            "version": "2.51.0",
            "up": True,
            "capability": None,
            "lease": None,
        },
        "gpu": [],
        "host": {
            "cpu_ratio": 0.34,
            "cpu_count": 2,
            "memory_used_bytes": 3 * 2**30,
            "memory_total_bytes": 8 * 2**30,
            "load_1m": 1.2,
        },
        "sources": [
            {
                "name": "statistics",
                "up": True,
                "age_s": 0.02,
                "failures": 0,
                "error": None,
                "detail": None,
            }
        ],
        "models": list(models) or [a_model("digits")],
        "actions": {
            "switch_ms": {"count": 17, "p50": 2.1, "p99": 6.0},
            "transaction_ms": {"count": 17, "p50": 14.0, "p99": 60.0},
        },
        "tick_ms": {"count": 1000, "p50": 1.2, "p99": 3.4},
        "process": {"cpu_ratio": 0.03, "rss_bytes": 180 * 2**20},
        "journal": {"up": True, "path": "journal.sqlite3", "error": None, "dropped": 0},
        "mqtt": None,
    }
    return {**status, **changes}


@dataclass
class FakeControl:
    """Keeps pins and pauses, refuses what the policy does not have."""

    pins: dict[str, tuple[str, float | None, str | None, str]] = field(default_factory=dict)
    paused: dict[str | None, tuple[float | None, str | None, str]] = field(default_factory=dict)
    released: dict[str | None, tuple[str | None, str | None, str]] = field(default_factory=dict)
    calls: int = 0

    def status(self) -> dict[str, Any]:
        return a_status(
            *(
                a_model(
                    name,
                    VARIANTS[name][0],
                    pinned=None
                    if name not in self.pins
                    else {
                        "variant": self.pins[name][0],
                        "why": self.pins[name][2],
                        "who": self.pins[name][3].name,
                        "until_unix_s": None,
                    },
                )
                for name in VARIANTS
            ),
            odd=float("nan"),
        )

    def explain(self, model: str | None) -> dict[str, Any]:
        names = list(VARIANTS) if model is None else [model]
        for name in names:
            if name not in VARIANTS:
                raise KeyError(name)
        decision = {
            "rate_rps": 10.0,
            "target": "wide",
            "candidates": a_model("digits")["candidates"],
        }
        return {
            "models": [
                {"name": name, "text": f"{name} is steady.", "decision": decision} for name in names
            ]
        }

    def history(self, model: str | None, limit: int) -> list[dict[str, Any]]:
        rows = [
            {
                "time_unix_s": 1_790_000_000.0 - index,
                "monotonic_s": 5.0,
                "kind": "switch",
                "model": name,
                "source": "digits_wide",
                "target": "digits_narrow",
                "outcome": "done",
                "switch_s": 0.0021,
                "transaction_s": 0.014,
                "reason": "escape",
                "error": None,
            }
            for index, name in enumerate([*VARIANTS] * 20)
        ]
        return [row for row in rows if model in (None, row["model"])][:limit]

    async def pin(
        self, model: str, variant: str, *, for_s: float | None, why: str | None, who: Caller
    ) -> CommandResult:
        self.calls += 1
        if variant not in VARIANTS.get(model, ()):
            return CommandResult(ok=False, message=f"{model} has no variant {variant}")
        self.pins[model] = (variant, for_s, why, who)
        return CommandResult(ok=True, message=f"{model} stays on {variant}")

    async def unpin(self, model: str, *, who: Caller) -> CommandResult:
        self.calls += 1
        if self.pins.pop(model, None) is None:
            return CommandResult(ok=False, message=f"{model} is not pinned")
        return CommandResult(ok=True, message=f"{model} is free again")

    async def pause(
        self, model: str | None, *, for_s: float | None, why: str | None, who: Caller
    ) -> CommandResult:
        self.calls += 1
        self.paused[model] = (for_s, why, who)
        return CommandResult(ok=True, message="paused")

    async def release(
        self, model: str | None, *, on: str | None, why: str | None, who: Caller
    ) -> CommandResult:
        self.calls += 1
        if on == "huge":
            return CommandResult(ok=False, message=f"{model} was not released on huge: no such")
        self.released[model] = (on, why, who.name)
        return CommandResult(ok=True, message=f"{model} is released: it stays on {on}")

    async def adopt(self, model: str | None, *, who: Caller) -> CommandResult:
        self.calls += 1
        self.released.pop(model, None)
        return CommandResult(ok=True, message=f"{model} is the governor's again")

    def alias(self, model: str) -> dict[str, Any]:
        if model not in VARIANTS:
            raise KeyError(model)
        return {
            "model": model,
            "virtual": True,
            "serving_model": "digits_wide",
            "serving": "wide",
            "config_pbtxt": f'name: "{model}"\nplatform: "ensemble"\n',
        }

    async def resume(self, model: str | None, *, who: Caller) -> CommandResult:
        self.calls += 1
        self.paused.pop(model, None)
        return CommandResult(ok=True, message="resumed")
