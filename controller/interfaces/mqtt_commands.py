"""From a message on the bus to the daemon's answer.

Owns the checks, the rate limit and the deadline of commands. It must not know of connections.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from controller.interfaces.control import Caller, CommandResult, Control
from controller.interfaces.mqtt_messages import Command, RefusedCommandError, Topics, parse_command

_LOG = logging.getLogger(__name__)
_WHO = Caller("mqtt", via="mqtt")  # the broker knows who sent it, and does not tell


class CommandTaker:
    """Hands commands to the daemon, one at a time.

    Args:
        control: the daemon.
        topics: how models are called on the bus.
        models: returns the names of the models that there are now.
        now_s: a monotonic clock.
        per_s: how many commands a second are taken for long.
        burst: how many at once.
        deadline_s: how long the daemon may take.
    """

    def __init__(
        self,
        control: Control,
        topics: Topics,
        models: Callable[[], Iterable[str]],
        *,
        now_s: Callable[[], float],
        per_s: float,
        burst: int,
        deadline_s: float,
    ) -> None:
        self._control = control
        self._topics = topics
        self._models = models
        self._now_s = now_s
        self._per_s = per_s
        self._burst = float(burst)
        self._deadline_s = deadline_s
        self._allowance = self._burst
        self._allowance_at_s = now_s()
        self._closed = False

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    async def obey(self, level: str, payload: bytes) -> tuple[str | int | None, CommandResult]:
        """Carry out one command; return the sender's id and what became of it. Never fails.

        Args:
            level: the model, as its level in the topic.
            payload: as it came.
        """
        try:
            command = parse_command(payload)
        except RefusedCommandError as error:
            return error.sender_id, _refused(str(error))
        if self._closed:
            return command.id, _refused("the daemon stops")
        if not self._allowed():
            return command.id, _refused(f"more than {self._per_s:g} commands a second")
        names = [name for name in self._models() if self._topics.level(name) == level]
        if not names:
            return command.id, _refused(
                f"this node has no model {level!r}; its state topics name those it has"
            )
        return command.id, await self._carry_out(names[0], command)

    async def _carry_out(self, model: str, command: Command) -> CommandResult:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._ask(model, command)
        except TimeoutError:
            message = "the daemon did not answer in time; the model's state tells what became of it"
        except Exception as error:  # noqa: BLE001 - the sender learns of it, and the bus goes on
            _LOG.warning("%r for %s over MQTT failed", command.command, model, exc_info=True)
            message = f"failed: {type(error).__name__}: {error}"
        return CommandResult(ok=False, message=message)

    def _ask(self, model: str, command: Command) -> Awaitable[CommandResult]:
        control, for_s, why = self._control, command.for_s, command.why
        if command.command == "pin":
            return control.pin(model, command.variant or "", for_s=for_s, why=why, who=_WHO)
        if command.command == "unpin":
            return control.unpin(model, who=_WHO)
        if command.command == "pause":
            return control.pause(model, for_s=for_s, why=why, who=_WHO)
        if command.command == "release":
            return control.release(model, on=command.variant, why=why, who=_WHO)
        if command.command == "adopt":
            return control.adopt(model, who=_WHO)
        return control.resume(model, who=_WHO)

    def _allowed(self) -> bool:
        """Take one from a bucket that refills with time."""
        now_s = self._now_s()
        refill = (now_s - self._allowance_at_s) * self._per_s
        self._allowance = min(self._allowance + refill, self._burst)
        self._allowance_at_s = now_s
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True


def _refused(why: str) -> CommandResult:
    return CommandResult(ok=False, message=f"refused: {why}")
