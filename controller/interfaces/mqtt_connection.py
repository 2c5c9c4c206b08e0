"""One connection to a broker, from its first packet until nothing is left of it.

Owns what has to be known about the client library: how to connect so that a stop does not wait,
and how to close whatever a misbehaving broker leaves behind. It must not know what is said.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from controller.policy.credentials import CredentialError, secret_file
from controller.policy.model import MqttPolicy, TlsPolicy
from controller.telemetry.small_file import LONGEST_SECRET_BYTES, read_small
from controller.telemetry.tls import TlsError, client_context

if TYPE_CHECKING:  # loaded on first use: a daemon without a broker does not pay for it
    import aiomqtt

# What the libraries say about every single bad packet is a hostile broker's way into the log;
# what matters of it ends in the bus's health.
_WIRE_LOG = logging.getLogger(f"{__name__}.wire")
_WIRE_LOG.setLevel(logging.CRITICAL)

MAX_WAITING = 32  # messages, each way
_REFUSED = 128  # from here on, a code in a SUBACK is a refusal
_FLOOD_LOOKS = 20  # per window
# A message is read whole before anybody can refuse it. A small buffer bounds what one turn of the
# loop reads of it, the limit what is read in all (commands have 4 KiB).
_RECEIVE_BUFFER_BYTES = 64 * 1024
_MAX_MESSAGE_BYTES = 1024 * 1024


class BusError(Exception):
    """The connection is of no use; the message is for the operator."""


class Connection:
    """A connected client. Made by `connect`."""

    def __init__(self, client: "aiomqtt.Client", incoming: "_Incoming") -> None:
        self._client = client
        self._incoming = incoming

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send and wait until the broker has it. Raises aiomqtt.MqttError."""
        await self._client.publish(topic, payload, qos=1, retain=retain)

    async def subscribe(self, topic_filter: str) -> bool:
        """Return whether the broker grants it. Raises aiomqtt.MqttError."""
        codes = await self._client.subscribe(topic_filter, qos=1)
        return all((code if isinstance(code, int) else code.value) < _REFUSED for code in codes)

    async def messages(self) -> AsyncIterator[tuple[str, bytes, bool]]:
        """Yield topic, payload and whether it was retained. Raises aiomqtt.MqttError at the end."""
        async for message in self._client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            yield message.topic.value, payload, message.retain

    async def raise_on_flood(self, most: int, window_s: float) -> None:
        """Watch for more messages than can be meant: each costs the loop time, read or not.

        Raises:
            BusError: there were more than `most` in `window_s` seconds, or one is too large.
        """
        while True:
            before = self._incoming.arrived
            for _ in range(_FLOOD_LOOKS):
                await asyncio.sleep(window_s / _FLOOD_LOOKS)
                if _announced_bytes(self._client) > _MAX_MESSAGE_BYTES:
                    raise BusError(
                        f"the broker is sending a message of {_announced_bytes(self._client)} "
                        "bytes; limit the size of messages there (mosquitto: max_packet_size)"
                    )
                if self._incoming.arrived - before > most:
                    raise BusError(
                        f"the broker sent more than {most} messages within {window_s:g} s; "
                        "find who publishes to this node's command topics"
                    )

    async def leave(self) -> None:
        """Disconnect in order: the broker keeps the will to itself. Raises aiomqtt.MqttError."""
        await self._client.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def connect(
    policy: MqttPolicy,
    *,
    identifier: str,
    will: tuple[str, bytes],
    stopping: asyncio.Event,
    answer_s: float,
    keepalive_s: int,
) -> AsyncIterator[Connection | None]:
    """Connect; leave nothing open afterwards. None if `stopping` was set first.

    Args:
        policy: the broker.
        identifier: who we are to it.
        will: topic and payload that the broker publishes, retained, when it loses us.
        stopping: ends the waiting for a connection.
        answer_s: how long the broker may take for each of its answers.
        keepalive_s: after one and a half of it without a sign of life, it gives us up.

    Raises:
        aiomqtt.MqttError: not reached, or refused.
        BusError: a file that the policy names is not what it should be.
        OSError: such a file cannot be read.
    """
    import aiomqtt  # noqa: PLC0415 - see above

    queues: list[_Incoming] = []

    class Queue(_Incoming):
        def __init__(self, maxsize: int = 0) -> None:
            super().__init__(maxsize)
            queues.append(self)

    client = aiomqtt.Client(
        policy.host,
        policy.port,
        username=policy.username,
        password=await asyncio.to_thread(_password, policy.password_file),
        tls_context=await asyncio.to_thread(_tls, policy.tls),
        identifier=identifier,
        clean_session=True,  # a command that came while we were away is stale
        will=aiomqtt.Will(will[0], will[1], qos=1, retain=True),
        keepalive=keepalive_s,
        timeout=answer_s,
        logger=_WIRE_LOG,
        queue_type=Queue,
        max_queued_incoming_messages=MAX_WAITING,
        max_queued_outgoing_messages=MAX_WAITING,
        socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)],
    )
    try:
        connected = await _enter(client, stopping)
        yield Connection(client, queues[0]) if connected else None
    finally:
        _sever(client)


