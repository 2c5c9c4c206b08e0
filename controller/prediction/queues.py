"""What waits and what runs on every variant of all models, side by side.

Owns the work that variants have before anything more comes. It must not foresee what comes.

One array for all models: a call of numpy costs as much for the variants of one as for those of a
hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.prediction.predictor import ModelPredictor
from controller.telemetry.observation import Observation

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SHORTEST_WINDOW_S: Final = 1e-6


class Queues(NamedTuple):
    """The variants of some models, one model after the other. Arrays are [variants of all]."""

    parts: list[slice]  # which of them are whose
    lookup: Integers  # their rows in the table of service times
    limits: Integers  # the largest batch that each forms
    gain: Floats | float  # how many times as much all instances of each do as one
    waiting_rows: Floats  # that wait on each
    running_rows: Floats  # of the batch in execution, as the last were; 0: none
    batches_s: Floats  # batches a second that ended
    work_s: Floats  # seconds of work that wait
    requests: list[int]  # that wait for each model, a dispatcher's too. [models]

    def totals(self, of_each: Floats) -> Floats:
        """Return the sum over each model's variants. [models]."""
        return np.add.reduceat(of_each, [part.start for part in self.parts])

    def sizes(self) -> list[int]:
        """Return how many variants each model has."""
        return [part.stop - part.start for part in self.parts]


def look(predictors: Sequence[ModelPredictor], observation: Observation) -> Queues:
    """Return what waits and runs on the variants of models that share a table of service times.

    Args:
        predictors: of the models.
        observation: what there is now, already learned from.
    """
    parts: list[slice] = []
    waiting: list[float] = []
    running: list[float] = []
    ended: list[int] = []
    requests: list[int] = []
    for predictor in predictors:
        began, rows = len(waiting), predictor.arrivals.rows_per_request
        late = predictor.late(observation)
        queued = late.waiting_requests if late else 0
        for reading in predictor.readings(observation):
            if reading is None:
                waiting.append(0.0)
                running.append(0.0)
                ended.append(0)
                continue
            executions, pending = reading.executions, reading.pending_requests or 0
            queued += pending
            waiting.append(pending * rows)
            running.append(reading.completed_rows / executions if executions > 0 else 0.0)
            ended.append(executions)
        parts.append(slice(began, len(waiting)))
        requests.append(queued)
    lookup = np.concatenate([predictor.lookup for predictor in predictors])
    gain: Floats | float = 1.0
    if any(predictor.has_several for predictor in predictors):
        gain = np.concatenate([predictor.gain() for predictor in predictors])
    waiting_rows = np.array(waiting)
    return Queues(
        parts=parts,
        lookup=lookup,
        limits=np.concatenate([predictor.limits for predictor in predictors]),
        gain=gain,
        waiting_rows=waiting_rows,
        running_rows=np.array(running),
        batches_s=np.array(ended) / max(observation.window_s, _SHORTEST_WINDOW_S),
        work_s=waiting_rows * predictors[0].service.row_s()[lookup] / gain,
        requests=requests,
    )


def unfinished_s(queues: Queues, table_s: Floats, slowdown: Floats | None = None) -> Floats:
    """Return the seconds until each variant is done with what it has. [variants of all].

    In whole batches, the one in execution included: what a switch leaves behind is done in
    batches that nothing more joins, which is what splitting them costs.

    Args:
        queues: of the variants.
        table_s: service times, of which `queues.lookup` tells the rows. [any, rows 1..max].
        slowdown: of each, by batches of other models that run beside it; None: by none.
    """
    flat_s, first = table_s.ravel(), queues.lookup * table_s.shape[1] - 1
    full, rest = np.divmod(queues.waiting_rows, queues.limits)
    rest = np.ceil(rest).astype(np.int64)
    left_s = full * flat_s[first + queues.limits]
    # Clipped: what is no number is no index either.
    left_s += np.where(rest > 0, flat_s.take(first + rest, mode="clip"), 0.0)
    ran = np.maximum(queues.running_rows, queues.waiting_rows)
    ran = np.minimum(np.rint(ran), queues.limits).astype(np.int64)
    ran_s = np.where(ran > 0, flat_s.take(first + ran, mode="clip"), 0.0)
    if slowdown is not None:
        left_s *= slowdown
        ran_s *= slowdown
    busy = np.where(queues.waiting_rows > 0.0, 1.0, np.minimum(queues.batches_s * ran_s, 1.0))
    return np.asarray(left_s / queues.gain + 0.5 * busy * ran_s)
