"""The bus for fleets: what this node is, what its models do, and commands to it, over MQTT.

Owns what is said, when, and the way back after an error. A broker that is dead, slow or hostile
costs this task its time and never the daemon's: publishing puts a value down and returns, what
was not fetched in time is replaced by what is newer, and every error ends in `health`, none in
an exception. It must not decide anything; commands go to `Control` as the admin socket's do.
"""

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from controller import __version__
from controller.interfaces.control import Control
from controller.interfaces.mqtt_commands import CommandTaker
from controller.interfaces.mqtt_connection import BusError, Connection, connect
from controller.interfaces.mqtt_messages import Topics, encode
from controller.policy.model import MqttPolicy

_LOG = logging.getLogger(__name__)
_MAX_WAITING_RESULTS = 64
_CANCEL_AGAIN_S = 0.1
_AT_ONCE = 10  # messages that wait for the broker's receipt together


@dataclass(frozen=True, slots=True)
class MqttTiming:
    """How fast the bus is, in seconds and counts."""

    state_every_s: float = 1.0  # a changed state is said at most this often
    repeat_every_s: float = 30.0  # an unchanged one at least this often
    first_retry_s: float = 1.0
    longest_retry_s: float = 60.0
    steady_after_s: float = 30.0  # a connection that lived this long starts the back-off anew
    answer_s: float = 10.0  # for every answer of the broker
    control_s: float = 10.0  # for the daemon's answer to a command
    goodbye_s: float = 3.0  # for all of a stop
    keepalive_s: int = 30
    commands_per_s: float = 2.0
    command_burst: int = 10
    flood_messages: int = 500  # more than this within the window: hang up
    flood_window_s: float = 10.0


