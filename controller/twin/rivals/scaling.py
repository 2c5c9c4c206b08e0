"""What those share who keep one variant and change the number of its replicas.

Owns what such a scaler sees. A replica is a GPU; a new one serves after its start-up time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from controller.twin.ladder import Floats


@dataclass(frozen=True, slots=True)
class ScalerView:
    """What a scaler sees at one of its ticks."""

    replicas: int  # those still to come are counted
    load_rps: float  # since the last look
    pending: int  # requests that wait
    latency_s: Floats  # of those that completed since the last look


class Scaler(Protocol):
    """A policy that looks at fixed intervals."""

    tick_s: float

    def replicas(self, view: ScalerView) -> int:
        """Return how many replicas there should be."""
        ...
