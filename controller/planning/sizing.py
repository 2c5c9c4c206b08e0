"""How many instances the variants of one model have: more soon, fewer late, none for nothing.

Owns when a variant is to get one more instance or one less. It must not resize anything.

Method. About once a second it is asked what a request would be worth on each variant as it is,
with one instance more, and with one less (`controller.prediction`, with what was learned of how
much instances are in each other's way). A variant gets one more where that gained, in the mean of
the last minute, more than a noticeable part of a request's worth, and will earn within five
minutes what it costs: it takes as long as a load, and disturbs as much. It loses one when ten
minutes went by in which it was not needed, or at once by the same rule where fewer are better.
One at a time of each model; what does not come about is not asked for again for ten minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controller.planning.decision import Decision
from controller.planning.value import late_if_it_rises, priced, value_per_request
from controller.policy.model import ModelPolicy
from controller.prediction.prediction import Prediction, with_instances
from controller.prediction.predictor import ModelPredictor
from controller.telemetry.observation import Instances, Observation

Floats = NDArray[np.float64]

HORIZON_S: Final = 300.0  # within which another instance must earn its cost
LATE_S: Final = 600.0  # that one must have been idle for, before it goes
_EVERY_S: Final = 1.0
_MEMORY_S: Final = 60.0
_SEEN_S: Final = 15.0  # of requests, before anything is concluded
_NOTICEABLE: Final = 0.002  # of a request's quality
_NEEDED: Final = 0.0003  # the same: with one instance less, that much would have been lost
_TAKES_S: Final = 120.0  # at most, until an instance is there
_IDLE_RPS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Resize:
    """Another number of instances for a variant."""

    model: str  # Triton's name
    number: int
    before: int
    gain: float  # quality of a request; of one that is no longer needed: nothing

    @property
    def why(self) -> str:
        """Return the reason, in words."""
        if self.number == self.before:
            return "another number did not come about, or is not wanted any more"
        if self.gain <= 0.0:
            return f"not needed for {LATE_S / 60.0:.0f} minutes"
        return f"a request would be worth {self.gain:.4f} more, in the mean of the last minute"


class Sizer:
    """Decides on the instances of one model's variants; `phase_s` differs between models."""

    def __init__(self, policy: ModelPolicy, phase_s: float = 0.0) -> None:
        self.models = tuple(variant.model for variant in policy.variants)
        self.most = tuple(variant.max_instances or 0 for variant in policy.variants)
        self._due_s = -math.inf
        self._phase_s = phase_s
        self._at_s: float | None = None
        self._seen_s = 0.0
        self._rate = 0.0  # requests a second, fading
        self._gain = np.zeros((2, len(self.models)))  # of one more and one less, a second; fading
        self._needed_s = np.full(len(self.models), -math.inf)  # when one less would have cost
        self._retry_s = np.full(len(self.models), -math.inf)
        self._asked: Resize | None = None
        self._asked_s = -math.inf
        self._there_s = -math.inf  # what was asked for was seen to be loaded
        self._until_s = math.inf  # what could be done at once is waited for

    @property
    def is_used(self) -> bool:
        """Return whether the policy lets any variant have more instances."""
        return any(most > 1 for most in self.most)

    def take_over(self, old: Sizer) -> None:
        """Keep what is under way of an earlier policy's model, as far as this one allows it."""
        asked = old._asked
        if asked is not None and asked.model in self.models:
            most = self.most[self.models.index(asked.model)]
            # Where it was to have fewer the policy may say anything but to leave it alone.
            self._asked = asked if most > 1 and asked.number <= max(most, asked.before) else None
            self._asked_s, self._there_s = old._asked_s, old._there_s

    def is_due(self, now_s: float) -> bool:
        """Return whether it is time to be told again what instances are worth."""
        return self.is_used and now_s >= self._due_s

    def weigh(
        self,
        predictor: ModelPredictor,
        observation: Observation,
        prediction: Prediction,
        decision: Decision,
        **others: Any,
    ) -> None:
        """Take in what other numbers would be worth now; the arguments are `worth_with`'s."""
        in_time, borne = zip(
            *(
                worth_with(predictor, prediction, decision, change=change, **others)
                for change in (0, 1, -1)
            ),
            strict=True,
        )
        # Behind a long queue every number is too late, and none would ever seem to be needed.
        worth, more, fewer = in_time if any(map(any, in_time)) else borne
        self.observe(observation.now_s, prediction.forecast.mean_rps, worth, more, fewer)

    def observe(
        self,
        now_s: float,
        rate_rps: float,
        worth: Sequence[float],
        more: Sequence[float],
        fewer: Sequence[float],
    ) -> None:
        """Take in what a request is worth now on each variant.

        Args:
            now_s: when.
            rate_rps: requests a second.
            worth: with the instances that it has; nothing, where it cannot serve.
            more: with one more.
            fewer: with one less.
        """
        self._due_s = math.floor(now_s) + _EVERY_S + self._phase_s
        elapsed_s = _EVERY_S if self._at_s is None else min(now_s - self._at_s, _MEMORY_S)
        self._at_s = now_s
        if rate_rps < _IDLE_RPS or elapsed_s <= 0.0:
            return
        keep = math.exp(-elapsed_s / _MEMORY_S)
        self._seen_s = min(self._seen_s + elapsed_s, _MEMORY_S)
        self._rate = keep * self._rate + (1.0 - keep) * rate_rps
        best = max(worth)
        for v in range(len(self.models)):
            others = max((one for i, one in enumerate(worth) if i != v), default=0.0)
            changes = (max(more[v], others) - best, max(fewer[v], others) - best)
            for way, change in enumerate(changes):
                self._gain[way, v] *= keep
                self._gain[way, v] += (1.0 - keep) * rate_rps * change
            if changes[1] < -_NEEDED:
                self._needed_s[v] = now_s

    def decide(
        self, now_s: float, instances: Mapping[str, Instances], costs: Mapping[str, float]
    ) -> Resize | None:
        """Return what is to be done, as long as it is not done; None: nothing.

        What does not come about is given up: once, the number that there is is returned.

        Args:
            now_s: when.
            instances: of each variant, by Triton's name; of those missing nothing is known.
            costs: requests that one more of a variant costs for each that comes in a second, by
                Triton's name.
        """
        asked = self._asked
        if asked is not None:
            self._follow(asked, now_s, own := instances.get(asked.model))
            if self._asked is None and own is not None and own.number != asked.number:
                return Resize(asked.model, own.number, own.number, 0.0)  # it is given up
        if self._asked is None:
            self._asked = self._best(now_s, instances, costs)
            self._asked_s = self._there_s = now_s
            self._until_s = math.inf
        return self._asked

    def _follow(self, asked: Resize, now_s: float, own: Instances | None) -> None:
        """See what became of what was asked for."""
        v = self.models.index(asked.model)
        if own is None:
            self._until_s = math.inf
            if now_s - self._there_s > LATE_S:
                self._asked = None  # it may never be loaded again, and others wait
            return
        self._there_s = now_s
        if not own.may_change and own.number != asked.number:
            self._until_s = math.inf  # it serves, or it is being done
            if asked.number < own.number and self._needed_s[v] > self._asked_s:
                self._asked = None  # it would go just when the load takes its variant out
        elif own.number == asked.number:
            self._asked = None
            self._needed_s[v] = now_s
            # What is known is of other numbers.
            self._gain[:, v] = 0.0
            self._seen_s = 0.0
        elif self._until_s == math.inf:
            self._until_s = now_s + _TAKES_S
        elif now_s > self._until_s:
            self._asked = None
            self._retry_s[v] = now_s + LATE_S

    def _best(
        self, now_s: float, instances: Mapping[str, Instances], costs: Mapping[str, float]
    ) -> Resize | None:
        if self._seen_s < _SEEN_S or self._rate < _IDLE_RPS:
            return None
        found: list[Resize] = []
        for v, model in enumerate(self.models):
            own = instances.get(model)
            if own is None or self.most[v] < 2 or now_s < self._retry_s[v]:
                continue
            if self._needed_s[v] == -math.inf:
                self._needed_s[v] = now_s  # it has what it has for a reason
            least = own.least
            for way, number in enumerate((own.number + 1, own.number - 1)):
                gain = float(self._gain[way, v]) / self._rate
                within = least <= number <= max(self.most[v], least)
                if within and gain > _NOTICEABLE and gain * HORIZON_S > costs.get(model, 0.0):
                    found.append(Resize(model, number, own.number, gain))
            idle = now_s - self._needed_s[v] > LATE_S
            if own.number > least and idle:
                found.append(Resize(model, own.number - 1, own.number, 0.0))
        return max(found, key=lambda resize: resize.gain, default=None)

    def needs(self, model: str, now_s: float) -> bool:
        """Return whether a variant's instances were all needed not long ago."""
        return any(
            name == model and most > 1 and now_s - needed_s <= LATE_S
            for name, most, needed_s in zip(self.models, self.most, self._needed_s, strict=True)
        )

    def view(self) -> dict[str, Any]:
        """Return what is wanted, JSON-ready, by Triton's name of a variant."""
        rate = max(self._rate, _IDLE_RPS)
        wanted = {} if self._asked is None else {self._asked.model: self._asked.number}
        return {
            model: {
                "most": self.most[v],
                "wanted": wanted.get(model),
                "gain_of_more": float(self._gain[0, v]) / rate,
            }
            for v, model in enumerate(self.models)
            if self.most[v] > 1
        }


