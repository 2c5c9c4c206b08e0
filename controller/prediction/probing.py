"""Probing: which synthetic requests would teach the most, when there is time for them.

Owns the choice of probes within the policy's budget. It must not send anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.policy.model import ModelPolicy, Policy, ProbingPolicy
from controller.telemetry.observation import Observation

_WANTED: Final = 3  # batches of a size
_IDLE_AFTER_S: Final = 0.2  # without a queue
_RETRY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A synthetic request for a variant nobody has measured at that size."""

    model: str  # Triton's name
    rows: int


class ProbePlan:
    """Spends idle moments on what is unknown."""

    def __init__(self, policy: ProbingPolicy) -> None:
        self._policy = policy
        self._asked: dict[Probe, tuple[int, float]] = {}
        self._quiet_since_s: float | None = None
        self._allowed_at_s = 0.0

    def set_policy(self, policy: ProbingPolicy) -> None:
        """Follow a new policy."""
        self._policy = policy

    def next(
        self,
        observation: Observation,
        policy: Policy,
        samples: NDArray[np.float64],
        models: tuple[str, ...],
    ) -> tuple[Probe, ...]:
        """Return at most one probe for this tick."""
        now_s = observation.now_s
        queued = any((v.pending_requests or 0) > 0 for v in observation.variants.values())
        if queued or not self._policy.enabled:
            self._quiet_since_s = None
            return ()
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s
        if now_s - self._quiet_since_s < _IDLE_AFTER_S or now_s < self._allowed_at_s:
            return ()
        for model_policy in policy.models:
            reading = observation.models.get(model_policy.name)
            if reading is not None and (reading.switching or reading.paused or reading.held):
                continue
            for variant in model_policy.variants:
                state = observation.variants.get(variant.model)
                if state is None or state.ready is not True or variant.model not in models:
                    continue
                row = models.index(variant.model)
                for rows in self._batches(model_policy):
                    probe = Probe(variant.model, rows)
                    if samples[row, rows - 1] < _WANTED and self._may_ask(probe, now_s):
                        return (probe,)
        return ()

    def spent(self, service_s: float, now_s: float) -> None:
        """Take note of what a probe took, so that the budget holds."""
        rest_s = service_s / max(self._policy.max_busy_ratio, 1e-3)
        self._allowed_at_s = max(self._allowed_at_s, now_s + rest_s)

    def _may_ask(self, probe: Probe, now_s: float) -> bool:
        count, last_s = self._asked.get(probe, (0, -np.inf))
        # Statistics come late: after the wanted number was sent, look before sending more.
        if count >= _WANTED + 1:
            if now_s - last_s < _RETRY_S:
                return False
            count = 0
        self._asked[probe] = (count + 1, now_s)
        return True

    def _batches(self, model: ModelPolicy) -> tuple[int, ...]:
        if self._policy.batches:
            return tuple(b for b in self._policy.batches if 1 <= b <= model.client_max_batch)
        full = model.client_max_batch
        return tuple(dict.fromkeys((1, max(full // 2, 1), full)))
