"""Open-loop traffic: requests leave on a clock, whatever became of those before.

Counts every failure and remembers which variant answered each request (the `TAG` of the models
in `repository`). Run as a program it does the same from a process of its own, for measurements
that the load generator must not disturb:
`python traffic.py GRPC MODEL RATE`, until its input ends; then prints one JSON line.
"""

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Self

import aiohttp
import numpy as np
import tritonclient.grpc.aio as triton

DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    intended_s: float  # when it was to be sent, monotonic
    ended_s: float
    tag: int | None
    error: str | None = None

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.intended_s


class Traffic:
    """Requests of one row to one model over gRPC; an asynchronous context manager."""

    def __init__(self, grpc: str, model: str, *, rate: float = 60.0) -> None:
        self._grpc, self._model, self._interval_s = grpc, model, 1.0 / rate
        self.answers: list[Answer] = []
        self._sender: asyncio.Task[None] | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._connect()
        self._sender = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Send no more and wait for what is under way."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender})
            self._sender = None
            if self._open:
                await asyncio.wait(self._open, timeout=DEADLINE_S + 2.0)  # each ends by itself
            await self._disconnect()

    async def _connect(self) -> None:
        self._client = triton.InferenceServerClient(self._grpc)
        tensor = triton.InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
        self._inputs = [tensor]

    async def _disconnect(self) -> None:
        await self._client.close()

    async def _ask(self) -> int:
        answer = await self._client.infer(self._model, self._inputs, client_timeout=DEADLINE_S)
        return int(answer.as_numpy("TAG").reshape(-1)[0])

    async def _send(self) -> None:
        intended_s = time.monotonic()
        while True:
            request = asyncio.create_task(self._request(intended_s))
            self._open.add(request)
            request.add_done_callback(self._open.discard)
            intended_s += self._interval_s
            await asyncio.sleep(max(0.0, intended_s - time.monotonic()))

    async def _request(self, intended_s: float) -> None:
        tag, error = None, None
        try:
            tag = await self._ask()
        except Exception as problem:  # noqa: BLE001 - every failure counts, of whatever kind
            error = f"{type(problem).__name__}: {problem}"
        self.answers.append(Answer(intended_s, time.monotonic(), tag, error))

    # -- what came of it ---------------------------------------------------------------------

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error is not None]

    def tags(self, since_s: float = 0.0) -> list[int | None]:
        """Which variants answered what was to be sent from a moment on, in that order."""
        ordered = sorted(self.answers, key=lambda answer: answer.intended_s)
        return [answer.tag for answer in ordered if answer.intended_s >= since_s]

    def outage_s(self) -> float:
        """From the first intended send that failed to the last."""
        times = [answer.intended_s for answer in self.failures]
        return max(times) - min(times) if times else 0.0

    def check(self, *, at_least: int = 1) -> None:
        """Assert that there was traffic and that none of it failed."""
        assert not self.failures, self.failures[:3]
        assert len(self.answers) >= at_least, f"{len(self.answers)} answers only"


async def answered(grpc: str, model: str, *, within_s: float) -> float:
    """Wait until a model answers a request; return how long that took."""
    began_s = time.monotonic()
    while True:
        one = Traffic(grpc, model)
        await one._connect()
        try:
            await one._ask()
        except Exception as problem:  # noqa: BLE001 - whatever it was, ask again
            if time.monotonic() - began_s > within_s:
                raise AssertionError(f"{model} not answered in {within_s} s: {problem}") from None
            await asyncio.sleep(0.02)
        else:
            return time.monotonic() - began_s
        finally:
            await one._disconnect()


class HttpTraffic(Traffic):
    """The same over keep-alive HTTP connections."""

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(DEADLINE_S), connector=aiohttp.TCPConnector(limit=24)
        )
        row = {"name": "IN", "shape": [1, 1], "datatype": "FP32", "data": [0.0]}
        self._body = {"inputs": [row]}

    async def _disconnect(self) -> None:
        await self._session.close()

    async def _ask(self) -> int:
        url = f"http://{self._grpc}/v2/models/{self._model}/infer"
        async with self._session.post(url, json=self._body) as response:
            answer = await response.json(content_type=None)
            assert response.status == 200, answer
            return next(int(t["data"][0]) for t in answer["outputs"] if t["name"] == "TAG")


class OtherProcess:
    """`Traffic` in a process of its own."""

    def __init__(self, grpc: str, model: str, *, rate: float) -> None:
        self._arguments = (grpc, model, str(rate))
        self.answers = 0
        self.failures: list[str] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_) -> None:
        output, _ = await self._process.communicate(b"")
        report = json.loads(output)
        self.answers, self.failures = report["answers"], report["failures"]


async def _main(grpc: str, model: str, rate: str) -> None:
    async with Traffic(grpc, model, rate=float(rate)) as traffic:
        with contextlib.suppress(KeyboardInterrupt):
            await asyncio.to_thread(sys.stdin.read)
    failures = [json.dumps(asdict(answer)) for answer in traffic.failures]
    print(json.dumps({"answers": len(traffic.answers), "failures": failures}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