def agreed(
    found: Iterable[tuple[Sizer, Resize | None]], sizers: Sequence[Sizer], now_s: float
) -> tuple[Resize, ...]:
    """Return what models want of their variants, but for what others need of the same."""
    return tuple(
        resize
        for own, resize in found
        if resize is not None
        and not (
            resize.number < resize.before
            and any(one is not own and one.needs(resize.model, now_s) for one in sizers)
        )
    )


def worth_with(
    predictor: ModelPredictor,
    prediction: Prediction,
    decision: Decision,
    *,
    change: int,
    price_per_s: Floats | None,
    horizon_s: float,
    contention: float,
) -> tuple[list[float], list[float]]:
    """Return what a request would be worth on each variant if it alone had other instances.

    Twice: in the next window, behind what waits now; and once nothing waits, where what a variant
    does not bear is worth nothing.

    Args:
        predictor: of the model.
        prediction: of it, now.
        decision: that was made on that.
        change: how many more instances; 0: as it is.
        price_per_s: of a second of each variant's device, in this model's quality; None: nobody
            else needs it. [variants].
        horizon_s: until the next decision takes effect.
        contention: how much work elsewhere slows a variant, 0 to 1.
    """
    candidates = decision.candidates
    usable = [c.known and c.excluded is None for c in candidates]
    quality = [c.quality for c in candidates]
    other = prediction
    if change:
        other = with_instances(
            predictor,
            prediction,
            np.maximum(predictor.instances + change, 1.0),
            horizon_s=horizon_s,
            contention=contention,
        )
    value = value_per_request(
        other, quality=quality, known=usable, horizon_s=horizon_s, beside=prediction
    )
    borne = [
        worth / max(load, 1.0) for worth, load in zip(quality, other.utilization_ratio, strict=True)
    ]
    if price_per_s is not None:
        value = priced(value, other, price_per_s)
        borne = priced(borne, other, price_per_s)
    high = decision.rate_p95_rps / max(prediction.forecast.mean_rps, 1e-9)
    late_s = late_if_it_rises(other, high, horizon_s, None)
    objective = predictor.objective
    speed = prediction.throughput_rows_s
    fastest = max(range(len(speed)), key=speed.__getitem__)
    serves = []
    for v, is_usable in enumerate(usable):
        in_time = other.miss_ratio[v] <= objective.allowed_miss_ratio
        in_time = in_time and late_s[v] <= objective.latency_s
        serves.append(is_usable and (in_time or v == fastest))
    return _within(value, serves), _within(borne, usable)


def _within(worths: Sequence[float], usable: Sequence[bool]) -> list[float]:
    """Return what requests are worth, from 0 to 1; nothing, where no variant may serve them."""
    return [
        min(max(worth, 0.0), 1.0) if may and math.isfinite(worth) else 0.0
        for worth, may in zip(worths, usable, strict=True)
    ]
