"""The requests that prove models, told apart from those of clients.

Owns which traced requests and which of those that a dispatcher was handed are ours. What of the
counters is ours the core finds out, as with its own probes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from controller.actuation.actuator import Actuator
from controller.actuation.client import Proof
from controller.telemetry.observation import RequestSample

_KEPT_S: Final = 10.0  # a trace comes seconds after its request
# Between sending a request and what its trace says: clocks differ a little.
_BEFORE_S: Final = 0.02
_AFTER_S: Final = 0.1


class Proofs:
    """Follows what the actuator sends of its own."""

    def __init__(self, actuator: Actuator) -> None:
        self._actuator = actuator
        self._sent: deque[Proof] = deque()

    def take(self, now_s: float) -> tuple[str, ...]:
        """Return the models that were sent a proof since the last call, once for each."""
        sent = self._actuator.proofs()
        self._sent.extend(sent)
        while self._sent and self._sent[0].sent_s < now_s - _KEPT_S:
            self._sent.popleft()
        return tuple(proof.model for proof in sent)

    def clients(self, samples: Iterable[RequestSample]) -> tuple[RequestSample, ...]:
        """Return the traced requests that are no proofs of ours: each is at most one."""
        return tuple(sample for sample in samples if not (self._sent and self._is_ours(sample)))

    def _is_ours(self, sample: RequestSample) -> bool:
        for proof in self._sent:
            after_s = sample.start_s - proof.sent_s
            if proof.name == sample.alias and -_BEFORE_S <= after_s <= _AFTER_S:
                self._sent.remove(proof)
                return True
        return False
