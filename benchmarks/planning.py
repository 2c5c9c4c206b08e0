"""Time the pure step: observation in, decisions out.

Prints processor time (not wall time: these machines are shared) per tick, for several sizes.
Run: `.venv/bin/python benchmarks/planning.py`
"""

import time

import numpy as np

from controller.planning.core import GovernorCore
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    Observation,
    VariantReading,
)

TICKS = 300


def measure(models: int, variants: int) -> np.ndarray:
    """Return processor seconds of each tick."""
    policy = Policy(
        triton=TritonPolicy("127.0.0.1:8001", None, None),
        models=tuple(
            ModelPolicy(
                f"m{m}",
                Objective(0.060, 99.0),
                tuple(
                    VariantPolicy(f"v{v}", f"m{m}_v{v}", 0.8 + 0.02 * v) for v in range(variants)
                ),
                client_max_batch=8,
            )
            for m in range(models)
        ),
    )
    names = [v.model for m in policy.models for v in m.variants]
    core = GovernorCore(policy)
    rng = np.random.default_rng(1)
    spent = []
    for tick in range(TICKS):
        observation = Observation(
            now_s=tick * 0.02,
            sequence=tick,
            models={m.name: ModelReading(m.name, m.variants[0].model) for m in policy.models},
            variants={
                name: VariantReading(name, True, int(rng.poisson(1)), int(rng.poisson(3)), 6, 3)
                for name in names
            },
            window_s=0.02,
            readings_age_s=0.001,
            host=HostReading(cpu_count=2),
            # Statistics come every half second.
            batch_samples=tuple(
                BatchSample(name, int(rows), 5, 0.0005 * rows * (1 + i % variants), 0.2)
                for i, name in enumerate(names)
                for rows in (1, 2, 4, 8)
            )
            if tick % 25 == 0
            else (),
        )
        began = time.thread_time()
        core.step(observation)
        spent.append(time.thread_time() - began)
    return np.array(spent[TICKS // 10 :])


def main() -> None:
    """Print the table."""
    print("models  variants   mean ms    p50 ms    p99 ms")
    for models, variants in ((1, 5), (1, 8), (5, 6), (20, 8)):
        ms = measure(models, variants) * 1e3
        print(
            f"{models:6d}  {variants:8d}  {ms.mean():8.2f}  {np.median(ms):8.2f}"
            f"  {np.quantile(ms, 0.99):8.2f}"
        )


if __name__ == "__main__":
    main()