class _Incoming(asyncio.Queue[Any]):
    """The library's queue, which also counts what did not fit into it."""

    arrived = 0

    def put_nowait(self, item: Any) -> None:
        self.arrived += 1
        super().put_nowait(item)


async def _enter(client: "aiomqtt.Client", stopping: asyncio.Event) -> bool:
    # A task of its own: the library connects in a thread, which cancelling does not end, and a
    # connection that nobody waited for would stay open beside the next one.
    entering = asyncio.ensure_future(client.__aenter__())
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({entering, stop}, return_when=asyncio.FIRST_COMPLETED)
        if entering.done():
            await entering
            return True
        return False
    finally:
        stop.cancel()
        if not entering.done():
            entering.add_done_callback(lambda task: _abandon(client, task))


def _abandon(client: "aiomqtt.Client", task: "asyncio.Future[Any]") -> None:
    if not task.cancelled():
        task.exception()  # nobody else will ask
    _sever(client)


def _announced_bytes(client: "aiomqtt.Client") -> int:
    """Return the size of the message that is just arriving."""
    packet = getattr(client._client, "_in_packet", {})  # noqa: SLF001 - nothing public tells
    return int(packet.get("remaining_length", 0))


def _sever(client: "aiomqtt.Client") -> None:
    """Close the socket, in whatever state the libraries are.

    After an error they may leave it open and watched: a broker that keeps sending would keep the
    loop busy, and a late welcome would make a second connection under our name.
    """
    with contextlib.suppress(Exception):
        client._client.reinitialise()  # noqa: SLF001 - no public way closes a broken connection
    broken = client._disconnected  # noqa: SLF001 - an error in it that nobody reads is logged
    if broken.done() and not broken.cancelled():
        broken.exception()


def _password(file: str | None) -> str | None:
    """Read the password; at every connection, so that a renewed one is used. Raises OSError."""
    if file is None:
        return None
    try:
        path = str(secret_file(file))
        return read_small(path, LONGEST_SECRET_BYTES).decode("utf-8").rstrip("\r\n")
    except CredentialError as error:
        raise BusError(f"mqtt.password_file: {error}") from error
    except UnicodeDecodeError as error:
        raise BusError(f"mqtt.password_file {file}: not UTF-8 text") from error
    except ValueError as error:
        raise BusError(f"mqtt.password_file {file}: {error}") from error


def _tls(policy: TlsPolicy | None) -> ssl.SSLContext | None:
    """Return how the broker is verified, and who we are to it; at every connection anew."""
    try:
        return None if policy is None else client_context(policy)
    except TlsError as error:
        raise BusError(str(error)) from error
