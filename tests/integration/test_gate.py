"""The ports that anybody may reach: how many may be connected, and how long one may be silent."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from governor_process import free_port

from controller.interfaces.prometheus import MetricsServer
from controller.telemetry import otlp
from controller.telemetry.gate import Gate
from controller.telemetry.otlp import MAX_CONNECTIONS, TraceReceiver

SILENT_S = 0.3
POST = b"POST /v1/traces HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
WHOLE = POST + b"Content-Length: 20\r\n\r\n" + b'{"resourceSpans":[]}'


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setitem(Gate.__init__.__kwdefaults__, "first_request_s", SILENT_S)


@pytest.fixture
async def receiver():
    receiver = TraceReceiver("127.0.0.1:0", ["a"], clock=time.monotonic)
    await receiver.start()
    yield receiver
    await receiver.stop()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def status(self, request: bytes) -> bytes:
        self.writer.write(request)
        async with asyncio.timeout(5.0):
            return (await self.reader.readline()).split()[1]

    async def is_closed(self, within_s: float = 5.0) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                return await self.reader.read() == b""
        return False


@contextlib.asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_one_who_says_nothing_or_not_all_is_let_go(receiver):
    async with connected(receiver.address) as silent, connected(receiver.address) as slow:
        slow.writer.write(POST)  # and never the end of the headers
        assert await silent.is_closed()
        assert await slow.is_closed()


async def test_one_who_asks_is_kept(receiver):
    async with connected(receiver.address) as client:
        await client.status(WHOLE)
        assert not await client.is_closed(3.0 * SILENT_S)
    async with connected(receiver.address) as client:
        assert await client.status(WHOLE) == b"200"


async def test_those_over_the_limit_are_closed_and_their_place_is_free_again(receiver):
    async with contextlib.AsyncExitStack() as stack:
        held = [
            await stack.enter_async_context(connected(receiver.address))
            for _ in range(MAX_CONNECTIONS)
        ]
        await asyncio.sleep(0.05)
        async with connected(receiver.address) as late:
            assert await late.is_closed(SILENT_S / 2.0)
        for client in held:
            assert await client.is_closed()
        async with connected(receiver.address) as again:
            assert await again.status(WHOLE) == b"200"


async def test_a_body_that_does_not_come_is_given_up(receiver, monkeypatch):
    monkeypatch.setattr(otlp, "_BODY_S", 0.1)
    async with connected(receiver.address) as client:
        assert await client.status(POST + b"Content-Length: 4000000\r\n\r\n{") == b"408"
    assert receiver.refused == 1


async def test_the_metrics_page_has_the_limits_too():
    address = ("127.0.0.1", free_port())
    server = MetricsServer(dict)
    await server.follow(f"{address[0]}:{address[1]}")
    async with asyncio.timeout(5.0):
        while not server.listening:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    async with connected(address) as client:
        assert await client.is_closed()
    await server.stop()
