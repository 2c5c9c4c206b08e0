"""What is left of a demo: the JSON, and the few lines a newcomer needs next.

Owns their shape. It must not measure.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.demo import scores
from controller.demo.arms import Arm, Result
from controller.demo.nightly import Plan
from controller.demo.scenario import Schedule
from controller.demo.scores import Served

_LATE_LIMIT = 0.1  # of the objective: above it the generator itself is part of the result
# For a moment: an overload of the server made it late by 21 ms at most (docs/demo.md).
STOOD_STILL_MS = 50.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole demo."""

    results: tuple[Result, ...]
    schedule: Schedule
    served: tuple[Served, ...]
    objective_ms: float
    triton_version: str
    seed: int
    plan: Plan | None = None  # of the batch scenario

    def result(self, arm: Arm) -> Result | None:
        """Return an arm's result, if it ran."""
        return next((result for result in self.results if result.arm == arm), None)


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return the demo's numbers in the published form. Units are in the names."""
    governed = next((r.governed for r in outcome.results if r.arm == Arm()), None)
    switch_ms = [switch.switch_ms for switch in governed.switches] if governed else []
    whole_ms = (
        [switch.transaction_ms for switch in governed.switches if switch.transaction_ms is not None]
        if governed
        else []
    )
    answers_ms = governed.relief.answers_ms if governed else ()
    ticks = governed.tick_ms if governed else {}
    return {
        "arms": [_arm(result) for result in outcome.results],
        "switch_ms": {
            "count": len(switch_ms),
            "p50": _rounded(scores.quantile(switch_ms, 50)),
            "p99": _rounded(scores.quantile(switch_ms, 99)),
        },
        "transaction_ms": {
            "p50": _rounded(scores.quantile(whole_ms, 50)),
            "p99": _rounded(scores.quantile(whole_ms, 99)),
        },
        "relief_ms": {
            "p50": _rounded(scores.quantile(answers_ms, 50)),
            "p95": _rounded(scores.quantile(answers_ms, 95)),
        },
        "tick_ms": {"p50": _rounded(ticks.get("p50")), "p99": _rounded(ticks.get("p99"))},
        "governor": {
            "cpu_ratio": _rounded(governed.usage.cpu_ratio, 4) if governed else None,
            "rss_bytes": governed.usage.rss_bytes if governed else None,
        },
        "triton_version": outcome.triton_version,
        "gpu": governed.gpu if governed else None,
    }


def details(outcome: Outcome) -> dict[str, Any]:
    """Return what the published form leaves out and an experiment wants to know."""
    return {
        "seed": outcome.seed,
        "objective_ms": outcome.objective_ms,
        "duration_s": outcome.schedule.duration_s,
        "capacity_rps": {v.name: _rounded(v.requests_rps, 1) for v in outcome.served},
        "quality": {v.name: v.quality for v in outcome.served},
        "arms": {
            result.arm.name: {
                **dataclasses.asdict(result.score),
                "errors": dict(result.records.errors),
                "answers": _answers(result, outcome.served),
                **_governed(result),
            }
            for result in outcome.results
        },
    }


def warnings(outcome: Outcome) -> list[str]:
    """Return what makes this run's numbers worth less, a sentence each."""
    found = []
    for result in outcome.results:
        name, score = result.arm.name, result.score
        if score.late_p99_ms > _LATE_LIMIT * outcome.objective_ms:
            found.append(
                f"{name}: the load generator itself was late by {score.late_p99_ms:.1f} ms (p99): "
                "the machine is too busy for these latencies to be the server's alone"
            )
        if score.late_max_ms > STOOD_STILL_MS:
            found.append(
                f"{name}: the load generator itself once was late by {score.late_max_ms:.0f} ms: "
                "the machine stood still, and what was late then says little of the server"
            )
    return found


def write(path: Path, document: dict[str, Any]) -> None:
    """Write JSON; the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def findings(outcome: Outcome) -> list[str]:
    """Return what the run shows, a sentence each; nothing without a governor and a fixed arm."""
    governor = outcome.result(Arm())
    fixed = [result for result in outcome.results if result.arm.variant is not None]
    if governor is None or governor.governed is None or not fixed:
        return []
    best = max(fixed, key=lambda result: result.score.effective_quality)
    gain = governor.score.effective_quality - best.score.effective_quality
    governed = governor.governed
    lines = [
        f"Governor: {_words(governor)}.",
        f"Best fixed variant: {best.arm.variant}, {_words(best)}.",
        f"Difference in effective quality: {gain:+.4f}.",
    ]
    if governed.switches:
        numbers = summary(outcome)
        switch, relief = numbers["switch_ms"], numbers["relief_ms"]
        relieved = "" if relief["p50"] is None else f", relief {relief['p50']:.0f} ms (median)"
        lines.append(
            f"Switches: {switch['count']}, {switch['p50']:.1f} ms median, {switch['p99']:.1f} ms "
            f"p99{relieved}. The governor took {governed.usage.cpu_ratio:.1%} of a core and "
            f"{governed.usage.rss_bytes / 2**20:.0f} MiB."
        )
    return lines


NEXT = """\
Next (`make demo` puts the command into .venv/bin):
  governor triton start                       the same Triton and models, in the foreground
  governor policy example demo > demo.yaml    a policy for them
  governor run --policy demo.yaml             govern it (in another terminal)
  governor triton load digits                 send it load (in a third)
  governor status --watch, governor explain   see what it does, and why
On your own Triton: start it with --model-control-mode=explicit, name your variants in a policy;
`governor doctor --policy FILE` says what else to change. Begin with `mode: advise`."""


def _words(result: Result) -> str:
    score = result.score
    return (
        f"effective quality {score.effective_quality:.4f}, {score.slo_attainment:.2%} of requests "
        f"in time, {score.failed} failed"
    )


def _arm(result: Result) -> dict[str, Any]:
    score = result.score
    return {
        "name": result.arm.name,
        "requests": score.requests,
        "failed": score.failed,
        "slo_attainment": _rounded(score.slo_attainment, 6),
        "effective_quality": _rounded(score.effective_quality, 6),
        "mean_quality": _rounded(score.mean_quality, 6),
        "p50_ms": _rounded(score.p50_ms),
        "p99_ms": _rounded(score.p99_ms),
        "switches": len(result.governed.switches) if result.governed else 0,
    }


def _answers(result: Result, served: Sequence[Served]) -> dict[str, int]:
    counted = result.records.counted()
    return {v.name: int((counted.variant == number).sum()) for number, v in enumerate(served)}


def _governed(result: Result) -> dict[str, Any]:
    if result.governed is None:
        return {}
    return {
        "usage": dataclasses.asdict(result.governed.usage),
        "relief": dataclasses.asdict(result.governed.relief),
        "switch_at_s": [round(switch.at_s, 4) for switch in result.governed.switches],
        "switch_to": [switch.target for switch in result.governed.switches],
    }


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(float(value), digits)
