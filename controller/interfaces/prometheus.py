"""The page that Prometheus scrapes, on its own port.

Owns the listening socket. It must not know what the page says (`controller.interfaces.metrics`),
and nobody who asks may hold up the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web

from controller.telemetry.gate import Gate

_LOG = logging.getLogger(__name__)
# A client's malformed HTTP is answered, not logged with a traceback: it could fill the log.
_QUIET = logging.getLogger(f"{__name__}.http")
_QUIET.setLevel(logging.CRITICAL)

_RETRY_S: Final = 5.0  # before an address that was taken is tried again
_FRESH_S: Final = 0.5
_MAX_LINE_BYTES: Final = 2048
_SHUTDOWN_S: Final = 0.5
_MAX_CONNECTIONS: Final = 32
_KEEP_ALIVE_S: Final = 120.0  # longer than the usual time between two scrapes
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Serves /metrics on one address, or on none.

    Args:
        document: returns what the page is made of.
    """

    def __init__(self, document: Callable[[], Mapping[str, Any]]) -> None:
        self._document = document
        self._listen: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._rendering = asyncio.Lock()  # one page at a time, whoever asks
        self._following = asyncio.Lock()  # policies are followed one after the other
        self._page = b""
        self._made_s = -math.inf
        self.listening = False
        self.error: str | None = None  # why it does not listen

    async def follow(self, listen: str | None) -> None:
        """Serve at another `host:port`; None: nowhere."""
        async with self._following:
            if listen == self._listen and (listen is None) == (self._task is None):
                return
            await self._end()
            self._listen = listen
            if listen is not None:
                self._task = asyncio.create_task(self._serve(listen), name="prometheus")

    async def stop(self) -> None:
        """Serve no more."""
        async with self._following:
            await self._end()

    async def _end(self) -> None:
        task, self._task, self._listen, self.error = self._task, None, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _serve(self, listen: str) -> None:
        """Listen until this is cancelled; where that cannot be, try again."""
        host, _, port = listen.rpartition(":")
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        gate = Gate(app, most=_MAX_CONNECTIONS)
        server: asyncio.Server | None = None
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_QUIET,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
            keepalive_timeout=_KEEP_ALIVE_S,
            max_line_size=_MAX_LINE_BYTES,
        )
        await runner.setup()
        try:
            while True:
                try:
                    server = await gate.listen(runner, host.strip("[]"), int(port))
                except OSError as error:
                    if self.error is None:
                        _LOG.error("prometheus: cannot listen at %s: %s", listen, error)
                    self.error = f"cannot listen at {listen}: {error}"
                    await asyncio.sleep(_RETRY_S)
                else:
                    self.error, self.listening = None, True
                    _LOG.info("metrics at http://%s/metrics", listen)
                    await asyncio.Event().wait()
        finally:
            self.listening = False
            if server is not None:
                server.close()
            with contextlib.suppress(Exception):
                await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        async with self._rendering:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._made_s >= _FRESH_S:  # whoever asks more often gets the same
                # Its numbers are of one moment; a thread writes them out.
                self._page = await asyncio.to_thread(_render, self._document())
                self._made_s = now_s
        return web.Response(body=self._page, headers={"Content-Type": CONTENT_TYPE})


def _render(document: Mapping[str, Any]) -> bytes:
    # Imported by those alone who are scraped: it takes 50 ms.
    from controller.interfaces.metrics import exposition  # noqa: PLC0415

    return exposition(document)
