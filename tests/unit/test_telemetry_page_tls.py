"""The metrics page over https: who is believed, who we are, and files that change."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority, write_strangers

from controller.policy.model import TlsPolicy
from controller.telemetry import page_client
from controller.telemetry.page_client import PageClient, PageError
from controller.telemetry.tls import TlsError
from controller.telemetry.triton_metrics import MetricsReader, MetricsReadError

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfoo"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch) -> Authority:
    monkeypatch.setattr(page_client, "_LOOK_S", 0.0)
    authority = Authority(tmp_path / "certificates")
    authority.issue("proxy", "127.0.0.1", "proxy.example")
    authority.issue("us", "governor.example")
    write_strangers(authority.folder, "stranger", "127.0.0.1")
    return authority


@pytest.fixture
def tls(authority) -> TlsPolicy:
    return TlsPolicy(str(authority.file), **authority.files("us"), prefix="triton.metrics_tls.")


class Proxy:
    """What stands before Triton's page: a server with TLS that notes who came."""

    def __init__(self) -> None:
        self.port = 0
        self.serials: list[str | None] = []  # of the clients' certificates, one a connection

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/metrics"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = writer.get_extra_info("peercert") or {}
        self.serials.append(told.get("serialNumber"))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(PAGE)
        writer.close()


@contextlib.asynccontextmanager
async def proxy(authority: Authority, name: str = "proxy") -> AsyncIterator[Proxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files(name).values())
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(authority.file)
    server = Proxy()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await asyncio.sleep(0)


@contextlib.contextmanager
def client(url: str, tls: TlsPolicy | None):
    client = PageClient(url, longest_bytes=1000, tls=tls)
    try:
        yield client
    finally:
        client.close()


async def test_the_page_is_read_and_we_say_who_we_are(authority, tls):
    async with proxy(authority) as server:
        with client(server.url, tls) as page:
            assert await page.get() == b"foo"
            assert await page.get() == b"foo"
    (serial,) = (
        server.serials
    )  # one connection, on which files that stay as they are change nothing
    assert serial is not None


async def test_whom_the_system_does_not_trust_is_not_believed_without_our_word(authority):
    async with proxy(authority) as server:
        with client(server.url, None) as page, pytest.raises(PageError, match="is not believed"):
            await page.get()


async def test_a_stranger_is_refused_and_the_key_is_named(authority, tls):
    async with proxy(authority, "stranger") as server:
        reader = MetricsReader(server.url, clock=lambda: 0.0, tls=tls)
        with pytest.raises(MetricsReadError, match=r"not believed.*triton\.metrics_tls\.ca_file"):
            await reader.fetch()
        reader.close()
    assert server.serials == []


async def test_the_name_may_be_given(authority, tls):
    async with proxy(authority) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        with client(url, tls) as page, pytest.raises(PageError, match="localhost"):
            await page.get()
        with client(url, replace(tls, server_name="proxy.example")) as page:
            assert await page.get() == b"foo"


async def test_a_renewed_certificate_is_used_and_a_broken_one_changes_nothing(authority, tls):
    async with proxy(authority) as server:
        with client(server.url, tls) as page:
            assert await page.get() == b"foo"
            authority.issue("us", "governor.example")
            assert await page.get() == b"foo"
            authority.mix_up("us", "stranger")
            assert await page.get() == b"foo"
            assert page.problem is not None
            assert "triton.metrics_tls.key_file" in page.problem
            authority.issue("us", "governor.example")
            assert await page.get() == b"foo"
            assert page.problem is None
    assert len(set(server.serials)) == len(server.serials) == 3


async def test_files_that_never_could_be_used_are_told_and_looked_at_again(authority, tls):
    async with proxy(authority) as server:
        with client(server.url, replace(tls, **authority.files("late"))) as page:
            with pytest.raises(TlsError, match=r"late\.pem cannot be read"):
                await page.get()
            authority.issue("late", "governor.example")
            assert await page.get() == b"foo"


async def test_a_password_in_the_url_is_not_told():
    reader = MetricsReader("http://user:s3cret@127.0.0.1:1/metrics", clock=lambda: 0.0)
    with pytest.raises(MetricsReadError) as caught:
        await reader.fetch()
    assert "127.0.0.1:1/metrics" in str(caught.value)
    assert "s3cret" not in str(caught.value)
