"""Time the pure step: observation in, decisions out.

Prints processor time (not wall time: these machines are shared) per tick, for several sizes: of the
whole step, and of prediction and choice alone, without what is learned from the observation. The
p99 is of ticks at which statistics of every variant came. All variants are busy at every tick, with
requests of several sizes; in the last columns they are of one row each, so that there are fewer
points to look at, and one variant of each model serves, as is usual.
`--plot F` draws how it grows with the number of models; `--memory N` tells instead how much memory
N models need as time goes by.
Run: `.venv/bin/python benchmarks/planning.py`
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from controller.daemon.steady import settle
from controller.planning.core import GovernorCore
from controller.planning.decision import Decision
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.prediction.placement import Placement
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    Observation,
    VariantReading,
)

TICKS = 150
MANY_TICKS = 5000

Floats = NDArray[np.float64]


class Timed(GovernorCore):
    """Takes the time of prediction and choice, too."""

    decided_s = 0.0

    def _decide(
        self, observation: Observation, placement: Placement, *, stalled: bool
    ) -> tuple[Decision, ...]:
        began = time.thread_time()
        decisions = super()._decide(observation, placement, stalled=stalled)
        self.decided_s = time.thread_time() - began
        return decisions


def policy_of(models: int, variants: int) -> Policy:
    """Return the policy of so many models that are alike."""
    return Policy(
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


def observations(
    policy: Policy, ticks: int, *, alike: bool = False, all_busy: bool = True
) -> Iterator[Observation]:
    """Yield what is seen of them at each tick.

    Args:
        policy: of models that have as many variants each.
        ticks: how many.
        alike: whether each request has one row.
        all_busy: whether every variant has requests, and not the first of each model alone.
    """
    variants = len(policy.models[0].variants)
    names = [v.model for m in policy.models for v in m.variants]
    rng = np.random.default_rng(1)
    for tick in range(ticks):
        yield Observation(
            now_s=tick * 0.02,
            sequence=tick,
            models={m.name: ModelReading(m.name, m.variants[0].model) for m in policy.models},
            variants={
                name: reading(name, _batch_s(1 if alike else 2, i, variants), rng, alike=alike)
                if all_busy or i % variants == 0
                else VariantReading(name, True, 0)
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


def measure(models: int, variants: int, *, alike: bool = False, all_busy: bool = True) -> Floats:
    """Return processor seconds of each tick: of the whole step, and without learning. [ticks, 2].

    See `observations`.
    """
    policy = policy_of(models, variants)
    core = Timed(policy)
    settle()  # as the daemon does
    spent = []
    for observation in observations(policy, TICKS, alike=alike, all_busy=all_busy):
        began = time.thread_time()
        core.step(observation)
        spent.append((time.thread_time() - began, core.decided_s))
    return np.array(spent[TICKS // 10 :])


def remember(models: int) -> None:
    """Print how much memory is in use, and the longest of the last ticks, as time goes by."""
    policy = policy_of(models, 8)
    core = GovernorCore(policy)
    settle()
    process, longest_s = psutil.Process(), 0.0
    print(f"{models} models, ticks; MB; the longest tick of the last ones, ms")
    for tick, observation in enumerate(observations(policy, MANY_TICKS + 1)):
        began = time.thread_time()
        core.step(observation)
        longest_s = max(longest_s, time.thread_time() - began)
        if tick in {100, *range(1000, MANY_TICKS + 1, 1000)}:
            used_mb = process.memory_info().rss / 1e6
            print(f"{tick:6d}  {used_mb:6.0f}  {longest_s * 1e3:6.1f}", flush=True)
            longest_s = 0.0


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


def draw(models: list[int], found: dict[str, list[float]], file: Path) -> None:
    """Draw the median milliseconds of each kind by the number of models."""
    import matplotlib as mpl  # noqa: PLC0415 - only the plot needs it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    colors = ("#0072b2", "#cc79a7", "#009e73", "#56b4e9")
    for color, (what, median_ms) in zip(colors, found.items(), strict=True):
        slope = float(np.dot(models, median_ms) / np.dot(models, models))
        label = f"{what}: {slope:.2f} ms a model"
        axes.plot(models, median_ms, "o", color=color, label=label)
        axes.plot(models, slope * np.array(models), color=color, alpha=0.4)
    axes.axhline(50.0, color="#d55e00", linestyle="--", label="goal for 200 models")
    axes.set_xlabel("models of 8 variants")
    axes.set_ylabel("ms of processor time, median of a tick")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False)
    figure.savefig(file)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="where to draw the growth (SVG)")
    parser.add_argument("--memory", type=int, metavar="MODELS", help="what so many models keep")
    args = parser.parse_args()
    if args.memory:
        remember(args.memory)
        return
    plot = args.plot
    sizes = [(1, 5), (1, 8), (5, 6)] + [(models, 8) for models in (10, 25, 50, 100, 150, 200)]
    print("milliseconds        whole step               predict, choose   one row   one serves")
    print("models  variants    mean     p50     p99     p50   us a model       p50          p50")
    found: dict[str, list[float]] = {}
    counts = []
    for models, variants in sizes:
        ms = measure(models, variants) * 1e3
        step_ms, decide_ms = np.median(ms, axis=0).tolist()
        alike_ms, usual_ms = (
            float(np.median(measure(models, variants, **kind)[:, 0])) * 1e3
            for kind in ({"alike": True}, {"all_busy": False})
        )
        print(
            f"{models:6d}  {variants:8d}  {ms[:, 0].mean():6.2f}  {step_ms:6.2f}"
            f"  {np.quantile(ms[:, 0], 0.99):6.2f}"
            f"  {decide_ms:6.2f}  {decide_ms / models * 1e3:11.0f}"
            f"  {alike_ms:8.2f}  {usual_ms:11.2f}",
            flush=True,
        )
        if variants == 8:
            counts.append(models)
            for what, value_ms in (
                ("every variant busy", step_ms),
                ("one of each model busy", usual_ms),
                ("every one busy, requests of one row", alike_ms),
                ("prediction and choice alone", decide_ms),
            ):
                found.setdefault(what, []).append(value_ms)
    if plot is not None:
        draw(counts, found, plot)


if __name__ == "__main__":
    main()
