"""How good answers are, row by row, and how sure the mean is.

Owns the metrics and the intervals. Pure: it must not read files or ask anybody.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

_LEVEL: Final = 0.95


class Metric(enum.StrEnum):
    """What of an answer is compared. Every one gives a row a score from 0 to 1."""

    TOP1 = "top1"  # the greatest score is at the label
    AGREEMENT = "agreement"  # the greatest score is where the reference has it
    COSINE = "cosine"  # of the angle to what is expected; less than 0 counts as 0
    ERROR = "error"  # 1 less the distance to what is expected, over the length of that
    EXACT = "exact"  # all of it is as expected: for text


class MetricError(Exception):
    """Answers that a metric cannot be taken of; the text says why."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the interval in which it is with 95 % confidence."""

    mean: float
    low: float
    high: float
    rows: int
    groups: int  # that rows were sampled in; as many as rows where each is one


def score(metric: Metric, answers: Any, expected: Any) -> Floats:
    """Return the score of each row.

    Args:
        metric: what is compared.
        answers: of the variant. [rows, ...].
        expected: labels for `top1` [rows]; else what the answer should be [rows, ...].

    Raises:
        MetricError: the shapes do not suit the metric.
    """
    got, wanted = np.asarray(answers), np.asarray(expected)
    if len(got) != len(wanted):
        raise MetricError(f"{len(got)} answers, but {len(wanted)} expected ones")
    if metric is Metric.EXACT:
        return _exact(got, wanted)
    if got.dtype.kind not in "fiub" or wanted.dtype.kind not in "fiub":
        raise MetricError(f"{metric} needs numbers; text is compared with `exact`")
    flat = got.reshape(len(got), -1).astype(np.float64)
    if metric is Metric.TOP1:
        return _top1(flat, wanted)
    target = wanted.reshape(len(wanted), -1).astype(np.float64)
    if flat.shape != target.shape:
        raise MetricError(f"{flat.shape[1]} numbers a row, but {target.shape[1]} are expected")
    if metric is Metric.AGREEMENT:
        _check_scores(flat)
        return _as_scores(flat.argmax(axis=1) == target.argmax(axis=1))
    length = np.linalg.norm(target, axis=1)
    if metric is Metric.COSINE:
        own = np.linalg.norm(flat, axis=1)
        both = own * length
        cosine = (flat * target).sum(axis=1) / np.where(both > 0.0, both, 1.0)
        # Nothing beside nothing is the same; beside something it is not.
        cosine = np.where(both > 0.0, cosine, (own == length).astype(np.float64))
        return _unit(cosine)
    distance = np.linalg.norm(flat - target, axis=1)
    relative = np.where(length > 0.0, distance / np.where(length > 0.0, length, 1.0), distance)
    return _unit(1.0 - relative)


def _top1(scores: Floats, labels: NDArray[Any]) -> Floats:
    _check_scores(scores)
    if labels.size != len(labels):
        raise MetricError("top1 needs one label a row")
    if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
        raise MetricError("top1 needs whole numbers as labels")
    flat = labels.reshape(-1)
    if len(flat) and (flat.min() < 0 or flat.max() >= scores.shape[1]):
        raise MetricError(f"a label is not from 0 to {scores.shape[1] - 1}")
    return _as_scores(scores.argmax(axis=1) == flat)


def _as_scores(right: NDArray[np.bool_]) -> Floats:
    return np.asarray(right, dtype=np.float64)


def _check_scores(scores: Floats) -> None:
    if scores.shape[1] < 2:
        raise MetricError("the output has one number a row, so there is no greatest; see --output")


def _exact(got: NDArray[Any], wanted: NDArray[Any]) -> Floats:
    return np.array(
        [_plain(one) == _plain(other) for one, other in zip(got, wanted, strict=True)],
        dtype=np.float64,
    )


def _plain(value: Any) -> Any:
    """Return what can be compared: texts whatever they are stored as, one value for one."""
    values = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else [value]
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in values]


def _unit(values: Floats) -> Floats:
    # What is no number is no good answer.
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)


def estimate(scores: Floats, groups: NDArray[Any] | None = None) -> Estimate:
    """Return the mean of scores with its interval.

    Rows that are right or wrong: Wilson's score interval (Wilson 1927). Otherwise, and where rows
    come in groups that are alike: Student's t over groups, as the groups are what was sampled.

    Args:
        scores: of the rows, at least one. [rows].
        groups: which rows were made from the same thing; None: each stands for itself. [rows].
    """
    rows, mean = len(scores), float(scores.mean())
    right_or_wrong = bool(np.isin(scores, (0.0, 1.0)).all())
    if groups is None and right_or_wrong:
        return _wilson(mean, rows)
    low, high, count = _by_groups(scores, groups)
    return Estimate(mean, max(low, 0.0), min(high, 1.0), rows, count)


def difference(one: Floats, other: Floats, groups: NDArray[Any] | None = None) -> Estimate:
    """Return the mean of one variant's scores less another's, on the same rows."""
    apart = one - other
    low, high, count = _by_groups(apart, groups)
    return Estimate(float(apart.mean()), low, high, len(apart), count)


def _wilson(share: float, rows: int) -> Estimate:
    z = float(stdtrit(np.inf, 0.5 + _LEVEL / 2.0))
    weight = z * z / rows
    middle = (share + weight / 2.0) / (1.0 + weight)
    half = z * math.sqrt(share * (1.0 - share) / rows + weight / (4.0 * rows)) / (1.0 + weight)
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0), rows, rows)


def _by_groups(scores: Floats, groups: NDArray[Any] | None) -> tuple[float, float, int]:
    """Return low, high and the number of groups; with one group nothing is known: 0 to 1 apart."""
    mean = float(scores.mean())
    if groups is None:
        places, count = np.arange(len(scores)), len(scores)
    else:
        unique, places = np.unique(groups, return_inverse=True)
        count = len(unique)
    if count < 2:
        return mean - 1.0, mean + 1.0, count
    apart = np.bincount(places, weights=scores - mean)
    variance = float((apart**2).sum()) / len(scores) ** 2 * count / (count - 1)
    half = float(stdtrit(count - 1, 0.5 + _LEVEL / 2.0)) * math.sqrt(variance)
    return mean - half, mean + half, count


def rows_for(half_width: float, quality: float) -> int:
    """Return how many rows of right or wrong answers give an interval of that half width."""
    z = float(stdtrit(np.inf, 0.5 + _LEVEL / 2.0))
    return math.ceil(z * z * quality * (1.0 - quality) / half_width**2)
