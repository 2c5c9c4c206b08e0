"""Load for a governor that somebody tries out by hand: calm, a burst, calm, on the running Triton.

Owns how such a load is scaled to the machine and what is told of it while it runs. It must not
start or change a server: the one that runs is asked, under the name that it is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controller.demo.bench import OBJECTIVE_MS, Models, sample_models
from controller.demo.load import LoadError, LoadRun, Progress, Target, measure, write_pages
from controller.demo.scenario import Scale, Schedule, Shape, bursty
from controller.embedded.ladder import Ladder

_MEASURE_S = 1.0
_SHAPE = Shape(calm_s=(5.0, 7.0), burst_s=(3.0, 4.0))
"""Bursts of the demo's height, longer: a person looks on."""
_WORDS_EVERY = 4
"""The generator speaks four times a second."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the load, from the client's side."""

    requests: int
    failed: int
    late: int  # answered after the objective of the sample policy
    answers: dict[str, int]  # by the variant that gave them


def run(
    ladder: Ladder, address: str, model: str, seconds: float, seed: int, say: Callable[[str], None]
) -> Summary:
    """Measure two variants for a second each, then send the load.

    Raises:
        LadderError: the sample requests cannot be read.
        LoadError: nobody answers, or the generator failed; the message says what to do.
    """
    models = sample_models(ladder)
    with tempfile.TemporaryDirectory(prefix="triton-governor-load-") as name:
        folder = Path(name)
        pages = folder / "pages.npz"
        write_pages(pages, models.pages, models.labels)

        def target(called: str) -> Target:
            return Target(address, called, models.tensors, pages, OBJECTIVE_MS)

        say("measuring for two seconds what this machine bears")
        schedule = bursty(_scale(ladder, target), seed=seed, duration_s=seconds, shape=_SHAPE)
        return _send(target(model), schedule, folder, models, say)


def _scale(ladder: Ladder, target: Callable[[str], Target]) -> Scale:
    best = max(ladder.variants, key=lambda variant: variant.quality)
    fastest = ladder.variants[0]
    rates_rps = [
        measure(target(variant.model), duration_s=_MEASURE_S, shape=_SHAPE).requests_rps
        for variant in (best, fastest)
    ]
    return Scale(best_rps=rates_rps[0], fastest_rps=rates_rps[1])


def _send(
    target: Target, schedule: Schedule, folder: Path, models: Models, say: Callable[[str], None]
) -> Summary:
    names = [choice.name for choice in models.choices]
    say("  time    sent   rate  failed  waiting   p50 ms   p99 ms  answered by")
    with LoadRun(target, schedule, folder) as load:
        for index, progress in enumerate(load):
            if index % _WORDS_EVERY == 0:
                say(_line(progress, names))
        records = load.records()
    if not records.answered.any():
        told = "; ".join(records.errors) or "nobody answered"
        raise LoadError(
            f"no request for {target.model} on {target.address} was answered: {told}. "
            "Does a governor serve this name (`governor status`)?"
        )
    answers = {
        name: count
        for number, name in enumerate(names)
        if (count := int((records.variant == number).sum()))
    }
    late = int((records.latency_ms[records.answered] > target.objective_ms).sum())
    return Summary(len(records.due_s), int((~records.answered).sum()), late, answers)


def _line(progress: Progress, names: list[str]) -> str:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    by = names[progress.variant] if 0 <= progress.variant < len(names) else "-"
    return (
        f"{max(progress.time_s, 0.0):5.0f} s {progress.sent:7d} {progress.rate_rps:6.0f} "
        f"{progress.failed:7d} {progress.in_flight:8d} {ms(progress.p50_ms):>8} "
        f"{ms(progress.p99_ms):>8}  {by}"
    )
