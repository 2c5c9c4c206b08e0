"""How the latencies of requests that completed in one tick lie about their mean.

Owns what share of them took longer than was said. It must not say anything itself.

Triton counts sums: of a tick the time in the queue and the time of execution of all requests
together are known, and how many batches it had. The rest follows from how a batch comes about:

- Requests of one batch share its execution, and came evenly while the one before it was executed.
  The last of them hardly waited, so the others waited up to twice the mean, but no longer than that
  one lasted; unless so many came that full batches left some behind.
- Of several batches in a tick those with more than one request are taken for a single one that
  holds all who were not alone: they waited, and theirs took the longer. Who was alone came to an
  idle device, as long as the time in the queue can be that of the others.
- A batch is off what its size takes as the ones with a lone request are off theirs.
- When in the tick a batch ended is not known, and what was said changes with every tick: who came
  just before a queue was seen was told the least, and is late first. So several moments are asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from controller.telemetry.observation import VariantReading

_MEMORY_S: Final = 1.0  # of the rate
_LEARNED: Final = 0.05  # of a lone request's time, by the next one
_SHORTER: Final = 0.7  # of the mean of several batches: a lone request's time, until it is known
# The requests of a batch in five parts of the same size: where the middle of each lies between the
# last and the earliest, from the mean; what was said may have changed from one part to the next.
_PARTS: Final = (-0.8, -0.4, 0.0, 0.4, 0.8)
_HALF: Final = 0.2  # of a part
_ENDED: Final = (-0.33, 0.0, 0.33)  # when a batch ended, in ticks from the middle of one
# Half of lone batches are less than so much off their usual time, as a share of it; and by how
# much it changes with each. Even noise reaches so many times as far (as a normal one deviates).
_OFF: Final = 0.03
_OFF_LEARNED: Final = 1.1
_REACHES: Final = 2.5
# Where nothing but a mean and a limit are known: requests of one tick are off it as far as this.
_USUAL: Final = 0.33
_TINY: Final = 1e-9


class Said(Protocol):
    """What was said of requests of one variant, by when they came."""

    def at(self, came_s: Sequence[float]) -> list[float | None]:
        """Return what was said of those that came at some times; None: nothing was."""

    def least(self, from_s: float, to_s: float) -> float | None:
        """Return the least that was said of any within some time; None: it is not known."""


class _Part(NamedTuple):
    """Some of a tick's requests, whose latencies lie evenly about a middle, each a little off."""

    middle_s: float
    half_s: float
    off_s: float
    weight: float  # share of all


