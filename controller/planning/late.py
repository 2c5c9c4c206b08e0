"""Late binding in a decision: whether the dispatcher serves, and by which plan.

Owns both. It must not choose a variant: for a batch `controller.dispatch.late_binding` does, and
where no dispatcher can serve the decision stays as `controller.planning.choice` made it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from controller.dispatch.plan import Plan
from controller.planning.decision import Decision, Reason
from controller.planning.leaving import Leaving
from controller.policy.model import DISPATCHER, ModelPolicy
from controller.prediction.predictor import ModelPredictor
from controller.telemetry.observation import Observation

# The one of a hundred batches that takes longest, in standard deviations of its logarithm.
_TAIL: Final = 2.33
# Nothing of these is a choice between variants that a dispatcher could make better.
_KEPT: Final = frozenset(
    {Reason.PINNED, Reason.PAUSED, Reason.RELEASED, Reason.HELD, Reason.STALE_DATA}
)


class LateBinding:
    """The plans of all dispatchers, as of the last step."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan | None] = {}  # by model; None: nothing can serve
        self.chooses = False  # for every model a dispatcher does, and not the governor
        self._leaving: dict[str, Leaving] = {}

    def bind(
        self,
        policies: Sequence[ModelPolicy],
        decisions: Sequence[Decision],
        predictors: Sequence[ModelPredictor],
        observation: Observation,
        *,
        stalled: bool = False,
    ) -> tuple[Decision, ...]:
        """Renew the plans; return the decisions, with the dispatchers that can serve.

        `stalled`: whether the host stood still since the last observation.
        """
        self.plans = {
            policy.name: plan_for(policy, decision, predictor)
            for policy, decision, predictor in zip(policies, decisions, predictors, strict=True)
            if policy.dispatcher is not None
        }
        bound = tuple(
            bind_late(
                policy,
                decision,
                observation,
                is_left=self._leaves(policy, decision, observation, stalled=stalled),
            )
            for policy, decision in zip(policies, decisions, strict=True)
        )
        self.chooses = all(one.reason is Reason.LATE_BINDING for one in bound)
        self.chooses = self.chooses and all(one.serving == DISPATCHER for one in bound)
        return bound

    def set_policy(self, before: Sequence[ModelPolicy], after: Sequence[ModelPolicy]) -> None:
        """Forget what was found about dispatchers whose models are others now."""
        known = {policy.name: policy for policy in before}
        same = {
            policy.name
            for policy in after
            if policy.name in known and _is_alike(policy, known[policy.name])
        }
        self._leaving = {name: one for name, one in self._leaving.items() if name in same}

    def away_s(self, model: str, now_s: float) -> float | None:
        """Return for how long a model's dispatcher is left yet, as it was late; None: it is not."""
        leaving = self._leaving.get(model)
        return None if leaving is None else leaving.away_s(now_s)

    def _leaves(
        self, policy: ModelPolicy, decision: Decision, observation: Observation, *, stalled: bool
    ) -> bool:
        late = observation.dispatched.get(policy.name)
        reading = observation.models.get(policy.name)
        if late is None or reading is None:
            return False
        leaving = self._leaving.setdefault(policy.name, Leaving())
        variants, objective = observation.variants, policy.objective
        return leaving.look(late, reading, variants, decision, objective, stalled=stalled)


def _is_alike(one: ModelPolicy, other: ModelPolicy) -> bool:
    """Return whether a dispatcher does what another one did, by the same measure."""
    return (one.dispatcher, one.objective, one.variants, one.queue) == (
        other.dispatcher,
        other.objective,
        other.variants,
        other.queue,
    )


def plan_for(policy: ModelPolicy, decision: Decision, predictor: ModelPredictor) -> Plan | None:
    """Return by what a dispatcher is to choose; None: nothing is known, or nothing may serve.

    Args:
        policy: of the model.
        decision: with every candidate, and why some may not serve.
        predictor: what batches take, in the present state of the devices.
    """
    takes_s, noise = predictor.takes_s(), predictor.noise.tolist()
    may = [
        v
        for v, candidate in enumerate(decision.candidates)
        if candidate.known
        and candidate.excluded is None
        and all(math.isfinite(took_s) and took_s > 0.0 for took_s in takes_s[v])
    ]
    if not may:
        return None
    return Plan(
        names=tuple(decision.candidates[v].model for v in may),
        quality=tuple(decision.candidates[v].quality for v in may),
        took_s=tuple(tuple(takes_s[v]) for v in may),
        tail=tuple(math.exp(_TAIL * noise[v]) for v in may),
        limit_s=policy.objective.latency_s,
        timeout_s=None if policy.queue is None else policy.queue.timeout_s,
        most_waiting=None if policy.queue is None else policy.queue.max_size,
        allowed=policy.objective.allowed_miss_ratio,
    )


def bind_late(
    policy: ModelPolicy, decision: Decision, observation: Observation, *, is_left: bool = False
) -> Decision:
    """Return a decision, with the dispatcher as what serves or is to serve where it is well.

    Args:
        policy: of the model.
        decision: as it is without a dispatcher.
        observation: that it was made on.
        is_left: whether a variant alone does better for now.
    """
    reading = observation.models.get(policy.name)
    late = observation.dispatched.get(policy.name)
    if policy.dispatcher is None or reading is None or late is None:
        return decision
    serves = reading.serving == late.model
    serving = DISPATCHER if serves else decision.serving
    if decision.reason in _KEPT:
        return replace(decision, serving=serving)
    if serves and late.ill:
        # Whoever waits there gets no answer, or one that nobody steers.
        return replace(decision, serving=serving, reason=Reason.NO_DISPATCHER, urgent=True)
    if is_left:
        if decision.target is None or (not serves and decision.reason is not Reason.STEADY):
            return replace(decision, serving=serving)
        return replace(decision, serving=serving, reason=Reason.DISPATCHER_LATE, urgent=serves)
    if not serves and (not late.healthy or late.model in reading.unusable):
        return decision
    return replace(
        decision,
        serving=serving,
        desired=DISPATCHER,
        target=DISPATCHER,
        reason=Reason.LATE_BINDING,
        urgent=False,
    )
