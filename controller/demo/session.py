"""A whole demo, from nothing to the report; ends with nothing left running, however it ends.

Owns the order of things and the signals. The parts do the work.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console

from controller.demo import arms, batch, neighbour, report, scores
from controller.demo.arms import Arm
from controller.demo.bench import OBJECTIVE_MS, Models, open_bench, sample_models
from controller.demo.governed import Choice
from controller.demo.live import Plain, Quiet, Screen
from controller.demo.nightly import nightly
from controller.demo.scenario import Shape, bursty, steps
from controller.embedded.install import Installation, install
from controller.embedded.ladder import ensure_engines, ensure_ladder

WARMUP_S = 6.0
"""Calm load before an arm counts: models and the governor get to know each other."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    seconds: float  # per arm, warm-up not counted
    seed: int
    arms: str | None = None  # None: every variant fixed, and the governor
    quiet: bool = False
    scenario: str = "bursts"


def run(options: Options, console: Console) -> report.Outcome:
    """Run the demo.

    Raises:
        ValueError: an arm is not known.
        UnsupportedPlatformError, InstallError, LadderError, ServerError, LoadError,
        GovernorError: a part failed; the message says what to do.
    """
    if options.scenario == "batch":
        return _run_batch(options, console)
    with _stop_on_signals(), _view(options, console) as view:
        installation, models = prepare(view)
        chosen = arms.parse(options.arms, [choice.name for choice in _best_first(models)])
        shape = Shape()
        with open_bench(installation, models) as bench:
            bench.calibrate(shape, view.stage)
            schedule = bursty(
                bench.scale,
                seed=options.seed,
                duration_s=options.seconds,
                warmup_s=WARMUP_S,
                shape=shape,
            )
            results = tuple(arms.run(bench, arm, schedule, view) for arm in chosen)
            return report.Outcome(
                results=results,
                schedule=schedule,
                served=bench.served,
                objective_ms=bench.objective_ms,
                triton_version=installation.triton_version,
                seed=options.seed,
            )


def _run_batch(options: Options, console: Console) -> report.Outcome:
    with _stop_on_signals(), neighbour.device() as core, _view(options, console) as view:
        installation = install(view.stage)
        models = batch.engine_models(ensure_engines(installation, view.stage))
        names = [choice.name for choice in _best_first(models)]
        chosen = arms.parse(options.arms, names)
        with open_bench(installation, models, core=core) as bench:
            plan = batch.calibrate(bench, view.stage)
            view.set_objective(plan.objective_ms)
            schedule = nightly(
                plan.day_rps,
                plan.night_rps,
                plan.rows,
                seed=options.seed,
                duration_s=options.seconds,
                warmup_s=WARMUP_S,
            )
            results = tuple(arms.run(bench, arm, schedule, view) for arm in chosen)
            return report.Outcome(
                results=results,
                schedule=schedule,
                served=bench.served,
                objective_ms=bench.objective_ms,
                triton_version=installation.triton_version,
                seed=options.seed,
                plan=plan,
            )


def measure_relief(options: Options, count: int, console: Console) -> dict[str, Any]:
    """Measure the time to relief over so many sudden steps at random phase.

    Returns:
        How many steps needed relief, and quantiles of the time to the switch and to the answer.
    """
    with _stop_on_signals(), _view(options, console) as view:
        installation, models = prepare(view)
        shape = Shape()
        with open_bench(installation, models) as bench:
            bench.calibrate(shape, view.stage)
            schedule = steps(
                bench.scale, seed=options.seed, count=count, warmup_s=WARMUP_S, shape=shape
            )
            result = arms.run(bench, Arm(), schedule, view)
    assert result.governed is not None  # noqa: S101 - it is the governor's arm
    relief = result.governed.relief
    return {
        "steps": len(schedule.bursts),
        "needed": relief.bursts,
        "failed": result.score.failed,
        "switch_ms": _quantiles(relief.switches_ms),
        "answer_ms": _quantiles(relief.answers_ms),
    }


def prepare(view: Quiet) -> tuple[Installation, Models]:
    """Install the server and train the sample models, each once per machine."""
    installation = install(view.stage)
    return installation, sample_models(ensure_ladder(installation, view.stage))


def _best_first(models: Models) -> list[Choice]:
    return sorted(models.choices, key=lambda choice: -choice.quality)


def _quantiles(values_ms: tuple[float, ...]) -> dict[str, Any]:
    return {
        "count": len(values_ms),
        "p50": scores.quantile(values_ms, 50),
        "p95": scores.quantile(values_ms, 95),
        "max": max(values_ms, default=None),
    }


@contextmanager
def _view(options: Options, console: Console) -> Iterator[Quiet]:
    view: Quiet
    if options.quiet:
        view = Quiet()
    elif console.is_terminal:
        view = Screen(console, OBJECTIVE_MS)
    else:
        view = Plain(console)
    try:
        yield view
    finally:
        view.close()


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into KeyboardInterrupt, and ignore the next ones.

    What follows is the orderly end, which is bounded in time; a second Ctrl-C would only leave
    parts of it undone.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks to outlive a terminal
        numbers.append(signal.SIGHUP)

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
