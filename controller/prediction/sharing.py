"""How much of a device each measured batch had to itself.

Owns the correction of measured times for what ran beside them: a service time is that of a batch
alone. It must not predict.

Method. Batches of several models on one device share it. While another is in execution, each gets
half; a batch that took T, beside which others were active for a share a of the time, would have
taken T (1 - a / 2) alone (processor sharing, Kleinrock 1976). The counters tell of each tick how
long each model was active, not when: a is between what must have overlapped and what would have
by chance.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controller.prediction.placement import Placement
from controller.telemetry.observation import BatchSample, Observation, VariantReading

_KEPT_S: Final = 3.0
_BUSY_OVER_S: Final = 1.0
_FORGOTTEN_S: Final = 1e-5


@dataclass(frozen=True, slots=True)
class _Tick:
    ended_s: float
    took_s: float
    busy_s: dict[str, float]  # of each model's batches, by Triton's name


class DeviceSharing:
    """Remembers who was active lately."""

    def __init__(self) -> None:
        self._ticks: deque[_Tick] = deque()
        self._lately_s: dict[str, float] = {}  # busy, fading
        self._window_s = 0.0  # the time that it is of, fading likewise
        # What was asked since the last observation, of this placement: by the time since when, the
        # share of each variant's.
        self._placement: Placement | None = None
        self._active: dict[float, dict[str, float]] = {}

    def observe(self, observation: Observation) -> None:
        """Take in what each model executed since the last observation."""
        if observation.window_s <= 0.0:
            return
        self._active.clear()
        self._ticks.append(_Tick(observation.now_s, observation.window_s, {}))
        while self._ticks[0].ended_s < observation.now_s - _KEPT_S:
            self._ticks.popleft()
        keep = math.exp(-observation.window_s / _BUSY_OVER_S)
        self._window_s = self._window_s * keep + observation.window_s
        lately = {m: s * keep for m, s in self._lately_s.items() if s > _FORGOTTEN_S}
        self._lately_s = lately
        instances = observation.instances
        for reading in observation.variants.values():
            left_s = _busy_s(reading)
            if not left_s > 0.0:  # nor is it no number
                continue
            lately[reading.model] = lately.get(reading.model, 0.0) + left_s
            if instances and (own := instances.get(reading.model)) is not None:
                left_s /= max(own.number, 1)  # several at a time
            # A batch counts when it ends; what is longer than this tick ran in those before.
            for tick in reversed(self._ticks):
                if left_s <= 0.0:
                    break
                busy_s = tick.busy_s.get(reading.model, 0.0)
                here_s = min(left_s, tick.took_s - busy_s)
                if here_s > 0.0:
                    tick.busy_s[reading.model] = busy_s + here_s
                    left_s -= here_s

    def busy_ratio(self) -> dict[str, float]:
        """Return the share of the last second or so in which each model's batches ran.

        By Triton's name; those that did not are missing.
        """
        if self._window_s <= 0.0:
            return {}
        return {model: min(s / self._window_s, 1.0) for model, s in self._lately_s.items()}

    def clean(
        self,
        samples: Iterable[BatchSample],
        observation: Observation,
        placement: Placement,
        overlap: Callable[[str], float],
    ) -> Iterator[BatchSample]:
        """Yield the samples as `alone` does where there are GPUs, and as `on_host` elsewhere."""
        if observation.gpus:
            return self.alone(samples, observation.now_s, placement)
        serving = {model.serving for model in observation.models.values()}
        return self.on_host(samples, observation.now_s, placement.relatives, serving, overlap)

    def alone(
        self, samples: Iterable[BatchSample], now_s: float, placement: Placement
    ) -> Iterator[BatchSample]:
        """Yield the samples with the times that their batches would have taken alone."""
        for sample in samples:
            shared = self.others_active(sample, now_s, placement)
            alone_s = sample.mean_service_s * (1.0 - 0.5 * shared)
            yield replace(sample, mean_service_s=alone_s, shared_ratio=shared)

    def on_host(
        self,
        samples: Iterable[BatchSample],
        now_s: float,
        relatives: Placement,
        serving: Collection[str | None],
        overlap: Callable[[str], float],
    ) -> Iterator[BatchSample]:
        """Yield the samples as they would have been without the relatives that were active beside.

        On a host idle cores take what runs beside, if there are any: by how much it slowed a
        batch down is what was learned of that. At a probe, or while one that was left works its
        queue off, it need not be known: there will be a cleaner measurement. Whoever serves tells
        how fast the machine is now, and is heard whatever runs beside.

        Args:
            samples: of batches.
            now_s: when they are seen.
            relatives: variants of the same model on the same device, whatever they run on.
            serving: Triton's names of the variants that serve.
            overlap: how much a variant's batches and others are in each other's way, from 0.
        """
        for sample in samples:
            shared = self.others_active(sample, now_s, relatives)
            if shared == 0.0:
                yield sample
                continue
            slowed = overlap(sample.model)
            alone_s = sample.mean_service_s * (1.0 - shared * slowed / (1.0 + slowed))
            heard = sample.model in serving
            yield replace(sample, mean_service_s=alone_s, shared_ratio=0.0 if heard else shared)

    def siblings_active(self, sample: BatchSample, now_s: float, instances: int) -> float:
        """Return how many batches of other instances ran beside a sample's, in the mean."""
        if instances < 2:
            return 0.0
        since_s = now_s - 2.0 * sample.age_s
        own_s, beside_s = 0.0, 0.0
        for tick in reversed(self._ticks):
            if tick.ended_s <= since_s:
                break
            busy_s = tick.busy_s.get(sample.model, 0.0)  # of each instance, in the mean
            running = busy_s / tick.took_s * instances
            chance = running * (instances - 1) / instances
            least = max(running - 1.0, 0.0)
            own_s += busy_s
            beside_s += busy_s * 0.5 * (chance + least)
        return beside_s / own_s if own_s > 0.0 else 0.0

    def others_active(self, sample: BatchSample, now_s: float, placement: Placement) -> float:
        """Return the share of a sample's time in which others on its device were active, 0 to 1."""
        if placement is not self._placement:
            self._placement = placement
            self._active.clear()
        since_s = now_s - 2.0 * sample.age_s
        # Of one poll there are samples of all variants, of many sizes each.
        active = self._active.get(since_s)
        if active is None:
            active = self._active[since_s] = self._others_active(since_s, placement)
        return active.get(sample.model, 0.0)

    def _others_active(self, since_s: float, placement: Placement) -> dict[str, float]:
        """Return that share for every variant, by Triton's name; 0 of one that was not busy."""
        since = itertools.takewhile(lambda tick: tick.ended_s > since_s, reversed(self._ticks))
        ticks = list(since)
        # Those that the placement does not know may be anywhere.
        # In a fixed order: sums must not differ from one process to the next.
        unknown = sorted({name for tick in ticks for name in tick.busy_s} - placement.names.keys())
        names = [*placement.names, *unknown]
        busy_s = [[tick.busy_s.get(name, 0.0) for name in names] for tick in ticks]
        if not busy_s:
            return {}
        # [ticks, variants].
        here_s, took_s = np.array(busy_s), np.array([[tick.took_s] for tick in ticks])
        others_s = placement.others_s(here_s)
        chance_s = here_s * np.minimum(others_s / took_s, 1.0)
        least_s = np.minimum(np.maximum(here_s + others_s - took_s, 0.0), here_s)
        shared_s, own_s = 0.5 * (chance_s + least_s).sum(axis=0), here_s.sum(axis=0)
        was_busy = own_s > 0.0
        share = np.divide(shared_s, own_s, out=np.zeros(len(names)), where=was_busy)
        return dict(zip(names, share.tolist(), strict=True))


def _busy_s(reading: VariantReading) -> float:
    """Return the seconds in which a model's batches were in execution."""
    if reading.completed_requests < 1:
        return 0.0
    return reading.compute_s / reading.completed_requests * reading.executions
