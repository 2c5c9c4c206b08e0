"""Operators' commands, carried out on the daemon.

Owns what a command means, the sentence it is answered with and its line in the journal. The
admin socket and MQTT come through here.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from typing import TYPE_CHECKING, Any

from controller.daemon import releasing, status
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

    async def release(
        self, model: str | None, *, on: str | None, why: str | None, who: Caller
    ) -> CommandResult:
        """Hand one model back, or all: it stays on a variant, and is acted on no more."""
        wanted = [m.name for m in self._daemon.policy.models] if model is None else [model]
        for name in wanted:
            problem = self._unknown(name)
            if problem is None and on is not None:
                problem = self._unknown_variant(name, on)
            if problem is not None:
                return self._refused("release", name, problem, who, why)
        found = await asyncio.gather(
            *(releasing.release(self._daemon, name, on, why=why, who=who.name) for name in wanted)
        )
        for name, one in zip(wanted, found, strict=True):
            keep = self._taken if one.ok else self._refused
            keep("release", name, one.message, who, why)
        message = "\n".join(one.message for one in found)
        return CommandResult(ok=all(one.ok for one in found), message=message)

    async def adopt(self, model: str | None, *, who: Caller) -> CommandResult:
        """Act again on a model that was released, or on all of them."""
        problem = self._unknown(model)
        if problem is not None:
            return self._refused("adopt", model, problem, who, None)
        releases = self._daemon.wishes.releases
        ended = [name for name in list(releases) if model in (None, name)]
        if not ended:
            problem = f"{model or 'no model'} was not released"
            return self._refused("adopt", model, problem, who, None)
        for name in ended:
            del releases[name]
        self._give_again(ended)
        still = [name for name in ended if not self._acts_on(name)]
        message = f"{', '.join(ended)} {'is' if len(ended) == 1 else 'are'} the governor's again"
        if still:
            message += f" (only advised on, as the policy says: {', '.join(still)})"
        return self._taken("adopt", model, message, who, None)

    def _acts_on(self, model: str) -> bool:
        names = {m.name for m in self._daemon.policy.models}
        return model in names and not self._daemon.standing.is_advised(model)

    def _give_again(self, models: list[str]) -> None:
        self._daemon.standing.apply()
        for name in set(models) & {m.name for m in self._daemon.policy.models}:
            self._daemon.actuator.resume(name)

    def alias(self, model: str) -> dict[str, Any]:
        """Return how an alias stands on the server, and its config. Raises KeyError."""
        return releasing.alias_view(self._daemon, model)

    async def resume(self, model: str | None, *, who: Caller) -> CommandResult:
        """End a pause, a hold after a foreign change, and, of a model that is named, a release."""
        if model is not None and model in self._daemon.wishes.releases:
            return await self.adopt(model, who=who)
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
            what = "nothing is paused or held"
            if model is not None:
                what = f"{model} was neither paused nor held"
            return self._refused("resume", model, what + self._still(), who, None)
        message = f"the governor acts on {model or 'every model'}"
        return self._taken("resume", model, message + self._still(), who, None)

    def _still(self) -> str:
        """Return what a word to all models does not end."""
        names = ", ".join(self._daemon.wishes.releases)
        return f" (still released: {names}; `governor adopt` ends that)" if names else ""

    def _taken(
        self, kind: str, model: str | None, message: str, who: Caller, why: str | None
    ) -> CommandResult:
        daemon = self._daemon
        daemon.journal.event(kind, model, message, {**who.audit(), "why": why})
        daemon.journal.save_learned("operator", daemon.wishes.state())
        told = f"{message} ({why})" if why else message
        audit(kind, who=str(who), model=model, outcome="done", told=told, caller=who.audit())
        return CommandResult(ok=True, message=message)

    def _refused(
        self, kind: str, model: str | None, problem: str, who: Caller, why: str | None
    ) -> CommandResult:
        """Answer a command that is not carried out; who tried is kept as well."""
        self._daemon.journal.event(
            "refused", model, f"{kind}: {problem}", {**who.audit(), "why": why}
        )
        audit(
            kind,
            who=str(who),
            model=model,
            outcome="refused",
            told=problem,
            good=False,
            caller=who.audit(),
        )
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
