"""Faults for transactions: at a step, or on the wire between governor and server."""

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable
from typing import Self

STEPS = ("check", "probe", "send", "sent", "read_back", "target_config", "request")
"""In the order of a transaction; `probe` only where the target is not proven yet. `restore`, the
way back, is passed when one of them fails."""


class Fault(enum.StrEnum):
    RAISE = "raise"
    CUT = "cut"  # every connection is reset; new ones are let in again after a while
    DELAY = "delay"
    CANCEL = "cancel"


class AtStep:
    """Do something the first time a transaction comes to a step; give it as `on_step`."""

    def __init__(self, step: str, do: Callable[[], Awaitable[None]]) -> None:
        self._step, self._do = step, do
        self.armed = False
        self.passed: list[str] = []

    async def __call__(self, alias: str, step: str) -> None:
        self.passed.append(step)
        if self.armed and step == self._step:
            self.armed = False
            await self._do()


async def inject(fault: Fault, wire: "Wire") -> None:
    if fault is Fault.RAISE:
        raise RuntimeError("injected")
    if fault is Fault.CUT:
        await wire.cut(0.3)
    if fault is Fault.DELAY:
        await asyncio.sleep(0.4)
    if fault is Fault.CANCEL:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)


class Wire:
    """A TCP proxy in front of a server that can be cut and stalled."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuse = False
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        self._flows.set()
        self.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def reset(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def cut(self, for_s: float) -> None:
        """Reset every connection and refuse new ones for a while."""
        self._refuse = True
        self.reset()
        asyncio.get_running_loop().call_later(for_s, self._let_in)

    def _let_in(self) -> None:
        self._refuse = False

    async def stall_answers(self, for_s: float) -> None:
        """Hold back everything the server says for a while; what is sent to it arrives."""
        self._flows.clear()
        asyncio.get_running_loop().call_later(for_s, self._flows.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, up_writer}
        for source, sink, answers in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if answers:
                    await self._flows.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)
