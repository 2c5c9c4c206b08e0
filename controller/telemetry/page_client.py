"""One page over one keep-alive HTTP connection, again and again.

Owns the connection, the request and the limits on the answer. It runs at every tick, on a
processor whose caches the server has filled meanwhile, so what counts is how much code a request
touches: a general client takes more than twice the time (benchmarks/metrics_page.py). The parser
is a library's (llhttp). No redirects, cookies, compression or proxies.
"""

import asyncio
import base64
import contextlib
import math
import ssl
import time
import urllib.parse

import httptools

from controller.policy.model import TlsPolicy
from controller.telemetry.tls import Mark, TlsError, client_context, marks

_LOOK_S = 1.0  # between looks at the files of TLS


class PageError(Exception):
    """The page could not be fetched; the message says why."""


class UnreachableError(PageError):
    """Nobody listens there."""


class PageClient:
    """Fetches one URL. Not for two tasks at once.

    Args:
        url: http or https.
        longest_bytes: of a body that is accepted.
        tls: of an https URL; None: whom the system trusts is believed.
    """

    def __init__(self, url: str, *, longest_bytes: int, tls: TlsPolicy | None = None) -> None:
        self.problem: str | None = None  # with the files of TLS as they are now
        parts = urllib.parse.urlsplit(url)
        self._is_https = parts.scheme == "https"
        self._tls = tls if self._is_https else None
        self._context: ssl.SSLContext | bool = True
        self._known: Mark | None = None
        self._looked_s = -math.inf
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._is_https else 80)
        self._longest_bytes = longest_bytes
        credentials, _, host = parts.netloc.rpartition("@")
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
        if credentials:
            token = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
            lines.append(f"Authorization: Basic {token}")
        self._request = "\r\n".join([*lines, "", ""]).encode()
        self._connection: _Connection | None = None

    async def get(self) -> bytes:
        """Return the body of the page. Whoever cancels it ends the connection with it.

        Raises:
            UnreachableError: no connection.
            PageError: another status than 200, no HTTP, too long, or broken off.
            TlsError: the files of TLS cannot be used, and never could.
        """
        if self._tls is not None and time.monotonic() - self._looked_s > _LOOK_S:
            await self._look(self._tls)
        connection = self._connection
        if connection is not None and not connection.closed:
            # A server closes what idled for long; it has not begun to answer then.
            with contextlib.suppress(_DroppedError):
                return await connection.ask(self._request)
        self._connection = connection = await self._connect()
        try:
            return await connection.ask(self._request)
        except _DroppedError as error:
            raise PageError("the connection was closed without an answer") from error

    async def _look(self, tls: TlsPolicy) -> None:
        """Read the files of TLS if they changed; what cannot be used changes nothing."""
        self._looked_s = time.monotonic()
        mark = await asyncio.to_thread(marks, tls)
        if mark == self._known and self.problem is None:
            return
        try:
            self._context = await asyncio.to_thread(client_context, tls)
        except TlsError as error:
            self.problem = str(error)
            if self._known is None:
                self._looked_s = -math.inf
                raise
            return
        self.problem, self._known = None, mark
        self.close()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._longest_bytes),
                self._host,
                self._port,
                ssl=self._context if self._is_https else None,
                server_hostname=None if self._tls is None else self._tls.server_name,
            )
        except ssl.SSLCertVerificationError as error:
            words = f"its certificate is not believed: {error.verify_message.rstrip('.')}"
            if self._tls is not None:
                words += f" (by {self._tls.place('ca_file')})"
            raise PageError(words) from error
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise PageError(f"no TLS with it: {reason}") from error
        except (OSError, UnicodeError) as error:  # a host that cannot be a name is not found
            raise UnreachableError(getattr(error, "strerror", None) or str(error)) from error
        return connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _DroppedError(Exception):
    """The server closed the connection before it sent any part of an answer."""


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, longest_bytes: int) -> None:
        self.closed = False
        self._longest_bytes = longest_bytes
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[bytes] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._began = self._in_body = self._delimited = False

    async def ask(self, request: bytes) -> bytes:
        """Send a request and return the body of the answer."""
        assert self._transport is not None  # noqa: S101 - it is connected
        self._chunks, self._size = [], 0
        self._began = self._in_body = self._delimited = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:
            self.close()  # what still comes would be taken for the next answer
            raise
        finally:
            self._answer = None

    def close(self) -> None:
        """End it at once."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        self._began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(PageError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that is under way."""
        self.closed = True
        if self._in_body and not self._delimited and exc is None:
            self._finish()  # its end is the connection's
        elif not self._began:
            self._fail(_DroppedError())
        else:
            self._fail(PageError(f"the answer broke off: {exc or 'connection closed'}"))

    # -- the parser's side

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self._answer is None or self._answer.done():
            self.close()

    def on_header(self, name: bytes, _value: bytes) -> None:
        """Note whether the body's length is told."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._delimited = True

    def on_headers_complete(self) -> None:
        """Refuse what is no page."""
        status = self._parser.get_status_code()
        self._in_body = True
        if status != 200:
            self._fail(PageError(f"it answered {status}"))

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, within the limit."""
        self._size += len(body)
        if self._size > self._longest_bytes:
            self._fail(PageError(f"the page is longer than {self._longest_bytes} bytes"))
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Hand the body over."""
        if not self._parser.should_keep_alive():
            self.close()
        self._finish()

    def _finish(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(b"".join(self._chunks))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
