"""What an arm's records are worth: the table's numbers and the time to relief.

Owns the definitions. Pure. The latency judged here is the client's, from the intended send time:
stricter than the server's own, which the governor steers by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.demo.records import Records
from controller.demo.scenario import Schedule


@dataclass(frozen=True, slots=True)
class Served:
    """A variant as answers name it."""

    name: str
    quality: float
    requests_rps: float  # what it gets through on this machine: orders the variants by speed
    max_batch: int | None = None  # rows of an engine of a fixed shape; None: it has none


@dataclass(frozen=True, slots=True)
class Score:
    """One arm. Quantiles are over answered requests; whatever has no answer is a miss."""

    requests: int
    failed: int
    slo_attainment: float
    effective_quality: float
    mean_quality: float | None  # of answered requests
    p50_ms: float | None
    p99_ms: float | None
    accuracy: float | None  # rows read right, of the rows answered
    effective_accuracy: float  # rows read right and in time, of all rows
    late_p99_ms: float  # how late the generator itself was
    late_max_ms: float


@dataclass(frozen=True, slots=True)
class Relief:
    """How fast each burst was answered by a faster variant. Milliseconds.

    Both count from the first intended send at a rate that the variant in service cannot bear: on
    a sudden step that is the first at the new rate, on a ramp the one at which help is needed. 0:
    help was there before.
    """

    answers_ms: tuple[float, ...]  # to the first answer of a faster variant to one of its requests
    switches_ms: tuple[float, ...]  # to the alias's move to a faster variant
    bursts: int  # that were more than the variant in service could bear


def score(records: Records, variants: Sequence[Served], *, objective_ms: float) -> Score:
    """Score the counted part of an arm.

    Args:
        records: everything that was sent; the warm-up is left out here.
        variants: in the order of their numbers in answers.
        objective_ms: the latency that a request must meet.
    """
    counted = records.counted()
    requests = len(counted.due_s)
    answered = counted.answered
    latency_ms = counted.latency_ms[answered]
    in_time = np.zeros(requests, bool)
    in_time[answered] = latency_ms <= objective_ms
    qualities = np.array([variant.quality for variant in variants])
    quality = np.zeros(requests)
    quality[answered] = qualities[counted.variant[answered]]
    rows, rows_answered = int(counted.rows.sum()), int(counted.rows[answered].sum())
    some = bool(answered.any())
    late_ms = counted.late_ms[np.isfinite(counted.late_ms)]
    return Score(
        requests=requests,
        failed=int(requests - answered.sum()),
        slo_attainment=float(in_time.mean()) if requests else 0.0,
        effective_quality=float((quality * in_time).mean()) if requests else 0.0,
        mean_quality=float(quality[answered].mean()) if some else None,
        p50_ms=float(np.percentile(latency_ms, 50)) if some else None,
        p99_ms=float(np.percentile(latency_ms, 99)) if some else None,
        accuracy=float(counted.correct.sum() / rows_answered) if rows_answered else None,
        effective_accuracy=float(counted.correct[in_time].sum() / rows) if rows else 0.0,
        late_p99_ms=float(np.percentile(late_ms, 99)) if len(late_ms) else 0.0,
        late_max_ms=float(late_ms.max()) if len(late_ms) else 0.0,
    )


def relief(
    records: Records,
    variants: Sequence[Served],
    schedule: Schedule,
    switches: Sequence[tuple[float, int]],
) -> Relief:
    """Measure the time to relief of each burst.

    Faster means faster than what answered last before the burst. One in which nothing faster came
    counts with its whole length.

    Args:
        records: everything that was sent.
        variants: in the order of their numbers in answers.
        schedule: what was sent.
        switches: moves of the alias: when, on the schedule's scale, and to which number.
    """
    speeds = np.array([variant.requests_rps for variant in variants])
    answered_at_s = records.answered_at_s
    answers_ms: list[float] = []
    switches_ms: list[float] = []
    needed = 0
    for burst in schedule.bursts:
        before = np.flatnonzero(records.answered & (answered_at_s < burst.start_s))
        if not len(before):
            continue
        serving = records.variant[before[np.argmax(answered_at_s[before])]]
        inside = (schedule.rate_at_s >= burst.start_s) & (schedule.rate_at_s <= burst.end_s)
        unbearable_s = schedule.rate_at_s[inside & (schedule.rate_rps > speeds[serving])]
        if not len(unbearable_s) or speeds[serving] >= speeds.max():
            continue
        during = np.flatnonzero((records.due_s >= burst.start_s) & (records.due_s < burst.end_s))
        first = np.searchsorted(records.due_s, unbearable_s[0])
        if first >= len(records.due_s) or records.due_s[first] >= burst.end_s:
            continue
        needed += 1
        first_s = float(records.due_s[first])
        faster = during[records.answered[during]]
        faster = faster[speeds[records.variant[faster]] > speeds[serving]]
        # Where help never came, it took at least the whole burst.
        answered_s = float(answered_at_s[faster].min()) if len(faster) else burst.end_s
        answers_ms.append(max(answered_s - first_s, 0.0) * 1e3)
        helped_s = burst.end_s
        for at_s, target in switches:
            if burst.start_s <= at_s < burst.end_s and speeds[target] > speeds[serving]:
                helped_s = at_s
                break
        switches_ms.append(max(helped_s - first_s, 0.0) * 1e3)
    return Relief(tuple(answers_ms), tuple(switches_ms), needed)


def quantile(values: Sequence[float], percent: float) -> float | None:
    """Return a quantile, or None of nothing."""
    return float(np.percentile(values, percent)) if len(values) else None