class Spread:
    """Remembers of one model's variants what the sums do not tell."""

    def __init__(self) -> None:
        self._completed = 0.0  # requests, lately
        self._in_s = 0.0
        # By variant: what a lone request takes, how far such are off that, and what batches lasted.
        self._lone_s: dict[str, float] = {}
        self._off: dict[str, float] = {}
        self._lasted_s: dict[str, float] = {}

    def observe(self, completed: int, window_s: float) -> None:
        """Count what completed in a tick, of all variants."""
        keep = math.exp(-window_s / _MEMORY_S)
        self._completed = self._completed * keep + completed
        self._in_s = self._in_s * keep + window_s

    def late_share(
        self,
        reading: VariantReading,
        middle_s: float,
        said: Said,
        *,
        window_s: float = 0.0,
    ) -> float | None:
        """Return which share of a variant's requests of a tick took longer than was said.

        Args:
            reading: of the tick; requests completed in it.
            middle_s: of the tick.
            said: of this variant.
            window_s: how long the tick was.

        Returns:
            None: nothing was said of any.
        """
        late = known = 0.0
        parts = self._parts(reading)
        moments_s = [middle_s + ended * window_s for ended in _ENDED]
        middles_s = [part.middle_s for part in parts]
        least_s = said.least(moments_s[0] - max(middles_s), moments_s[-1] - min(middles_s))
        if least_s is not None and least_s >= max(
            [part.middle_s + part.half_s + part.off_s for part in parts]
        ):
            return 0.0  # as nearly always
        limits_s = iter(said.at([at_s - part_s for part_s in middles_s for at_s in moments_s]))
        for part_s, half_s, off_s, weight in parts:
            for limit_s in itertools.islice(limits_s, len(_ENDED)):
                if limit_s is not None:
                    known += weight
                    if limit_s - part_s < half_s + off_s:
                        late += weight * _beyond(limit_s - part_s, half_s, off_s)
        return late / known if known else None

    def _parts(self, reading: VariantReading) -> list[_Part]:
        """Return how the latencies lie."""
        count, batches = reading.completed_requests, max(reading.executions, 1)
        queue_s, compute_s = reading.queue_s / count, reading.compute_s / count
        if count <= batches:
            self._learn(reading.model, count, compute_s)
        lasted_s = max(self._lasted_s.get(reading.model, compute_s), compute_s)
        self._lasted_s[reading.model] = compute_s
        if count == 1:
            return [_Part(queue_s + compute_s, 0.0, 0.0, 1.0)]
        if batches == 1:
            half_s = _reach(queue_s, lasted_s)
            if self._completed > 0.0:
                half_s = min(half_s, count / 2.0 * self._in_s / self._completed)
            return _evenly(queue_s + compute_s, half_s, 0.0, 1.0)
        return self._several(reading, count, batches, lasted_s)

    def _learn(self, model: str, count: int, compute_s: float) -> None:
        """Learn what a lone request takes, and how far each is off that."""
        usual_s = self._lone_s.get(model, compute_s)
        self._lone_s[model] = usual_s + _LEARNED * (compute_s - usual_s)
        if count == 1:
            off = self._off.get(model, _OFF)
            is_more = abs(compute_s - usual_s) > off * usual_s
            self._off[model] = off * _OFF_LEARNED if is_more else off / _OFF_LEARNED

    def _several(
        self, reading: VariantReading, count: int, batches: int, lasted_s: float
    ) -> list[_Part]:
        """Return how the latencies lie of requests of several batches."""
        queue_s, compute_s = reading.queue_s / count, reading.compute_s / count
        lone_s = min(self._lone_s.get(reading.model, _SHORTER * compute_s), compute_s)
        off = _REACHES * self._off.get(reading.model, _OFF)
        together = count - batches + 1 if count > batches else 0
        alone = count - together
        found, left_s = [], reading.queue_s
        if together:
            took_s = (reading.compute_s - alone * lone_s) / together
            waited_s = min(left_s / together, max(lone_s / 2.0, queue_s))
            left_s = max(left_s - together * waited_s, 0.0)
            half_s = _reach(waited_s, lasted_s)
            found += _evenly(took_s + waited_s, half_s, off * took_s, together / count)
        took_s = lone_s if together else compute_s
        # Of the lone ones so many came to a busy device, each at any moment of a batch.
        waited = min(2.0 * left_s / alone / max(lone_s, _TINY), 1.0)
        found.append(_Part(took_s, 0.0, off * took_s, (1.0 - waited) * alone / count))
        if waited > 0.0:
            waited_s = left_s / alone / waited
            half_s = _reach(waited_s, lasted_s)
            found += _evenly(took_s + waited_s, half_s, off * took_s, waited * alone / count)
        return found


def _reach(waited_s: float, lasted_s: float) -> float:
    """Return how far from their mean requests waited that came while a batch was executed."""
    if waited_s <= lasted_s / 2.0:
        return waited_s
    # More came early than late; or full batches left some behind, who came as evenly.
    return lasted_s - waited_s if waited_s < 0.75 * lasted_s else lasted_s / 2.0


def _evenly(middle_s: float, half_s: float, off_s: float, weight: float) -> list[_Part]:
    """Return parts that lie evenly about a middle, each smeared by what batches are off."""
    return [
        _Part(middle_s + part * half_s, _HALF * half_s, off_s, weight * _HALF) for part in _PARTS
    ]


def _beyond(limit_s: float, half_s: float, off_s: float) -> float:
    """Return how much of the sum of two even spreads about zero is beyond a limit."""
    wide_s, narrow_s = max(half_s, off_s), min(half_s, off_s)
    from_end_s = wide_s + narrow_s - abs(limit_s)
    if from_end_s <= 0.0:
        return float(limit_s < 0.0)
    if from_end_s >= 2.0 * narrow_s:
        return 0.5 - limit_s / (2.0 * wide_s)
    tail = from_end_s**2 / (8.0 * wide_s * narrow_s)
    return tail if limit_s > 0.0 else 1.0 - tail


def late_share(mean_s: float, limit_s: float) -> float:
    """Return the share of requests of one tick that took longer than a limit, by their mean."""
    return _beyond(limit_s - mean_s, _USUAL * mean_s, 0.0)


def mean_of(reading: VariantReading) -> float:
    """Return the mean latency of what completed in a tick, in seconds."""
    return (reading.queue_s + reading.compute_s) / reading.completed_requests
