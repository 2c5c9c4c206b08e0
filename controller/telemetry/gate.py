"""How many may be connected to one of our HTTP servers, and how long one may be silent there.

Owns the limits that the library's server does not have: without them whoever reaches a port could
hold every file descriptor of the daemon. It must not know what is served.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

FIRST_REQUEST_S: Final = 10.0


class _Refused(asyncio.Protocol):
    """One connection too many: closed before it can ask anything."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Gate:
    """Lets connections in to one application.

    Args:
        app: the application, not yet set up.
        most: open connections; the next one is closed at once.
        first_request_s: how long the first request may take to come, its headers included. From
            then on the server's own keep-alive timeout holds.
    """

    def __init__(
        self, app: web.Application, *, most: int, first_request_s: float = FIRST_REQUEST_S
    ) -> None:
        self._most = most
        self._first_request_s = first_request_s
        self._silent: set[RequestHandler] = set()
        app.middlewares.insert(0, self._note)

    async def listen(self, runner: web.AppRunner, host: str, port: int) -> asyncio.Server:
        """Listen on an address. Raises OSError, OverflowError."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: self.admit(runner), host, port, backlog=self._most, reuse_address=True
        )

    def admit(self, runner: web.AppRunner) -> asyncio.BaseProtocol:
        """Return what handles a connection that just came."""
        server = runner.server
        if server is None or len(server.connections) >= self._most:
            return _Refused()
        handler = server()
        self._silent.add(handler)
        asyncio.get_running_loop().call_later(self._first_request_s, self._end_silent, handler)
        return handler

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        return await handler(request)

    def _end_silent(self, handler: RequestHandler) -> None:
        if handler in self._silent:
            self._silent.discard(handler)
            handler.force_close()
