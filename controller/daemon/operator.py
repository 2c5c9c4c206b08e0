"""What operators asked for: pins, pauses and releases, with who, why and until when.

Owns their lifetime. It must not carry anything out; the loop overlays them on what is observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from controller.policy.model import Policy
from controller.telemetry.observation import ModelReading


@dataclass(frozen=True, slots=True)
class Pin:
    """A model is kept on one variant."""

    variant: str
    why: str | None
    who: str
    until_unix_s: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """The governor observes, but does not act."""

    why: str | None
    who: str
    until_unix_s: float | None


@dataclass(frozen=True, slots=True)
class Release:
    """A model was taken back: it is observed, and no longer acted on."""

    variant: str | None  # the operator's name of what served then
    why: str | None
    who: str
    at_unix_s: float


class OperatorWishes:
    """Pins, pauses and releases that are in force."""

    def __init__(self, unix_clock: Callable[[], float]) -> None:
        self._now = unix_clock
        self.pins: dict[str, Pin] = {}
        self.pauses: dict[str | None, Pause] = {}  # None: everything
        self.releases: dict[str, Release] = {}  # until somebody gives the model again
        self.was_read = False  # what was stored of them, if anything

    def pin(self, model: str, variant: str, for_s: float | None, why: str | None, who: str) -> Pin:
        """Keep a model on one variant."""
        self.pins[model] = Pin(variant, why, who, self._until(for_s))
        return self.pins[model]

    def pause(self, model: str | None, for_s: float | None, why: str | None, who: str) -> Pause:
        """Stop acting on one model, or on all."""
        self.pauses[model] = Pause(why, who, self._until(for_s))
        return self.pauses[model]

    def release(self, model: str, variant: str | None, why: str | None, who: str) -> Release:
        """Take a model back from the governor; a pin on it ends."""
        self.releases[model] = Release(variant, why, who, self._now())
        self.pins.pop(model, None)
        return self.releases[model]

    def _until(self, for_s: float | None) -> float | None:
        return None if for_s is None else self._now() + for_s

    def expire(self) -> list[tuple[str, str | None]]:
        """Drop what has run out; return (what, model) of each."""
        now = self._now()
        gone: list[tuple[str, str | None]] = []
        for model, pin in list(self.pins.items()):
            if pin.until_unix_s is not None and pin.until_unix_s <= now:
                del self.pins[model]
                gone.append(("pin", model))
        for name, pause in list(self.pauses.items()):
            if pause.until_unix_s is not None and pause.until_unix_s <= now:
                del self.pauses[name]
                gone.append(("pause", name))
        return gone

    def overlay(self, readings: dict[str, ModelReading]) -> dict[str, ModelReading]:
        """Return the readings with pins and pauses on them."""
        everything = None in self.pauses
        return {
            name: replace(
                reading,
                pinned=self.pins[name].variant if name in self.pins else None,
                paused=everything or name in self.pauses or name in self.releases,
                released=name in self.releases,
            )
            for name, reading in readings.items()
        }

    def state(self) -> dict[str, Any]:
        """Return what must survive a restart. JSON-ready."""
        return {
            "pins": {model: asdict(pin) for model, pin in self.pins.items()},
            "pauses": [{"model": model, **asdict(p)} for model, p in self.pauses.items()],
            "releases": {model: asdict(one) for model, one in self.releases.items()},
        }

    def restore(self, state: Any, policy: Policy) -> None:
        """Take back what `state` returned, as far as the policy still has it."""
        self.was_read = True
        if not isinstance(state, dict):
            return
        names = {m.name: {v.name for v in m.variants} for m in policy.models}
        pins, pauses = state.get("pins"), state.get("pauses")
        for model, raw in pins.items() if isinstance(pins, dict) else ():
            if isinstance(raw, dict) and raw.get("variant") in names.get(model, ()):
                self.pins[model] = Pin(raw["variant"], *_common(raw))
        for raw in pauses if isinstance(pauses, list) else ():
            if isinstance(raw, dict) and (raw.get("model") is None or raw["model"] in names):
                self.pauses[raw.get("model")] = Pause(*_common(raw))
        releases = state.get("releases")
        # Also of a model that the policy does not have now: it is the operator's all the same.
        for model, raw in releases.items() if isinstance(releases, dict) else ():
            if isinstance(model, str) and isinstance(raw, dict):
                why, who, _ = _common(raw)
                variant, at = raw.get("variant"), raw.get("at_unix_s")
                self.releases[model] = Release(
                    variant if isinstance(variant, str) else None,
                    why,
                    who,
                    float(at) if isinstance(at, (int, float)) and math.isfinite(at) else 0.0,
                )
        self.expire()


def _common(raw: dict[str, Any]) -> tuple[str | None, str, float | None]:
    why, who, until = raw.get("why"), raw.get("who"), raw.get("until_unix_s")
    valid = isinstance(until, (int, float)) and math.isfinite(until)
    return (
        why if isinstance(why, str) else None,
        who if isinstance(who, str) else "unknown",
        float(until) if valid and until is not None else None,
    )
