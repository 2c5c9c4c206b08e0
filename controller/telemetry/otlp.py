"""The OTLP/HTTP receiver to which Triton posts its traces.

Owns the listening socket, the limits on what is accepted and the bounded queue of samples. It
answers what is not OTLP/JSON with a 4xx and a reason, and must never hold the loop or the tick:
a body that comes while the queue is full costs samples, which are counted, not memory.

`json` and one body at a time in the loop are fast enough for what sampling lets through (about
40 traces a second); a body is limited to 4 MiB before and after decompression.
"""

import asyncio
import contextlib
import time
import zlib
from collections import deque
from collections.abc import Iterable

from aiohttp import web

from controller.telemetry.gate import Gate
from controller.telemetry.observation import RequestSample
from controller.telemetry.source import Backoff, Clock, Ledger
from controller.telemetry.spans import MalformedTraceError, SpanJoiner, read_spans

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_SAMPLES = 4096
MAX_CONNECTIONS = 16  # times the size of a body is what memory they may take
_BODY_S = 5.0
_KEEP_ALIVE_S = 75.0
_SHUTDOWN_S = 0.2
_JSON = "application/json"
_ENCODINGS = ("identity", "", "gzip")
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class TraceReceiver:
    """Listens for Triton's traces and keeps the samples until they are taken."""

    def __init__(self, listen: str, aliases: Iterable[str], *, clock: Clock) -> None:
        self.ledger: Ledger[int] = Ledger("traces", clock=clock, backoff=Backoff(1.0, 10.0))
        self.joiner = SpanJoiner(aliases)
        self.dropped = 0  # samples that nobody took in time
        self.refused = 0  # bodies
        self.address: tuple[str, int] | None = None  # bound to; None: not listening
        self._listen = listen
        self._clock = clock
        self._samples: deque[RequestSample] = deque()
        self._gate: Gate | None = None
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def listening(self) -> bool:
        """Whether traces can arrive."""
        return self.address is not None

    @property
    def port(self) -> int | None:
        """The port that traces should go to; None: the policy's address makes no sense."""
        if self.address is not None:
            return self.address[1]
        text = self._listen.rpartition(":")[2]
        return int(text) if text.isdecimal() else None

    async def start(self) -> None:
        """Listen; where the address is in use, say so and go on trying in the background."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        self._gate = Gate(app, most=MAX_CONNECTIONS)
        app.router.add_post("/v1/traces", self._receive)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
            keepalive_timeout=_KEEP_ALIVE_S,
            # Done here, as a broken stream would cost the connection and an error in the log.
            auto_decompress=False,
        )
        await self._runner.setup()
        if not await self._bind():
            self._task = asyncio.create_task(self._retry(), name="telemetry-traces")

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.address = None

    def set_aliases(self, aliases: Iterable[str]) -> None:
        """Change whose spans are wanted."""
        self.joiner.aliases = frozenset(aliases)

    def take(self) -> tuple[RequestSample, ...]:
        """Return the samples that came since the last call, oldest first."""
        samples = tuple(self._samples)
        self._samples.clear()
        return samples

    async def _bind(self) -> bool:
        host, _, port = self._listen.rpartition(":")
        assert self._runner is not None  # noqa: S101 - set by start
        assert self._gate is not None  # noqa: S101 - the same
        try:
            self._server = await self._gate.listen(self._runner, host.strip("[]"), int(port))
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            self.ledger.fail(
                f"cannot listen on {self._listen}: {reason}; "
                "free the address or change triton.traces.listen"
            )
            return False
        bound = self._server.sockets[0].getsockname()
        self.address = (str(bound[0]), int(bound[1]))
        self.ledger.detail = f"listening on {self._listen}"
        # It works as soon as it listens: a server without traffic posts nothing.
        self.ledger.succeed(0)
        return True

    async def _retry(self) -> None:
        while True:
            retry_s = self.ledger.retry_s
            await asyncio.sleep(max(0.1, (retry_s or 0.0) - self._clock()))
            if await self._bind():
                return

    async def _receive(self, request: web.Request) -> web.Response:
        if request.content_type != _JSON:
            self.refused += 1
            return web.json_response(
                {"message": f"send {_JSON}; Triton's exporter does"}, status=415
            )
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in _ENCODINGS:
            self.refused += 1
            return web.json_response({"message": "send gzip or no encoding"}, status=415)
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
            spans = read_spans(_gunzip(body) if encoding == "gzip" else body)
        except web.HTTPException:
            self.refused += 1
            raise
        except MalformedTraceError as error:
            self.refused += 1
            return web.json_response({"message": str(error)[:200]}, status=400)
        except TimeoutError:
            self.refused += 1
            return web.json_response({"message": "the body took too long"}, status=408)
        now_s = self._clock()
        samples = self.joiner.take(spans, now_s, time.time() - now_s)
        self.ledger.succeed(len(samples), now_s)
        for sample in samples:
            if len(self._samples) >= MAX_SAMPLES:
                self._samples.popleft()
                self.dropped += 1
            self._samples.append(sample)
        return web.json_response({})


def _gunzip(body: bytes) -> bytes:
    """Return the decompressed body.

    Raises:
        MalformedTraceError: it is broken or ends early.
        web.HTTPRequestEntityTooLarge: it grows over the limit.
    """
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        text = stream.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise MalformedTraceError(f"not gzip: {error}") from error
    if stream.unconsumed_tail:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, MAX_BODY_BYTES + 1)
    if not stream.eof:
        raise MalformedTraceError("the compressed body ends early")
    return text
