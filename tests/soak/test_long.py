"""Half an hour of real operation: nothing grows, nothing fails, and what is kept stays in bounds.

`TRITON_GOVERNOR_LONG_S` is how long, 1800 by default. A real daemon on a real Triton under a load
that rises and falls, with everything that operators do meanwhile: edits of the policy, half of them
broken, pins, pauses, questions over the socket, scrapes of the metrics page. The journal's limit is
so small that it is reached on the way.
"""

import asyncio
import contextlib
import copy
import math
import os
import random
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pytest
from governor_process import GovernorProcess, echo_policy, free_port
from supervised import SupervisedTriton
from traffic import Traffic

LONG_S = float(os.environ.get("TRITON_GOVERNOR_LONG_S", "1800"))
JOURNAL_MIB = 2
SAMPLE_S = 5.0
SETTLED = 1 / 3  # of the time: caches, learned tables and the interpreter's arenas are full by then
MOST_GROWTH_MB = 8.0
MOST_MB = 250.0


@pytest.fixture
def triton_under_care(tmp_path) -> Iterator[SupervisedTriton]:
    with SupervisedTriton(tmp_path) as server:
        yield server


@pytest.mark.soak
@pytest.mark.triton
async def test_in_half_an_hour_nothing_grows_and_nothing_fails(triton_under_care, tmp_path):
    server = triton_under_care
    policy = echo_policy(server.grpc, server.metrics_url, server.otlp_port)
    policy["prometheus"] = {"listen": f"127.0.0.1:{free_port()}"}
    policy["journal"] = {"max_size": f"{JOURNAL_MIB}MiB"}
    governor = GovernorProcess(tmp_path / "governor", policy)
    policy["journal"]["path"] = str(governor.journal)
    governor.write_policy(policy)
    governor.start()
    try:
        await governor.until(
            lambda m: bool(m["candidates"]) and all(c["known"] for c in m["candidates"]),
            timeout_s=60.0,
        )
        samples, sent, failures = await _operate(governor, policy, server.grpc)
        status = governor.status()
        assert status is not None
        assert status["daemon"]["policy_error"] is None, status["daemon"]
    finally:
        code = governor.stop()
    assert code == 0
    table = np.array(samples)
    at_s, rss_mb, own_mb, descriptors, threads, journal_mb = table.T
    late = at_s >= at_s[0] + SETTLED * (at_s[-1] - at_s[0])
    # Of its own: what is resident of files falls and rises with what else the machine does.
    slope = np.polyfit(at_s[late], own_mb[late], 1)[0]
    growth_mb = slope * (at_s[late][-1] - at_s[late][0])
    print()
    for name, column in (
        ("resident MB", rss_mb),
        ("its own MB", own_mb),
        ("descriptors", descriptors),
        ("threads", threads),
        ("journal MiB", journal_mb),
    ):
        settled = column[late]
        print(
            f"{name:12s} at first {column[0]:6.1f}; after the first third"
            f" {settled.min():6.1f} to {settled.max():6.1f}; at the end {column[-1]:6.1f}"
        )
    print(f"{sent} requests, {failures} failed; {growth_mb:+.1f} MB in {at_s[-1] - at_s[0]:.0f} s")
    actions = governor.journaled().actions
    print(f"{actions} actions are in the journal")
    assert failures == 0
    assert growth_mb < MOST_GROWTH_MB
    assert rss_mb.max() < MOST_MB
    assert np.median(descriptors[-20:]) <= np.median(descriptors[late][:20]) + 2
    assert threads[-1] <= threads[late].min() + 3
    assert journal_mb.max() <= JOURNAL_MIB
    assert "Traceback" not in governor.log.read_text()


async def _operate(
    governor: GovernorProcess, policy: dict, grpc: str
) -> tuple[list[tuple[float, ...]], int, int]:
    """Return samples, requests and failures.

    Samples are of (time, MB resident, MB of its own, descriptors, threads, MiB of journal).
    """
    assert governor.process is not None
    process = psutil.Process(governor.process.pid)
    samples: list[tuple[float, ...]] = []
    begins_s = time.monotonic()
    async with _operators(governor, policy), _Waves(grpc) as load:
        while time.monotonic() - begins_s < LONG_S:
            with process.oneshot():
                memory = process.memory_full_info()
                samples.append(
                    (
                        time.monotonic(),
                        memory.rss / 1e6,
                        (memory.uss + memory.swap) / 1e6,
                        process.num_fds(),
                        process.num_threads(),
                        _size_mib(governor.journal),
                    )
                )
            await asyncio.sleep(SAMPLE_S)
    return samples, load.sent, load.failed


def _size_mib(journal: Path) -> float:
    beside = journal.parent.glob(f"{journal.name}*")  # its write-ahead log
    return sum(path.stat().st_size for path in beside if path.exists()) / 2**20


class _Waves:
    """A load that rises and falls every two minutes, with a burst now and then."""

    def __init__(self, grpc: str) -> None:
        self._grpc = grpc
        self.sent = self.failed = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        dice, began_s = random.Random(1), time.monotonic()
        while True:
            wave = 0.5 - 0.5 * math.cos((time.monotonic() - began_s) * 2.0 * math.pi / 120.0)
            rate = 5.0 + 60.0 * wave + (80.0 if dice.random() < 0.1 else 0.0)
            traffic = Traffic(self._grpc, "chat", rate=rate)
            try:
                async with traffic:
                    await asyncio.sleep(3.0)
            finally:
                self.sent += len(traffic.answers)
                self.failed += len(traffic.failures)


@contextlib.asynccontextmanager
async def _operators(governor: GovernorProcess, policy: dict) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(one) for one in (_edits(governor, policy), _asks(governor, policy))
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        governor.write_policy(policy)
        await asyncio.sleep(2.0)
        wrong = [e for e in ended if not isinstance(e, asyncio.CancelledError)]
        assert not wrong, wrong


async def _edits(governor: GovernorProcess, policy: dict) -> None:
    dice = random.Random(2)
    while True:
        edited = copy.deepcopy(policy)
        model = edited["models"]["chat"]
        model["objective"]["latency"] = f"{dice.randint(50, 90)}ms"
        model["min_quality"] = dice.choice([0.0, 0.86])
        if dice.random() < 0.5:
            model["variants"] = dice.choice([{}, {"x": 1}, "none"])
        governor.write_policy(edited)
        await asyncio.sleep(7.0)


async def _asks(governor: GovernorProcess, policy: dict) -> None:
    listen, dice = policy["prometheus"]["listen"], random.Random(3)

    def scrape() -> None:
        with urllib.request.urlopen(f"http://{listen}/metrics", timeout=5.0) as page:
            assert b"governor_build_info" in page.read()

    while True:
        await asyncio.to_thread(governor.ask, "GET", "/v1/status")
        await asyncio.to_thread(governor.ask, "GET", "/v1/explain?model=chat")
        await asyncio.to_thread(governor.ask, "GET", "/v1/history?limit=50")
        await asyncio.to_thread(scrape)
        if dice.random() < 0.1:
            variant = dice.choice(["mid", "fast"])
            body = {"model": "chat", "variant": variant, "for_s": 2.0}
            await asyncio.to_thread(governor.ask, "POST", "/v1/pin", body)
        await asyncio.sleep(1.0)
