"""The page over one connection, against a scripted server on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from controller.telemetry.page_client import PageClient, PageError, UnreachableError

BODY = b"nv_inference_count 1\n"


def answer(body: bytes = BODY, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """Answers each request with the next of some byte strings; None: it hangs up instead."""

    def __init__(self, *answers: bytes | None, hang_up: bool = False) -> None:
        self.answers = list(answers)
        self.hang_up = hang_up  # after each answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                content = self.answers.pop(0)
                if content is None:
                    break
                writer.write(content)
                await writer.drain()
                if self.hang_up:
                    break
        writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[PageClient]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    client = PageClient(server.url, longest_bytes=1000)
    try:
        yield client
    finally:
        client.close()
        await end(listener)


async def end(listener: asyncio.Server) -> None:
    listener.close()
    await asyncio.sleep(0.02)  # the handlers see that their clients are gone


async def test_pages_come_over_one_connection():
    server = Server(answer(b"one"), answer(b"two"), answer(b""))
    async with serving(server) as client:
        assert [await client.get() for _ in range(3)] == [b"one", b"two", b""]
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /metrics HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0]


async def test_a_chunked_page_is_put_together():
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    )
    async with serving(Server(chunked, answer())) as client:
        assert await client.get() == b"onetwo"
        assert await client.get() == BODY


async def test_a_page_of_unknown_length_ends_with_the_connection():
    server = Server(b"HTTP/1.1 200 OK\r\n\r\n" + BODY, answer(b"next"), hang_up=True)
    async with serving(server) as client:
        assert await client.get() == BODY
        assert await client.get() == b"next"
    assert server.connections == 2


async def test_a_connection_that_was_closed_while_idle_is_opened_again():
    server = Server(answer(b"one"), answer(b"two"), hang_up=True)
    async with serving(server) as client:
        assert await client.get() == b"one"
        await asyncio.sleep(0.02)
        assert await client.get() == b"two"
    assert server.connections == 2


async def test_a_connection_that_is_closed_as_the_request_comes_is_opened_again():
    server = Server(answer(b"one"), None, answer(b"two"))
    async with serving(server) as client:
        assert await client.get() == b"one"
        assert await client.get() == b"two"
    assert server.connections == 2


async def test_connection_close_is_honoured():
    server = Server(answer(BODY, "Connection: close"), answer(BODY))
    async with serving(server) as client:
        assert await client.get() == BODY
        assert await client.get() == BODY
    assert server.connections == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (answer(status="404 Not Found"), "it answered 404"),
        (answer(status="302 Found"), "it answered 302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (answer(b"x" * 1001), "longer than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nonly", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "broke off"),
        (None, "closed without an answer"),
    ],
)
async def test_what_is_no_page_is_refused_with_a_reason_and_the_next_page_comes(content, words):
    server = Server(content, answer(), hang_up=True)
    async with serving(server) as client:
        with pytest.raises(PageError, match=words):
            await client.get()
        assert await client.get() == BODY


async def test_nobody_listening_is_told_apart():
    server = Server()
    async with serving(server) as client:
        pass
    with pytest.raises(UnreachableError):
        await client.get()


async def test_a_request_that_was_given_up_does_not_spoil_the_next():
    late: list[Callable[[], None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if not late:
                late.append(lambda: writer.write(answer(b"late")))
                await reader.read()
            else:
                writer.write(answer(b"fresh"))
                await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = PageClient(
        f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", longest_bytes=1000
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.get()
    late[0]()
    assert await client.get() == b"fresh"
    client.close()
    await end(listener)


async def test_an_answer_nobody_asked_for_is_not_taken_for_the_next():
    server = Server(answer(b"one") + answer(b"unasked"), answer(b"two"))
    async with serving(server) as client:
        assert await client.get() == b"one"
        assert await client.get() == b"two"
    assert server.connections == 2


async def test_a_name_and_a_password_in_the_url_are_sent_as_such():
    server = Server(answer())
    async with serving(server) as client:
        other = PageClient(server.url.replace("//", "//user:p%40ss@"), longest_bytes=1000)
        assert await other.get() == BODY
        other.close()
        client.close()
    assert b"Authorization: Basic dXNlcjpwQHNz\r\n" in server.requests[0]
    assert b"Host: 127.0.0.1" in server.requests[0]
