"""What actions cost: learned from the actions themselves.

Owns the time that a switch of a model and a load or an unload of a variant take, and, in
`disturbance`, what they do to requests. It must not weigh the cost against anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from controller.prediction.disturbance import Disturbances
from controller.telemetry.observation import ActionCost

_STEP: Final = 0.3  # of the newest action in what is expected of the next
_LEAST_STEP: Final = 0.05  # of switches, of which there are many
UNKNOWN_LOAD_S: Final = 10.0


class ActionCosts:
    """Durations by kind of action and what it was done to, as moving averages."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, int]] = {}
        self.disturbances = Disturbances()

    def observe(self, actions: Iterable[ActionCost]) -> None:
        """Take in what ended; what failed says nothing of what success takes."""
        for action in actions:
            if not action.ok or not action.duration_s > 0.0:
                continue
            key = (action.kind, action.model if action.kind == "switch" else action.target)
            mean_s, count = self._known.get(key, (action.duration_s, 0))
            step = _LEAST_STEP if action.kind == "switch" else _STEP
            step = max(step, 1.0 / (count + 1))
            mean_s += step * (action.duration_s - mean_s)
            self._known[key] = (mean_s, count + 1)

    def expected_s(self, kind: str, of: str) -> float | None:
        """Return how long an action will take; None: it was never seen.

        Args:
            kind: `switch`, `load` or `unload`.
            of: the model of a switch, else Triton's name of the variant.
        """
        known = self._known.get((kind, of))
        return None if known is None else known[0]

    def load_s(self, models: Iterable[str]) -> dict[str, float]:
        """Return how long each variant's load will take; unseen ones as long as the longest."""
        seen = {model: self.expected_s("load", model) for model in models}
        longest_s = max((s for s in seen.values() if s is not None), default=UNKNOWN_LOAD_S)
        return {model: longest_s if s is None else s for model, s in seen.items()}

    def state(self) -> list[list[Any]]:
        """Return what was learned. JSON-ready."""
        return [[kind, of, mean_s, count] for (kind, of), (mean_s, count) in self._known.items()]

    def restore(self, state: Iterable[Iterable[Any]]) -> None:
        """Take back what `state` returned. Raises ValueError, TypeError."""
        known = {}
        for kind, of, mean_s, count in state:
            sound = math.isfinite(float(mean_s)) and math.isfinite(float(count))
            if not (sound and float(mean_s) >= 0.0 and int(count) >= 1):
                raise ValueError(f"{kind} of {of}: {mean_s} s is no cost")
            known[str(kind), str(of)] = (float(mean_s), int(count))
        self._known = known

    def view(self) -> Mapping[str, dict[str, float]]:
        """Return {kind: {what: seconds}} for people."""
        found: dict[str, dict[str, float]] = {}
        for (kind, of), (mean_s, _) in sorted(self._known.items()):
            found.setdefault(kind, {})[of] = mean_s
        return found
