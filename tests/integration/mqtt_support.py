"""Real brokers for the bus's tests, and a daemon's port that records."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiomqtt

from controller.interfaces.control import CommandResult
from controller.interfaces.mqtt import MqttBus, MqttTiming
from controller.policy.model import MqttPolicy

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
QUICK = MqttTiming(
    state_every_s=0.1,
    repeat_every_s=60.0,
    first_retry_s=0.1,
    longest_retry_s=0.4,
    answer_s=5.0,
    goodbye_s=2.0,
    command_burst=50,
)


class RecordingDaemon:
    """Takes every command and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def status(self) -> dict:
        return {}

    def explain(self, model) -> dict:
        return {}

    def history(self, model, limit) -> list:
        return []

    async def pin(self, model, variant, *, for_s, why, who):
        self.asked.append(("pin", model, variant))
        return CommandResult(ok=True, message=f"{model} stays on {variant}")

    async def unpin(self, model, *, who):
        self.asked.append(("unpin", model))
        return CommandResult(ok=True, message="chosen again")

    async def pause(self, model, *, for_s, why, who):
        self.asked.append(("pause", model))
        return CommandResult(ok=True, message="paused")

    async def release(self, model, *, on, why, who):
        self.asked.append(("release", model, on))
        return CommandResult(ok=True, message="released")

    async def adopt(self, model, *, who):
        self.asked.append(("adopt", model))
        return CommandResult(ok=True, message="adopted")

    async def resume(self, model, *, who):
        self.asked.append(("resume", model))
        return CommandResult(ok=True, message="resumed")


class _BrokerProcess:
    """A broker in a process of its own, which ends as a crash does."""

    def __init__(self, port: int, command: list[str | Path], log: Path) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log
            )
        for _ in range(1000):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                await writer.wait_closed()
                return
            assert self._process.returncode is None, self._log.read_text()
            await asyncio.sleep(0.02)
        raise AssertionError(self._log.read_text())

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._process is not None:
            await self._process.wait()
            self._process = None


# Not in the tests' own process: its shutdown waits for ever for a reader that was cancelled just
# as a packet arrived (asyncio.wait_for of Python 3.11 loses such a cancellation).
_SERVE_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def serve():
    listener = {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    await Broker({"listeners": {"default": listener}, "plugins": anonymous}).start()
    await asyncio.Event().wait()

asyncio.run(serve())
"""


class AmqttBroker(_BrokerProcess):
    """The one in Python, which is there wherever the tests are."""

    def __init__(self, port: int, folder: Path) -> None:
        command = [sys.executable, "-c", _SERVE_AMQTT, str(port)]
        super().__init__(port, command, folder / "amqtt.log")


class Mosquitto(_BrokerProcess):
    """The real one, in memory only unless the settings say otherwise."""

    def __init__(self, port: int, folder: Path, settings: str = "allow_anonymous true") -> None:
        assert MOSQUITTO is not None
        file = folder / "mosquitto.conf"
        # Without `user root` it gives up root first, and cannot read a test's folder then.
        file.write_text(f"user root\nlistener {port} 127.0.0.1\n{settings}\n")
        super().__init__(port, [MOSQUITTO, "-c", file, "-v"], folder / "mosquitto.log")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Bus:
    """A running `MqttBus` and what it is asked."""

    def __init__(self, port: int, timing: MqttTiming = QUICK, **policy: Any) -> None:
        self.daemon = RecordingDaemon()
        settings = {"host": "127.0.0.1", "port": port, "node": "edge-7", **policy}
        self.bus = MqttBus(MqttPolicy(**settings), self.daemon, timing=timing)
        self.bus.publish_state([{"name": "digits", "variant": "wide"}])
        self.task = asyncio.ensure_future(self.bus.run())

    async def up(self) -> None:
        await until(lambda: self.bus.health()["up"])

    async def lose_connection(self) -> None:
        """End as a crash does: no farewell."""
        while not self.task.done():  # once is not enough: wait_for of Python 3.11 may lose it
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=0.5)


@contextlib.asynccontextmanager
async def running_bus(port: int, timing: MqttTiming = QUICK, **policy: Any) -> AsyncIterator[Bus]:
    bus = Bus(port, timing, **policy)
    try:
        yield bus
    finally:
        await bus.bus.stop()
        if not bus.task.done():
            await bus.lose_connection()


class Watcher:
    """An operator's client: sees everything of the node."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.seen: list[tuple[str, Any, bool]] = []

    async def follow(self) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            async for message in self.client.messages:
                topic = message.topic.value.removeprefix("triton-governor/edge-7/")
                if topic.endswith("/command"):
                    continue  # our own, and not always JSON
                payload = json.loads(message.payload) if message.payload else None
                self.seen.append((topic, payload, message.retain))

    def said(self, topic: str) -> list[Any]:
        return [payload for seen, payload, _ in self.seen if seen == topic]

    async def hears(self, topic: str, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """Wait until something was said there, and return the first of it."""
        await until(lambda: any(map(wanted, self.said(topic))))
        return next(filter(wanted, self.said(topic)))

    async def command(self, payload: Any, model: str = "digits", **how: Any) -> None:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.client.publish(
            f"triton-governor/edge-7/models/{model}/command", raw, qos=1, **how
        )

    async def ask(self, model: str = "digits", **fields: Any) -> dict:
        """Send a command and return its result."""
        await self.command(fields, model)
        return await self.hears(
            f"models/{model}/result", lambda result: result["id"] == fields["id"]
        )


@contextlib.asynccontextmanager
async def watching(port: int, **login: Any) -> AsyncIterator[Watcher]:
    async with aiomqtt.Client("127.0.0.1", port, **login) as client:
        watcher = Watcher(client)
        await client.subscribe("triton-governor/#", qos=1)
        following = asyncio.ensure_future(watcher.follow())
        try:
            yield watcher
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
