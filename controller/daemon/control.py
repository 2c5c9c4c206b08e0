"""Operators' commands, carried out on the daemon.

Owns what a command means, the sentence it is answered with and its line in the journal. The
admin socket and MQTT come through here.
"""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING, Any

from controller.daemon import status
from controller.daemon.log import audit
from controller.interfaces.control import Caller, CommandResult

if TYPE_CHECKING:
    from controller.daemon.loop import Daemon

_LOG = logging.getLogger("governor")


class DaemonControl:
    """The daemon as operators see it: implements `controller.interfaces.control.Control`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def status(self) -> dict[str, Any]:
        """Return everything `governor status` shows."""
        return status.status(self._daemon)

    def explain(self, model: str | None) -> dict[str, Any]:
        """Return the newest decisions in plain English. Raises KeyError."""
        return status.explain(self._daemon, model)

    def history(self, model: str | None, limit: int) -> list[dict[str, Any]]:
        """Return the newest actions, newest first."""
        return self._daemon.journal.recent_actions(model, limit)

    async def pin(
        self, model: str, variant: str, *, for_s: float | None, why: str | None, who: Caller
    ) -> CommandResult:
        """Keep a model on one variant until unpinned, or for a time."""
        problem = self._unknown(model) or self._unknown_variant(model, variant)
        if problem is not None:
            return self._refused("pin", model, problem, who, why)
        quality = self._daemon.policy.model(model).variant(variant).quality
        floor = self._daemon.policy.model(model).min_quality
        self._daemon.wishes.pin(model, variant, for_s, why, who.name)
        message = f"{model} is pinned to {variant}{_for(for_s)}"
        if quality < floor:
            message += f" (its quality {quality:g} is under the policy's min_quality {floor:g})"
        return self._taken("pin", model, message, who, why)

    async def unpin(self, model: str, *, who: Caller) -> CommandResult:
        """Let the governor choose again."""
        problem = self._unknown(model)
        if problem is None and model not in self._daemon.wishes.pins:
            problem = f"{model} is not pinned"
        if problem is not None:
            return self._refused("unpin", model, problem, who, None)
        del self._daemon.wishes.pins[model]
        return self._taken("unpin", model, f"{model} is chosen by the governor again", who, None)

    async def pause(
        self, model: str | None, *, for_s: float | None, why: str | None, who: Caller
    ) -> CommandResult:
        """Stop acting on one model or on all; go on observing and recording."""
        problem = self._unknown(model)
        if problem is not None:
            return self._refused("pause", model, problem, who, why)
        self._daemon.wishes.pause(model, for_s, why, who.name)
        message = f"{model or 'every model'} is left as it is{_for(for_s)}"
        return self._taken("pause", model, message, who, why)

    async def resume(self, model: str | None, *, who: Caller) -> CommandResult:
        """End a pause, and a hold after a foreign change."""
        problem = self._unknown(model)
        if problem is not None:
            return self._refused("resume", model, problem, who, None)
        paused = self._daemon.wishes.pauses
        if model is not None and None in paused and model not in paused:
            problem = "every model is paused; `governor resume` without a name ends it"
            return self._refused("resume", model, problem, who, None)
        names = [m.name for m in self._daemon.policy.models] if model is None else [model]
        ended = [paused.pop(name, None) for name in [model, *names]]
        readings = self._daemon.readings
        held = [name for name in names if name in readings and readings[name].held]
        for name in held:
            self._daemon.actuator.resume(name)
        if not any(ended) and not held:
            problem = f"{model or 'no model'} was neither paused nor held"
            return self._refused("resume", model, problem, who, None)
        return self._taken(
            "resume", model, f"the governor acts on {model or 'every model'}", who, None
        )

    def _taken(
        self, kind: str, model: str | None, message: str, who: Caller, why: str | None
    ) -> CommandResult:
        daemon = self._daemon
        daemon.journal.event(kind, model, message, {**who.audit(), "why": why})
        daemon.journal.save_learned("operator", daemon.wishes.state())
        told = f"{message} ({why})" if why else message
        audit(kind, who=str(who), model=model, outcome="done", told=told)
        return CommandResult(ok=True, message=message)

    def _refused(
        self, kind: str, model: str | None, problem: str, who: Caller, why: str | None
    ) -> CommandResult:
        """Answer a command that is not carried out; who tried is kept as well."""
        self._daemon.journal.event(
            "refused", model, f"{kind}: {problem}", {**who.audit(), "why": why}
        )
        audit(kind, who=str(who), model=model, outcome="refused", told=problem, good=False)
        return CommandResult(ok=False, message=problem)

    def _unknown(self, model: str | None) -> str | None:
        names = [m.name for m in self._daemon.policy.models]
        if model is None or model in names:
            return None
        return f"no model {model!r}{_near(model, names)}"

    def _unknown_variant(self, model: str, variant: str) -> str | None:
        names = [v.name for v in self._daemon.policy.model(model).variants]
        if variant in names:
            return None
        return (
            f"{model} has no variant {variant!r}{_near(variant, names)}; it has {', '.join(names)}"
        )


def _near(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _for(for_s: float | None) -> str:
    return "" if for_s is None else f" for {for_s:g} s"