class MqttBus:
    """One node on the bus.

    `run` is a task of its own; everything else may be called at any time from the same loop.

    Args:
        policy: the broker, as the operator wants it.
        control: takes the commands.
        node: this node's name where the policy has none; None: the machine's name.
        timing: for tests.

    Raises:
        ValueError: a prefix or node that cannot be part of a topic.
    """

    def __init__(
        self,
        policy: MqttPolicy,
        control: Control,
        *,
        node: str | None = None,
        timing: MqttTiming | None = None,
    ) -> None:
        self._policy = policy
        self._topics = Topics(policy.topic_prefix, policy.node or node or socket.gethostname())
        self._timing = timing = timing or MqttTiming()
        self._up = False
        self._broken: str | None = None  # why there is no connection, or half of one
        self._unsaid: str | None = None  # what could not be put into words
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._latest: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, tuple[float, bytes]] = {}  # per topic: when, what
        self._results: deque[tuple[str, bytes]] = deque(maxlen=_MAX_WAITING_RESULTS)
        self._results_waiting = asyncio.Event()
        self._taker = CommandTaker(
            control,
            self._topics,
            lambda: self._latest,
            now_s=time.monotonic,
            per_s=timing.commands_per_s,
            burst=timing.command_burst,
            deadline_s=timing.control_s,
        )

    def health(self) -> dict[str, Any]:
        """Return whether the bus works: `up`, `broker`, and `error`, a sentence or None."""
        broker = f"{self._policy.host}:{self._policy.port}"
        return {"up": self._up, "broker": broker, "error": self._broken or self._unsaid}

    def publish_state(self, models: list[dict[str, Any]]) -> None:
        """Put down the state of all models; the bus's task sends what changed. Never waits.

        Args:
            models: JSON-ready, each with its `name`; not to be changed afterwards. A model that
                is no longer among them is removed from the bus.
        """
        self._latest = {str(model["name"]): model for model in models if model.get("name")}

    async def run(self) -> None:
        """Keep the node on the bus until `stop`. Raises nothing but cancellation."""
        import aiomqtt  # noqa: PLC0415 - a daemon without a broker does not pay for it

        self._task = asyncio.current_task()
        retry_s = self._timing.first_retry_s
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                await self._session()
            except (aiomqtt.MqttError, BusError, OSError) as error:
                self._failed(str(error) or type(error).__name__)
            except Exception as error:  # noqa: BLE001 - no broker may end the daemon
                self._failed(f"unexpected {type(error).__name__}: {error}")
            finally:
                self._up = False
            if time.monotonic() - began_s >= self._timing.steady_after_s:
                retry_s = self._timing.first_retry_s
            # A fleet whose broker restarts must not come back in step.
            jittered_s = retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(jittered_s):
                    await self._stopping.wait()
            retry_s = min(retry_s * 2, self._timing.longest_retry_s)

    def refuse_commands(self) -> None:
        """Answer every command from now on with a refusal: the daemon stops."""
        self._taker.close()

    async def stop(self) -> None:
        """Say good-bye and leave; within a few seconds, whatever the broker does."""
        self._stopping.set()
        task = self._task
        if task is None or task.done():
            return
        done, _ = await asyncio.wait({task}, timeout=self._timing.goodbye_s)
        if not done:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.goodbye_s):
                    await _end([task])

    def _failed(self, why: str) -> None:
        if why != self._broken:  # once, not at every attempt
            _LOG.warning(
                "no bus at %s:%d: %s; trying again until it works",
                self._policy.host,
                self._policy.port,
                why,
            )
        self._broken = why

    async def _session(self) -> None:
        """Connect and serve until `stop`, or until it breaks."""
        async with connect(
            self._policy,
            # One identity per node: after a lost connection the broker then drops the old one,
            # and says its will, before we say "online", not minutes after.
            identifier=f"triton-governor-{self._topics.node}",
            will=(self._topics.status, encode(_status("offline", "connection lost"))),
            stopping=self._stopping,
            answer_s=self._timing.answer_s,
            keepalive_s=self._timing.keepalive_s,
        ) as connection:
            if connection is None:
                return
            await self._serve(connection)
            await self._say(connection, self._topics.status, _status("offline", "stopped"))
            await connection.leave()

    async def _serve(self, connection: Connection) -> None:
        """Publish and take commands until `stop`; raise when the connection breaks."""
        timing = self._timing
        work: tuple[Coroutine[Any, Any, object], ...] = (
            self._publish(connection),
            self._take_commands(connection),
            connection.raise_on_flood(timing.flood_messages, timing.flood_window_s),
            self._stopping.wait(),
        )
        tasks = [asyncio.ensure_future(part) for part in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end(tasks)

    async def _arrive(self, connection: Connection) -> None:
        granted = await connection.subscribe(self._topics.commands)
        # A broker that restarted may have forgotten all of it, or kept what is no longer true.
        self._sent = dict.fromkeys(self._sent, (float("-inf"), b""))
        await self._say(connection, self._topics.status, _status("online"))
        self._up = True
        self._broken = None
        if not granted:
            self._failed(f"the broker refuses {self._topics.commands!r} (its ACL): no commands")
        _LOG.info("on the bus as %s", self._topics.root)

    async def _publish(self, connection: Connection) -> None:
        """Say that we are there; send results at once and states when due."""
        await self._arrive(connection)
        while True:
            self._results_waiting.clear()
            while self._results:
                topic, payload = self._results.popleft()
                await connection.publish(topic, payload)
            self._unsaid = None
            due = self._due()
            for start in range(0, len(due), _AT_ONCE):
                await asyncio.gather(
                    *(self._say(connection, *said) for said in due[start : start + _AT_ONCE])
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.state_every_s):
                    await self._results_waiting.wait()

    async def _say(
        self, connection: Connection, topic: str, message: dict[str, Any] | None
    ) -> None:
        """Publish a retained message; None takes the topic off the bus."""
        payload = b"" if message is None else self._encoded(topic, message)
        if payload is None:
            return
        await connection.publish(topic, payload, retain=True)
        if message is None:
            self._sent.pop(topic, None)
        else:
            self._sent[topic] = (time.monotonic(), payload)

    def _due(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Return what is to be said now: changed, or not said for long, or gone."""
        wanted = {self._topics.state(name): model for name, model in self._latest.items()}
        wanted[self._topics.status] = _status("online")
        due: list[tuple[str, dict[str, Any] | None]]
        due = [(topic, None) for topic in self._sent if topic not in wanted]
        now_s = time.monotonic()
        for topic, message in wanted.items():
            when_s, payload = self._sent.get(topic, (float("-inf"), b""))
            changed_and_rested = (
                now_s - when_s >= self._timing.state_every_s
                and self._encoded(topic, message) != payload
            )
            if changed_and_rested or now_s - when_s >= self._timing.repeat_every_s:
                due.append((topic, message))
        return due

    def _encoded(self, topic: str, message: dict[str, Any]) -> bytes | None:
        try:
            return encode(message)
        except (TypeError, ValueError, RecursionError) as error:
            self._unsaid = f"{topic}: not sent, a value in it is not JSON: {error}"
            return None

    async def _take_commands(self, connection: Connection) -> None:
        async for topic, payload, retained in connection.messages():
            level = self._topics.level_of(topic)
            # A retained command is an old one, which every reconnect would repeat.
            if retained or level is None:
                continue
            sender_id, result = await self._taker.obey(level, payload)
            answer = {"id": sender_id, "ok": result.ok, "message": result.message}
            self._results.append((self._topics.result_of(topic), encode(answer)))
            self._results_waiting.set()


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks until every one of them has ended.

    Once is not enough below Python 3.12: `asyncio.wait_for`, which the library uses, loses a
    cancellation that comes as it is about to return. The task would then run on, and whoever waits
    for its end would wait for ever.
    """
    while waited_for := [task for task in tasks if not task.done()]:
        for task in waited_for:
            task.cancel()
        await asyncio.wait(waited_for, timeout=_CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # nobody else will ask


def _status(state: str, reason: str | None = None) -> dict[str, Any]:
    status = {"state": state, "version": __version__}
    return status if reason is None else {**status, "reason": reason}
