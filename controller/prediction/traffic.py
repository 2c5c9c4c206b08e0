"""What became of every model's requests in a tick, as what disturbs them is learned from it.

Owns which variants' counters tell it, and how many requests are taken for late. It must not judge
why they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from controller.policy.model import ModelPolicy
from controller.prediction.disturbance import Ended, Traffic
from controller.prediction.spread import late_share
from controller.telemetry.observation import Observation, VariantReading


class TrafficCount:
    """Counts for all models, from one tick to the next."""

    def __init__(self) -> None:
        self._served: dict[str, str | None] = {}
        self._came: dict[str, float] = {}

    def count(
        self, models: Iterable[ModelPolicy], observation: Observation, came: Mapping[str, float]
    ) -> list[Traffic]:
        """Return what each model did since the last observation.

        Args:
            models: of the policy.
            observation: what there is now.
            came: requests that ever arrived, of each model.
        """
        found, served = [], {}
        for model in models:
            reading = observation.models.get(model.name)
            serving = served[model.name] = None if reading is None else reading.serving
            # Others get requests of ours alone, which tell nothing of what clients meet.
            names = dict.fromkeys((serving, self._served.get(model.name)))
            readings = (observation.variants.get(name) for name in names if name is not None)
            arrived = came[model.name] - self._came.get(model.name, came[model.name])
            ended = tuple(_ended(model.objective.latency_s, observation, readings))
            found.append(Traffic(model.name, max(arrived, 0.0), ended))
        self._served, self._came = served, dict(came)
        return found


def _ended(
    limit_s: float, observation: Observation, readings: Iterable[VariantReading | None]
) -> Iterator[Ended]:
    middle_s = observation.now_s - (observation.readings_age_s or 0.0) - observation.window_s / 2.0
    for reading in readings:
        if reading is None or not reading.completed_requests + reading.failed_requests:
            continue
        count, late, mean_s = reading.completed_requests, 0.0, 0.0
        if count:
            mean_s = (reading.queue_s + reading.compute_s) / count
            late = count * late_share(mean_s, limit_s) if mean_s > 0.0 else 0.0
        failed = reading.failed_requests
        yield Ended(reading.model, count + failed, late + failed, middle_s - mean_s)
