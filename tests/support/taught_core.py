"""A core that knows its variants, and what it is shown."""

from __future__ import annotations

from dataclasses import replace

from bench_server import Variant

from controller.planning.core import GovernorCore
from controller.policy.model import (
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    Observation,
    VariantReading,
)

LIMIT_S = 0.060
SERVERS = {
    "m_tiny": Variant(0.0002, 0.0003),
    "m_mid": Variant(0.0002, 0.0012),
    "m_big": Variant(0.0002, 0.0028),
}
QUALITY = {"m_tiny": 0.85, "m_mid": 0.91, "m_big": 0.935}
POLICY = Policy(
    triton=TritonPolicy("127.0.0.1:8001", None, None),
    models=(
        ModelPolicy(
            "m",
            Objective(LIMIT_S, 99.0),
            tuple(VariantPolicy(k[2:], k, q) for k, q in QUALITY.items()),
            client_max_batch=8,
        ),
    ),
)


def observation(now_s: float, **changes: object) -> Observation:
    """Return what a quiet model looks like, but for the changes."""
    base = Observation(
        now_s=now_s,
        sequence=int(now_s * 50),
        models={"m": ModelReading("m", "m_big", 0.0, ready=True)},
        variants={k: VariantReading(k, ready=True, pending_requests=0) for k in SERVERS},
        window_s=0.02,
        readings_age_s=0.001,
        host=HostReading(cpu_count=2),
    )
    return replace(base, **changes)


def taught() -> GovernorCore:
    """Return a core that knows its variants."""
    core = GovernorCore(POLICY)
    for tick in range(200):
        samples = tuple(
            BatchSample(k, rows, 1, server.service_s(rows), 0.1)
            for k, server in SERVERS.items()
            for rows in (1, 2, 4, 8)
        )
        core.step(observation(tick * 0.02, batch_samples=samples))
    return core
