"""Brokers that are none: whatever they send, the loop stays free and nothing is left open."""

import asyncio
import contextlib
import dataclasses
import random
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from mqtt_support import QUICK, Bus, running_bus, until

CONNACK = b"\x20\x02\x00\x00"
SUBACK = b"\x90\x03\x00\x01\x01"
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HASTY = dataclasses.replace(QUICK, answer_s=0.3, goodbye_s=1.0)
# One connection for as long as a test looks: the next would clear the error.
ONCE = dataclasses.replace(HASTY, flood_window_s=1.0, first_retry_s=60.0)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept, and say nothing for ever."""
    await reader.read(100_000)
    await asyncio.Event().wait()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hang up on everybody."""


async def no_mqtt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak another protocol."""
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 50)
    await asyncio.Event().wait()


async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuse the login."""
    await reader.read(1000)
    writer.write(b"\x20\x02\x00\x05")
    await asyncio.Event().wait()


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Welcome, then never read or acknowledge anything."""
    writer.write(CONNACK + SUBACK)
    await asyncio.Event().wait()


async def huge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Welcome, then announce a message of 256 MB and send it byte by byte."""
    writer.write(CONNACK + b"\x30\xff\xff\xff\x7f")
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.01)


async def flooding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Welcome, then send a message of 256 MB as fast as it goes."""
    await reader.read(1000)
    writer.write(CONNACK + b"\x30\xff\xff\xff\x7f")
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Welcome, then repeat a good command without end."""
    await reader.read(1000)
    writer.write(CONNACK)
    await reader.read(1000)
    writer.write(SUBACK)
    await reader.read(1000)
    writer.write(b"\x40\x02\x00\x02")
    topic = b"triton-governor/edge-7/models/digits/command"
    body = bytes([0, len(topic)]) + topic + b'{"command": "unpin"}'
    while True:
        writer.write((b"\x30" + bytes([len(body)]) + body) * 20)
        await writer.drain()
        await asyncio.sleep(0.01)


def noise(seed: int, *, after_welcome: bool) -> Peer:
    """Send random packets, most of them of a known kind with a wrong inside."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chance = random.Random(seed)
        writer.write(CONNACK + SUBACK if after_welcome else b"")
        while True:
            body = chance.randbytes(chance.randrange(0, 40))
            writer.write(bytes([chance.randrange(256), len(body)]) + body)
            await writer.drain()
            await asyncio.sleep(0.001)

    peer.__doc__ = f"noise {seed} after_welcome={after_welcome}"
    return peer


@contextlib.asynccontextmanager
async def listening(peer: Peer):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await peer(reader, writer)

    served: list[asyncio.Task] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.ensure_future(serve(reader, writer)))
        # Not in `serve`: a task that is cancelled before its first step runs none of it.
        served[-1].add_done_callback(lambda _: writer.close())

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.01)  # who was accepted just now is not among the served yet
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await server.wait_closed()


def our_connections(port: int) -> int:
    """Count this process's sockets that are connected to a port."""
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[2].endswith(wanted) and row[9] != "0"}
    ours = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours += str(descriptor.readlink())[len("socket:[") : -1] in inodes
    return ours


async def longest_gap_s(during_s: float) -> float:
    """Tick like the daemon, and return the longest time between two ticks."""
    longest_s, last_s = 0.0, time.monotonic()
    ends_s = last_s + during_s
    while last_s < ends_s:
        await asyncio.sleep(0.02)
        now_s = time.monotonic()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return longest_s


PEERS = [
    silent,
    rude,
    no_mqtt,
    refusing,
    deaf,
    huge,
    *(noise(seed, after_welcome=welcome) for seed in range(2) for welcome in (False, True)),
]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__doc__)
async def test_no_peer_holds_the_loop_ends_the_task_or_leaves_a_socket(peer: Peer) -> None:
    async with listening(peer) as port:
        async with running_bus(port, HASTY) as bus:
            cpu_before_s = time.process_time()
            gap_s = await longest_gap_s(1.5)
            cpu_s = time.process_time() - cpu_before_s
            assert not bus.task.done()
            # Many attempts were made by now; all but the present one are closed.
            assert our_connections(port) <= 1
            began_s = time.monotonic()
            await bus.bus.stop()
            assert time.monotonic() - began_s < 2 * HASTY.goodbye_s + 0.5
            assert bus.task.done()
        await until(lambda: our_connections(port) == 0)
        assert bus.bus.health()["error"] is not None or peer in (huge, deaf)
        assert gap_s < 1.0  # generous: the machine may be busy, a blocked loop is worse
        assert cpu_s < 1.0  # a loop that spins on a broken socket uses all of the 1.5 s


async def test_a_message_of_256_mb_is_given_up_before_it_is_here() -> None:
    timing = dataclasses.replace(ONCE, answer_s=5.0)
    process = psutil.Process()
    async with listening(flooding) as port, running_bus(port, timing) as bus:
        before_bytes = process.memory_info().rss
        gap_s = await longest_gap_s(1.5)
        await until(lambda: "max_packet_size" in (bus.bus.health()["error"] or ""))
        assert process.memory_info().rss - before_bytes < 100_000_000
        assert gap_s < 1.0


async def test_a_flood_of_commands_ends_the_connection_not_the_daemon() -> None:
    timing = dataclasses.replace(ONCE, answer_s=5.0, flood_messages=200)
    async with listening(chatty) as port, running_bus(port, timing) as bus:
        gap_s = await longest_gap_s(1.5)
        await until(lambda: "more than 200 messages" in (bus.bus.health()["error"] or ""))
        # What the rate limit lets pass in the 12 s that this may have taken at most.
        assert len(bus.daemon.asked) <= ONCE.command_burst + 12 * ONCE.commands_per_s
        assert gap_s < 1.0


async def test_a_broker_that_does_not_even_accept_does_not_hold_a_stop() -> None:
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # a full backlog drops whoever comes next, as a dead host does
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with running_bus(full.getsockname()[1], HASTY) as bus:
            await asyncio.sleep(0.2)
            assert bus.bus.health() == {**bus.bus.health(), "up": False, "error": None}
            began_s = time.monotonic()
            await bus.bus.stop()
            assert time.monotonic() - began_s < 1.0
            assert bus.task.done()


async def test_attempts_become_rarer() -> None:
    came_s: list[float] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came_s.append(time.monotonic())

    timing = dataclasses.replace(HASTY, first_retry_s=0.05, longest_retry_s=10.0)
    async with listening(count) as port, running_bus(port, timing):
        await until(lambda: len(came_s) >= 5)
        # 0.05, 0.1, 0.2, 0.4 s, each down to half of it by chance.
        assert came_s[4] - came_s[0] >= (0.05 + 0.1 + 0.2 + 0.4) / 2


@pytest.mark.parametrize(
    ("setting", "content", "told"),
    [
        ("password_file", None, "No such file"),
        ("password_file", b"\xff\xfe", "not UTF-8"),
        ("tls_ca_file", None, "No such file"),
        ("tls_ca_file", b"no certificate", "tls_ca_file"),
    ],
)
async def test_a_wrong_file_is_named_in_the_error(tmp_path, setting, content, told) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    async with running_bus(1883, HASTY, username="edge", **{setting: str(file)}) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert str(file) in bus.bus.health()["error"]
        assert told in bus.bus.health()["error"]


async def test_a_stop_before_the_first_attempt_and_twice_is_no_error() -> None:
    bus = Bus(1, HASTY)
    await bus.bus.stop()
    await bus.bus.stop()
    await asyncio.wait({bus.task}, timeout=5)
    assert bus.task.done()
    assert bus.task.exception() is None
