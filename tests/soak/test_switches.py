"""Ten thousand switches under open-loop load: none fails a request, and nothing grows.

`TRITON_GOVERNOR_SOAK` is the count. What is done is kept in pytest's cache folder, chunk by
chunk, so that an interrupted soak of the same code goes on; `--cache-clear` begins anew.
"""

import asyncio
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest
from governed import ALIAS, governed, make_policy, precompile, until
from provenance import code_digest
from repository import write_model
from traffic import OtherProcess

from controller.embedded.install import install
from controller.embedded.server import start_server
from controller.ports import Outcome

COUNT = int(os.environ.get("TRITON_GOVERNOR_SOAK", "10000"))
CHUNK = 500
RATE = 100
SAMPLE = 100
VARIANTS = ("slow", "mid", "fast")
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """What some hundred switches in a row came to."""

    run: int  # memory is compared within one run of the server only
    switch_s: list[float]
    transaction_s: list[float]
    answers: int
    failures: list[str]
    cpu_ratio: float
    resources: list[tuple[int, int, int]]  # bytes, threads, descriptors, every SAMPLE switches


def read(path: Path) -> list[Chunk]:
    if not path.exists():
        return []
    return [Chunk(**json.loads(line)) for line in path.read_text().splitlines()]


async def soak(test, server, path: Path, run: int, count: int) -> None:
    process = psutil.Process(server.pid)
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        test.records.clear()
        took_s, resources = [], []
        psutil.cpu_percent()
        async with OtherProcess(server.grpc, ALIAS, rate=RATE) as traffic:
            await asyncio.sleep(1.0)
            for number in range(size):
                options = [name for name in VARIANTS if name != test.reading.serving]
                record = await test.switch_when_free(options[number % 2])
                assert record.outcome is Outcome.DONE, record
                took_s.append(record.switch_s)
                if (number + 1) % SAMPLE == 0:
                    memory = process.memory_info().rss
                    resources.append((memory, process.num_threads(), process.num_fds()))
                await asyncio.sleep(0.02)
            await until(lambda: test.server.aliases[ALIAS].proof is None)
        finals = test.of_kind("switch")
        assert len(finals) == size
        assert all(r.outcome is Outcome.DONE and r.error is None for r in finals)
        chunk = Chunk(
            run=run,
            switch_s=took_s,
            transaction_s=[r.transaction_s for r in finals],
            answers=traffic.answers,
            failures=traffic.failures,
            cpu_ratio=psutil.cpu_percent() / 100.0,
            resources=resources,
        )
        with path.open("a") as file:
            file.write(json.dumps(asdict(chunk)) + "\n")


def growth(chunks: list[Chunk], what: int) -> list[float]:
    """Return the slope of a resource per 1,000 switches, of every run after its first 500."""
    slopes = []
    for run in sorted({chunk.run for chunk in chunks}):
        values = [s[what] for chunk in chunks if chunk.run == run for s in chunk.resources]
        values = values[500 // SAMPLE :]
        if len(values) >= 1000 // SAMPLE:
            steps = list(range(len(values)))
            slopes.append(statistics.linear_regression(steps, values).slope * 1000 / SAMPLE)
    return slopes


@pytest.mark.soak
@pytest.mark.triton
async def test_switches_fail_no_request_and_leave_nothing_behind(pytestconfig, tmp_path):
    path = pytestconfig.cache.mkdir("soak") / f"switches-{code_digest()[:12]}.jsonl"
    done = read(path)
    left = COUNT - sum(len(chunk.switch_s) for chunk in done)
    if left > 0:
        root = tmp_path / "repository"
        for tag, name in enumerate(reversed(VARIANTS), start=1):
            write_model(root, name, tag=tag, delay_s=0.001 * tag)
        precompile(root)
        installation = await asyncio.to_thread(install, lambda *_: None)
        server = await asyncio.to_thread(
            start_server,
            installation,
            root,
            log_file=tmp_path / "triton.log",
            load_models=VARIANTS,
        )
        try:
            async with governed(make_policy(server.grpc, *VARIANTS)) as test:
                await test.ready()
                run = 1 + max((chunk.run for chunk in done), default=0)
                await soak(test, server, path, run, left)
        finally:
            await asyncio.to_thread(server.stop)
    chunks = read(path)
    calm = [chunk for chunk in chunks if chunk.cpu_ratio < 0.7]
    assert calm, "the host was busy all the time: nothing can be said of the times"
    switch = statistics.quantiles([s for chunk in calm for s in chunk.switch_s], n=100)
    whole = statistics.quantiles([s for chunk in calm for s in chunk.transaction_s], n=100)
    memory = growth(chunks, 0)
    rows = [
        ("switches", f"{sum(len(chunk.switch_s) for chunk in chunks)}"),
        ("of them with the host's CPU under 70 %", f"{sum(len(c.switch_s) for c in calm)}"),
        ("host CPU", f"{statistics.mean(c.cpu_ratio for c in chunks):.0%}"),
        ("requests", f"{sum(chunk.answers for chunk in chunks)}"),
        ("failed", f"{sum(len(chunk.failures) for chunk in chunks)}"),
        ("switch, median / p99 (ms)", f"{switch[49] * 1e3:.2f} / {switch[98] * 1e3:.2f}"),
        ("transaction, median / p99 (ms)", f"{whole[49] * 1e3:.2f} / {whole[98] * 1e3:.2f}"),
        ("memory per 1,000 (MB)", ", ".join(f"{slope / MB:+.2f}" for slope in memory)),
        ("threads per 1,000", ", ".join(f"{slope:+.2f}" for slope in growth(chunks, 1))),
        ("descriptors per 1,000", ", ".join(f"{slope:+.2f}" for slope in growth(chunks, 2))),
    ]
    print()
    for name, value in rows:
        print(f"{name:40} {value}")
    assert not [failure for chunk in chunks for failure in chunk.failures]
    assert switch[49] <= 0.005
    assert switch[98] <= 0.020
    assert memory or COUNT < 1500, "no run was long enough to show growth"
    assert all(slope < MB for slope in memory)
    assert all(slope < 0.5 for what in (1, 2) for slope in growth(chunks, what))
