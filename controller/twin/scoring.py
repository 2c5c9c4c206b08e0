"""Scores of a run, and of several runs together.

Owns the arithmetic of effective quality, attainment, headroom and their intervals over seeds. It
must not run anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from controller.twin.drive import Outcome

Floats = NDArray[np.float64]

STEPS: Final = 240  # of the timeline
_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """How one policy did with one seed. Field's usual score: effective quality."""

    requests: int
    slo_attainment: float
    effective_quality: float
    mean_quality: float  # of what was answered
    p99_ms: float
    switches: int
    decision_ms: float  # mean
    coverage: float  # share of requests within what was stated of them; NaN: nobody states
    stated_over_p99: float  # mean of what was stated, in p99 of what came; NaN: nobody states
    gpus: float  # that served, mean over time


def score(outcome: Outcome, quality: Floats, limit_s: float) -> Score:
    """Score a run; whatever was not answered is a miss."""
    met, got = _met(outcome, quality, limit_s)
    answered = outcome.served_by >= 0
    count = len(met)
    p99_s = float(np.quantile(outcome.latency_s, 0.99, method="higher"))
    coverage, stated_over_p99 = _calibration(outcome, p99_s)
    return Score(
        requests=count,
        slo_attainment=float(met.sum() / count),
        effective_quality=float((got * met).sum() / count),
        mean_quality=float(got[answered].mean()) if answered.any() else 0.0,
        p99_ms=p99_s * 1e3,
        switches=outcome.switches,
        decision_ms=float(outcome.decision_s.mean() * 1e3) if len(outcome.decision_s) else 0.0,
        coverage=coverage,
        stated_over_p99=stated_over_p99,
        gpus=outcome.gpus,
    )


def _calibration(outcome: Outcome, p99_s: float) -> tuple[float, float]:
    """Return how many requests were within what was stated, and how sharp that was."""
    if outcome.stated_s is None or not np.isfinite(outcome.stated_s).any():
        return math.nan, math.nan
    told = np.isfinite(outcome.stated_s)
    stated_s = outcome.stated_s[told]
    return float((outcome.latency_s[told] <= stated_s).mean()), float(stated_s.mean() / p99_s)


def _met(outcome: Outcome, quality: Floats, limit_s: float) -> tuple[NDArray[np.bool_], Floats]:
    """Return which requests were answered in time, and the quality of all answers. [requests]."""
    answered = outcome.served_by >= 0
    got = np.where(answered, quality[outcome.served_by], 0.0)
    return answered & (outcome.latency_s <= limit_s), got


def timeline(
    outcome: Outcome, quality: Floats, limit_s: float, arrivals_s: Floats, duration_s: float
) -> Floats:
    """Return the effective quality of what arrived in each step; NaN: nothing did. [STEPS]."""
    met, got = _met(outcome, quality, limit_s)
    step = np.minimum((arrivals_s / duration_s * STEPS).astype(np.int64), STEPS - 1)
    count = np.bincount(step, minlength=STEPS)
    total = np.bincount(step, weights=got * met, minlength=STEPS)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mean_by_step(runs: Sequence[Floats]) -> list[float | None]:
    """Return the mean over seeds; None: nothing arrived with any."""
    seen = np.stack(runs)
    known = np.isfinite(seen)
    count = known.sum(axis=0)
    means = np.where(known, seen, 0.0).sum(axis=0) / np.maximum(count, 1)
    return [float(m) if n else None for m, n in zip(means, count.tolist(), strict=True)]


def summed_up(scores: Sequence[Score], floor: Floats, oracle: float) -> dict[str, Any]:
    """Return the means over seeds and half of their intervals, ready for JSON.

    Args:
        scores: one for each seed.
        floor: the effective quality of the fastest fixed variant. [seeds].
        oracle: the fluid bound of the effective quality.

    """
    columns = {
        field: np.array([getattr(one, field) for one in scores], dtype=np.float64)
        for field in (
            "slo_attainment",
            "effective_quality",
            "mean_quality",
            "p99_ms",
            "switches",
            "decision_ms",
            "coverage",
            "stated_over_p99",
            "gpus",
        )
    }
    room = np.where(np.abs(oracle - floor) > 1e-9, oracle - floor, math.nan)
    columns["headroom_captured"] = (columns["effective_quality"] - floor) / room
    means = {field: finite(float(values.mean())) for field, values in columns.items()}
    return {
        **means,
        "ci95": {field: half_width(values) for field, values in columns.items()},
    }


def half_width(values: Floats) -> float | None:
    """Return half of the interval of the mean over seeds (Student's t); None: there is none."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    return finite(float(stats.t.ppf(0.5 + _CONFIDENCE / 2.0, len(values) - 1)) * spread)


def finite(value: float) -> float | None:
    """Return a number that JSON has: an infinite latency is none."""
    return value if math.isfinite(value) else None
