"""What an operator can ask of the daemon, whichever way they reach it.

Owns the shape of the questions and commands; the admin socket and MQTT call it, the daemon
implements it. It must not know of HTTP or MQTT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Whether a command was taken, and a sentence that says what follows from it."""

    ok: bool
    message: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who gave a command, as far as the way it came can tell."""

    name: str
    via: str  # `socket` or `mqtt`
    uid: int | None = None  # None: the way tells no more than the name
    gid: int | None = None
    pid: int | None = None

    def __str__(self) -> str:
        """Return who it was, for the log."""
        if self.uid is None:
            return self.name
        return f"{self.name}, uid {self.uid}, gid {self.gid}, pid {self.pid}"

    def audit(self) -> dict[str, str | int | None]:
        """Return what the journal keeps."""
        return {
            "who": self.name,
            "via": self.via,
            "uid": self.uid,
            "gid": self.gid,
            "pid": self.pid,
        }


class Control(Protocol):
    """The daemon as its interfaces see it. Values returned are JSON-ready."""

    def status(self) -> dict[str, Any]:
        """Return everything `governor status` shows."""
        ...

    def explain(self, model: str | None) -> dict[str, Any]:
        """Return the newest decision of one model (or of all), with its plain-English paragraph.

        Raises KeyError for a model that the policy does not have.
        """
        ...

    def history(self, model: str | None, limit: int) -> list[dict[str, Any]]:
        """Return the newest actions, newest first."""
        ...

    async def pin(
        self, model: str, variant: str, *, for_s: float | None, why: str | None, who: Caller
    ) -> CommandResult:
        """Keep a model on one variant until unpinned, or for a time."""
        ...

    async def unpin(self, model: str, *, who: Caller) -> CommandResult:
        """Let the governor choose again."""
        ...

    async def pause(
        self, model: str | None, *, for_s: float | None, why: str | None, who: Caller
    ) -> CommandResult:
        """Stop acting on one model or on all; go on observing and recording."""
        ...

    async def release(
        self, model: str | None, *, on: str | None, why: str | None, who: Caller
    ) -> CommandResult:
        """Hand one model back, or all: it stays on a variant, and is acted on no more."""
        ...

    async def adopt(self, model: str | None, *, who: Caller) -> CommandResult:
        """Act again on a model that was released, or on all of them."""
        ...

    def alias(self, model: str) -> dict[str, Any]:
        """Return how an alias stands on the server, and its config. Raises KeyError."""
        ...

    async def resume(self, model: str | None, *, who: Caller) -> CommandResult:
        """End a pause, a hold after a foreign change, and, of a model that is named, a release."""
        ...
