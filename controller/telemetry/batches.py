"""Exact mean service times by batch size, as differences of Triton's `batch_stats`.

Owns the comparison of two polls and the marks on samples that an action or a first run spoils.
It must not talk to Triton, and it must never give out a negative or a mixed-up difference: a
count that falls was started from zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.telemetry.observation import BatchSample

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """How often batches of one size ran since the statistics began, and for how long."""

    executions: int
    service_ns: int  # compute input + infer + output, summed over executions


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """One Triton model at one poll, summed over its versions."""

    batches: Mapping[int, BatchTotals]  # by rows


@dataclass(frozen=True, slots=True)
class TimedSample:
    """A sample and when the middle of its window was (the clock's seconds)."""

    middle_s: float
    sample: BatchSample

    def aged(self, now_s: float) -> BatchSample:
        """Return the sample with its age at this moment."""
        old = self.sample
        return BatchSample(
            model=old.model,
            rows=old.rows,
            executions=old.executions,
            mean_service_s=old.mean_service_s,
            age_s=max(0.0, now_s - self.middle_s),
            after_action=old.after_action,
            probe=old.probe,
        )


class BatchDifferences:
    """Turns polls of running totals into samples."""

    def __init__(self) -> None:
        self._before: dict[str, ModelTotals] = {}
        self._before_s: float | None = None
        self._action_s: dict[str, float] = {}
        self._unsettled: set[str] = set()  # the next executions are the first after an action

    def note_action(self, model: str, at_s: float) -> None:
        """Remember that something was done to a model that spoils what runs around then."""
        self._action_s[model] = max(at_s, self._action_s.get(model, at_s))
        self._unsettled.add(model)

    def forget(self) -> None:
        """Start afresh, as with a server that restarted; every next run is a first run."""
        self._unsettled.update(self._before)
        self._before = {model: ModelTotals({}) for model in self._before}

    def update(self, at_s: float, models: Mapping[str, ModelTotals]) -> list[TimedSample]:
        """Take one poll in and return what ran since the one before.

        The first poll only sets the base. A model that was not there before, or whose counts
        fell, has run for the first time since it was loaded: marked, as after an action.
        """
        samples: list[TimedSample] = []
        since_s = self._before_s
        if since_s is not None:
            for model, after in models.items():
                samples += self._compare(model, after, since_s, at_s)
        # A model that is missing was unloaded: if it comes back, it comes back from zero.
        self._unsettled.update(self._before.keys() - models.keys())
        self._before = dict(models)
        self._before_s = at_s
        return samples

    def _compare(
        self, model: str, after: ModelTotals, since_s: float, at_s: float
    ) -> list[TimedSample]:
        before = self._before.get(model, ModelTotals({}))
        if _fell(before, after):
            before = ModelTotals({})
        first = not before.batches or model in self._unsettled
        action_s = self._action_s.get(model)
        overlaps = action_s is not None and since_s <= action_s
        samples = []
        for rows, totals in after.batches.items():
            base = before.batches.get(rows, BatchTotals(0, 0))
            executions = totals.executions - base.executions
            if executions <= 0 or rows <= 0:
                continue
            sample = BatchSample(
                model=model,
                rows=rows,
                executions=executions,
                mean_service_s=(totals.service_ns - base.service_ns) * _NS / executions,
                age_s=0.0,
                after_action=first or overlaps,
            )
            samples.append(TimedSample((since_s + at_s) / 2.0, sample))
        if samples and not overlaps:
            self._unsettled.discard(model)
            self._action_s.pop(model, None)
        return samples


def _fell(before: ModelTotals, after: ModelTotals) -> bool:
    for rows, old in before.batches.items():
        new = after.batches.get(rows)
        if new is None or new.executions < old.executions or new.service_ns < old.service_ns:
            return True
    return False
