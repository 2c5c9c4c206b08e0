"""What will happen to one model on each of its variants.

Owns what is learned of one model: its arrivals, how its predictions turned out, what was stated
when. It must not choose, and knows of other models only the work that waits for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.policy.model import ModelPolicy, Objective
from controller.prediction.arrivals import ArrivalForecaster
from controller.prediction.inflight import ArrivalCounter
from controller.prediction.latency import gain
from controller.prediction.lulls import Lulls
from controller.prediction.outcomes import Outcomes
from controller.prediction.own_probes import OwnProbes
from controller.prediction.service import ServiceTimes
from controller.prediction.statements import Statement
from controller.telemetry.observation import (
    Dispatched,
    Instances,
    Observation,
    VariantReading,
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_COMPLETION_MEMORY_S: Final = 0.25
_SHORTEST_WINDOW_S: Final = 1e-6


class Tally(NamedTuple):
    """What was counted of one model so far; its requests alone, without probes of ours."""

    arrived: float = 0.0  # estimated: what is in execution no counter shows
    completed: int = 0
    told: int = 0  # single requests that were compared with what was told of them
    kept: int = 0  # of these, within it


class ModelPredictor:
    """Learns and predicts for one model; `shuffled` mixes its variants up (an ablation).

    `phase_s`, less than a second, differs between models that learn in the same ticks.
    """

    def __init__(
        self,
        policy: ModelPolicy,
        service: ServiceTimes,
        *,
        shuffled: bool = False,
        phase_s: float = 0.0,
    ) -> None:
        self._policy = policy
        self.service = service
        self.models = tuple(v.model for v in policy.variants)
        self._arrivals = ArrivalForecaster()
        self.lulls = Lulls()
        self._counter = ArrivalCounter()
        self._deferred: tuple[float, float] | None = None  # arrivals of a stall, its seconds
        self._served: str | None = None  # at the last observation, by Triton's name
        self._outcomes = Outcomes(
            policy.name,
            policy.objective,
            self.models,
            weights=[v.profile_of or v.name for v in policy.variants],
            phase_s=phase_s,
        )
        self._probes = OwnProbes()
        self._read_of: Mapping[str, VariantReading] | None = None
        self._read: list[VariantReading | None] = []  # of these
        self._came, self._ended = 0.0, 0  # requests, ever
        self._done = 0.0  # requests completed lately
        self._done_window_s = 0.0
        # Where the variants are in the table of service times, and where each one's times are.
        self._places = [service.models.index(m) for m in self.models]
        self.rows = np.array(self._places)
        most = service.max_rows
        declared = [v.max_batch for v in policy.variants]
        self._most = np.array([min(rows or most, most) for rows in declared], dtype=np.int64)
        usual = (rows or policy.client_max_batch for rows in declared)
        self._usual = np.array([min(rows, most) for rows in usual], dtype=np.int64)
        self.limits = self._usual.copy()  # the largest batch that each forms
        self.instances = np.ones(len(self.models))  # of each, on each device
        self.has_several = False  # instances of any variant
        self.overlap = np.ones(len(self.models))  # how much these are in each other's way
        self.lookup = self.rows[::-1] if shuffled else self.rows

    @property
    def coverage(self) -> float | None:
        """Return the share of recent requests within what was stated; None: too few."""
        return self._outcomes.coverage

    @property
    def outcomes(self) -> int:
        """Return how many recent requests the coverage counts."""
        return self._outcomes.observed

    def factor(self, model: str) -> float:
        """Return the calibration's factor of one variant (Triton's name). Raises KeyError."""
        return self._outcomes.calibrations[model].factor

    def take_over(self, old: ModelPredictor) -> None:
        """Keep what an earlier policy's predictor knows of the same model."""
        self._arrivals, self.lulls = old._arrivals, old.lulls
        self._counter = old._counter
        self._served = old._served
        self._probes.take_over(old._probes, self.models)
        self._outcomes.take_over(old._outcomes)
        self._came, self._ended = old._came, old._ended
        for i, model in enumerate(self.models):
            if model in old.models:
                known = old.limits[old.models.index(model)]
                self.limits[i] = min(max(self.limits[i], known), self._most[i])

    def learn(
        self, observation: Observation, *, largest_rows: Mapping[str, int], stalled: bool = False
    ) -> None:
        """Take in arrivals, batch sizes and completed requests.

        Args:
            observation: what there is now.
            largest_rows: of the batches that were measured lately, by Triton's name.
            stalled: whether the host stood still.
        """
        readings = self.readings(observation)
        completed, rows = self._clients_own(observation, readings)
        late = self.late(observation)
        if late is None:
            arrived = self._arrived(observation, readings)
        else:  # a variant's requests are whole batches of it then
            arrived = completed = late.arrived_requests
            rows = late.arrived_rows
        self._came, self._ended = self._came + arrived, self._ended + completed
        if stalled and self._deferred is None:
            # What arrived meanwhile is seen late: only both windows together tell the rate.
            self._deferred = (arrived, observation.window_s)
        elif observation.window_s > 0.0:
            before, before_s = self._deferred or (0.0, 0.0)
            self._deferred = None
            self._arrivals.observe(before + arrived, before_s + observation.window_s)
            self.lulls.observe(before + arrived, before_s + observation.window_s)
            keep = math.exp(-observation.window_s / _COMPLETION_MEMORY_S)
            self._done = self._done * keep + completed
            self._done_window_s = self._done_window_s * keep + observation.window_s
        self._arrivals.observe_rows(completed, rows)
        if largest_rows:
            for i, model in enumerate(self.models):
                seen = min(largest_rows.get(model, 0), self._most[i])
                self.limits[i] = max(self.limits[i], seen)
        if late is None:  # what is stated is of requests that wait for one variant
            self._outcomes.learn(observation, readings, self._probes, stalled=stalled)
        self._outcomes.excuse(self.service.log_drifts(self._places))

    def late(self, observation: Observation) -> Dispatched | None:
        """Return what a dispatcher counted, where it serves; None: a variant does."""
        if not observation.dispatched:
            return None
        late = observation.dispatched.get(self._policy.name)
        reading = observation.models.get(self._policy.name)
        return late if late and reading and reading.serving == late.model else None

    def _arrived(
        self,
        observation: Observation,
        readings: list[VariantReading | None],
    ) -> float:
        """Return how many requests of clients arrived; `_clients_own` knows already which do."""
        reading = observation.models.get(self._policy.name)
        serving = None if reading is None else reading.serving
        receiving = {name for name in (serving, self._served) if name is not None}
        self._served = serving
        came = self._arrivals.mean_rps * observation.window_s / max(len(receiving), 1)
        arrived = self._counter.count(
            readings,
            expected=dict.fromkeys(receiving, came),
            # A list has its largest at once, which numpy has not.
            largest=max(max(self.limits.tolist()) / self._arrivals.rows_per_request, 1.0),
            instances=dict(zip(self.models, self.instances.tolist(), strict=True))
            if self.has_several
            else None,
            window_s=observation.window_s,
        )
        return arrived - sum(self._probes.shown.values())

    def _clients_own(
        self, observation: Observation, readings: list[VariantReading | None]
    ) -> tuple[int, int]:
        """Return completed requests and rows less our own probes, which no client sent."""
        self._probes.hear(observation, self.models)
        return self._probes.without(readings, observation.now_s)

    def probed(self, model: str, rows: int, now_s: float) -> None:
        """Take note that a synthetic request goes to a variant."""
        if model in self.models:
            self._probes.sent(model, rows, now_s)

    def know_instances(
        self, instances: Mapping[str, Instances], overlap: Callable[[str], float]
    ) -> None:
        """Take note of how many instances each variant has.

        Args:
            instances: by Triton's name; those missing have one.
            overlap: how much those of a variant are in each other's way.
        """
        if not instances and not self.has_several:
            return
        for i, model in enumerate(self.models):
            own = instances.get(model)
            self.instances[i] = 1.0 if own is None else max(own.number, 1.0)
            self.overlap[i] = 1.0 if own is None else overlap(model)
        self.has_several = bool((self.instances > 1.0).any())

    def gain(self) -> Singles:
        """Return how many times as much all instances of a variant do as one. [variants]."""
        if not self.has_several:
            return np.ones(len(self.models), dtype=np.float32)
        return gain(self.instances, self.overlap)

    def waits_s(self, variant: int, pending: int) -> float:
        """Return the seconds of work of requests that wait on a variant (its index)."""
        row_s = float(self.service.row_s()[self.lookup[variant]])
        if self.has_several:
            row_s /= float(self.gain()[variant])
        return pending * self._arrivals.rows_per_request * row_s

    def drain_s(self, pending: int) -> float:
        """Return how long the queue takes at the rate at which requests complete (Little's law)."""
        if pending == 0:
            return 0.0
        return pending * self._done_window_s / self._done if self._done > 0.0 else math.inf

    @property
    def arrivals(self) -> ArrivalForecaster:
        """Return who follows the arrivals."""
        return self._arrivals

    @property
    def objective(self) -> Objective:
        """Return what the model's requests must meet."""
        return self._policy.objective

    def takes_s(self) -> list[list[float]]:
        """Return the seconds of batches of 1, 2, ... rows that each variant may form."""
        table_s = self.service.table_s()[self.lookup]
        return [table_s[v, :most].tolist() for v, most in enumerate(self.limits.tolist())]

    @property
    def noise(self) -> Floats:
        """Return the spread (standard deviation) of the log of a batch's time. [variants]."""
        return np.asarray(self.service.noise[self.lookup])

    @property
    def drift_ratio(self) -> float:
        """Return the present service time over what was learned, where the model is served."""
        return self.service.drift_ratio_of(self._served)

    @property
    def calibration(self) -> Outcomes:
        """Return who compares what was stated with what came."""
        return self._outcomes

    @property
    def told_coverage(self) -> float | None:
        """Return the share of recent requests within what was told; None: too few."""
        return self._outcomes.promise.coverage

    @property
    def tally(self) -> Tally:
        """Return what was counted so far; after a change of the objective some begin anew."""
        promise = self._outcomes.promise
        return Tally(self._came, self._ended, promise.singles, promise.singles_kept)

    def state_for(self, now_s: float, of: Mapping[int, Statement]) -> None:
        """Note what is stated for requests that arrive from now on.

        Args:
            now_s: when.
            of: of the variants that may get them, by index.
        """
        finite = {self.models[i]: said for i, said in of.items() if math.isfinite(said.raw_s)}
        if finite:
            self._outcomes.state_for(now_s, finite)

    def speed_order(self) -> NDArray[np.intp] | None:
        """Return the variants' indices, fastest first; None while one of them is unknown."""
        if not self.service.known()[self.rows].all():
            return None
        full_s = self.service.table_s()[self.rows, self._usual - 1]
        return np.argsort(full_s / self._usual, kind="stable")

    def readings(self, observation: Observation) -> list[VariantReading | None]:
        """Return what was read of each variant. Do not change."""
        variants = observation.variants
        if variants is not self._read_of:  # each tick asks several times
            self._read_of, self._read = variants, [variants.get(model) for model in self.models]
        return self._read

    def state(self) -> dict[str, Any]:
        """Return what was learned. JSON-ready."""
        return {
            "arrivals": self._arrivals.state(),
            "calibration": self._outcomes.state(),
            "limits": dict(zip(self.models, self.limits.tolist(), strict=True)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned. Raises ValueError, KeyError, TypeError."""
        limits = state["limits"]
        for i, model in enumerate(self.models):
            if model in limits:
                stored = int(limits[model])
                if not 1 <= stored <= self.service.max_rows:
                    raise ValueError(f"{model}: batch limit {stored} out of range")
                self.limits[i] = min(max(self.limits[i], stored), self._most[i])
        self._arrivals.restore(state["arrivals"])
        self._outcomes.restore(state["calibration"])
