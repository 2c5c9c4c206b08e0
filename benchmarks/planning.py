"""Time the pure step: observation in, decisions out, learning included.

Prints processor time (not wall time: these machines are shared) per tick, for several sizes; the
p99 is of ticks at which statistics of every variant came. All variants are busy at every tick, with
requests of several sizes, and in the last column of one row each: then there are fewer points to
look at. `--plot F` draws how it grows with the number of models.
Run: `.venv/bin/python benchmarks/planning.py`
"""

import argparse
import time
from pathlib import Path

import numpy as np

from controller.daemon.steady import settle
from controller.planning.core import GovernorCore
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    Observation,
    VariantReading,
)

TICKS = 150


def measure(models: int, variants: int, *, alike: bool = False) -> np.ndarray:
    """Return processor seconds of each tick; `alike`: each request has one row."""
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
    settle()  # as the daemon does
    rng = np.random.default_rng(1)
    spent = []
    for tick in range(TICKS):
        observation = Observation(
            now_s=tick * 0.02,
            sequence=tick,
            models={m.name: ModelReading(m.name, m.variants[0].model) for m in policy.models},
            variants={
                name: reading(name, _batch_s(1 if alike else 2, i, variants), rng, alike=alike)
                for i, name in enumerate(names)
            },
            window_s=0.02,
            readings_age_s=0.001,
            host=HostReading(cpu_count=2),
            # Statistics come every half second.
            batch_samples=tuple(
                BatchSample(name, int(rows), 5, _batch_s(rows, i, variants), 0.2)
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


def _batch_s(rows: int, at: int, variants: int) -> float:
    """Return what a batch takes on one of all variants: the first of each model is the fastest."""
    return 0.0004 * rows * (1 + at % variants)


def reading(name: str, batch_s: float, rng: np.random.Generator, *, alike: bool) -> VariantReading:
    """Return what a busy variant did in a tick: in three batches of so many seconds each."""
    waiting, ended = int(rng.poisson(1)), int(rng.poisson(3))
    rows = ended if alike else 6
    return VariantReading(
        name,
        True,
        waiting,
        ended,
        rows,
        3,
        queue_s=0.5 * batch_s * ended,
        compute_s=batch_s * ended,
    )


def draw(models: list[int], ms: list[float], alike_ms: list[float], file: Path) -> None:
    """Draw the median milliseconds by the number of models, of requests of several sizes or one."""
    import matplotlib as mpl  # noqa: PLC0415 - only the plot needs it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for median_ms, color, what in (
        (ms, "#0072b2", "requests of several sizes"),
        (alike_ms, "#009e73", "of one row each"),
    ):
        slope = float(np.dot(models, median_ms) / np.dot(models, models))
        axes.plot(models, median_ms, "o", color=color, label=f"median of a tick, {what}")
        label = f"{slope:.2f} ms a model"
        axes.plot(models, slope * np.array(models), color=color, alpha=0.4, label=label)
    axes.axhline(50.0, color="#d55e00", linestyle="--", label="goal for 200 models")
    axes.set_xlabel("models of 8 variants")
    axes.set_ylabel("ms of processor time")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False)
    figure.savefig(file)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="where to draw the growth (SVG)")
    plot = parser.parse_args().plot
    sizes = [(1, 5), (1, 8), (5, 6)] + [(models, 8) for models in (10, 25, 50, 100, 150, 200)]
    print("models  variants   mean ms    p50 ms    p99 ms  p50 us a model  p50 ms, one row each")
    grown: list[tuple[int, float, float]] = []
    for models, variants in sizes:
        ms = measure(models, variants) * 1e3
        median_ms = float(np.median(ms))
        alike_ms = float(np.median(measure(models, variants, alike=True))) * 1e3
        print(
            f"{models:6d}  {variants:8d}  {ms.mean():8.2f}  {median_ms:8.2f}"
            f"  {np.quantile(ms, 0.99):8.2f}  {median_ms / models * 1e3:14.0f}  {alike_ms:20.2f}",
            flush=True,
        )
        if variants == 8:
            grown.append((models, median_ms, alike_ms))
    if plot is not None:
        counts, several_ms, alike = zip(*grown, strict=True)
        draw(list(counts), list(several_ms), list(alike), plot)


if __name__ == "__main__":
    main()
