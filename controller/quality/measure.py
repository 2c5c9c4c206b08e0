"""The quality of every variant of a model, on the same rows.

Owns the order of things: what can be measured, the reference first, each variant after the other.
It must not print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from controller.policy.model import ModelPolicy, VariantPolicy
from controller.quality.ask import Asker, AskError, inputs_of, outputs_of, unfit
from controller.quality.data import DataError, Rows, sample
from controller.quality.metrics import Estimate, Floats, Metric, MetricError, difference, estimate
from controller.quality.metrics import score as score_of

Progress = Callable[[str, int, int], None]  # variant, rows answered, of


class QualityError(Exception):
    """Nothing can be measured; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    model: ModelPolicy
    metric: Metric
    rows: Rows
    reference: str | None = None  # the operator's name of the variant that others are compared with
    variants: tuple[str, ...] | None = None  # None: all but profiles, which have the same weights
    output: str | None = None  # None: the first one
    inputs: Mapping[str, str] = field(default_factory=dict)  # the file's names, where they differ
    load: bool = False  # load what is not loaded, and unload it again
    samples: int | None = None  # rows at most; None: all
    seed: int = 0  # of their choice


@dataclass(frozen=True, slots=True)
class Measured:
    """One variant's quality; or why it has none."""

    variant: str
    model: str
    stated: float  # in the policy
    quality: Estimate | None = None
    below_best: Estimate | None = None  # less the best one's, on the same rows
    skipped: str | None = None


async def measure(
    asker: Asker, wanted: Wanted, progress: Progress = lambda *_: None
) -> list[Measured]:
    """Return the quality of each variant, in the policy's order.

    Raises:
        QualityError: what is asked for cannot be measured at all.
    """
    _check(wanted)
    try:
        states = await asker.states()
    except AskError as error:
        raise QualityError(str(error)) from error
    expected: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    scores: dict[str, Floats] = {}
    skipped: dict[str, str] = {}
    order = _order(wanted)
    for variant in order:
        try:
            answers, rows = await _answers(asker, wanted, variant, states, progress)
            groups = rows.groups
            if wanted.metric is Metric.TOP1:
                expected = rows.labels
            elif variant.name == wanted.reference:
                expected = answers
            elif wanted.reference is None:
                expected = rows.expected
            if expected is None:
                raise QualityError(_missing(wanted.metric))
            scores[variant.name] = score_of(wanted.metric, answers, expected)
        except (AskError, MetricError, DataError) as error:
            if variant.name == wanted.reference:
                raise QualityError(f"the reference {variant.name}: {error}") from error
            skipped[variant.name] = str(error)
    return _told(wanted, order, scores, skipped, groups)


def _check(wanted: Wanted) -> None:
    """Refuse what lacks something to compare with, before anything is sent."""
    lacks_labels = wanted.metric is Metric.TOP1 and wanted.rows.labels is None
    lacks_answers = wanted.reference is None and wanted.rows.expected is None
    if lacks_labels or (wanted.metric is not Metric.TOP1 and lacks_answers):
        raise QualityError(_missing(wanted.metric))


def _order(wanted: Wanted) -> list[VariantPolicy]:
    """Return what is measured; the reference before what is compared with it."""
    names = [v.name for v in wanted.model.variants]
    for name in (*(wanted.variants or ()), *([wanted.reference] if wanted.reference else ())):
        if name not in names:
            raise QualityError(
                f"{wanted.model.name} has no variant {name!r}; it has {', '.join(names)}"
            )
    chosen = [
        v
        for v in wanted.model.variants
        if v.name == wanted.reference
        or (v.profile_of is None if wanted.variants is None else v.name in wanted.variants)
    ]
    return sorted(chosen, key=lambda v: v.name != wanted.reference)


def _missing(metric: Metric) -> str:
    if metric is Metric.TOP1:
        return "top1 needs labels in the data: an array `labels`, or --labels KEY"
    return f"{metric} needs `expected` in the data, or --reference VARIANT"


async def _answers(
    asker: Asker,
    wanted: Wanted,
    variant: VariantPolicy,
    states: Mapping[str, str],
    progress: Progress,
) -> tuple[NDArray[Any], Rows]:
    """Return a variant's answers and the rows that they are to."""
    state = states.get(variant.model)
    if state is None:
        raise AskError(f"{variant.model} is not in Triton's model repository")
    if state == "READY":
        return await _ask(asker, wanted, variant, progress)
    if not wanted.load:
        raise AskError(f"{variant.model} is not loaded (--load loads it, and unloads it after)")
    await asker.load(variant.model)
    try:
        return await _ask(asker, wanted, variant, progress)
    finally:
        await asker.unload(variant.model)


async def _ask(
    asker: Asker, wanted: Wanted, variant: VariantPolicy, progress: Progress
) -> tuple[NDArray[Any], Rows]:
    config = await asker.config(variant.model)
    problem = unfit(config)
    if problem is not None:
        raise AskError(problem)
    outputs = outputs_of(config)
    output = wanted.output or next(iter(outputs), "")
    if output not in outputs:
        raise AskError(f"{variant.model} has no output {output!r}; it has {', '.join(outputs)}")
    rows = wanted.rows.only({name: wanted.inputs.get(name, name) for name in inputs_of(config)})
    rows = sample(rows, wanted.samples, wanted.seed)
    answers = await asker.answers(
        config, rows, output, progress=lambda done: progress(variant.name, done, len(rows))
    )
    return answers, rows


def _told(
    wanted: Wanted,
    order: Sequence[VariantPolicy],
    scores: Mapping[str, Floats],
    skipped: Mapping[str, str],
    groups: NDArray[Any] | None,
) -> list[Measured]:
    means = {name: float(values.mean()) for name, values in scores.items()}
    best = max(means, key=means.__getitem__, default=None)
    found = {}
    for variant in order:
        values = scores.get(variant.name)
        found[variant.name] = Measured(
            variant.name,
            variant.model,
            variant.quality,
            quality=None if values is None else estimate(values, groups),
            below_best=None
            if values is None or best is None or variant.name == best
            else difference(values, scores[best], groups),
            skipped=skipped.get(variant.name),
        )
    return [found[v.name] for v in wanted.model.variants if v.name in found]
