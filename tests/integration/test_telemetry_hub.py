"""The hub against a metrics page on loopback that misbehaves; no Triton answers gRPC here."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from controller.policy.model import (
    GpuPolicy,
    GpuSource,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.channel import KeyFileError, read_headers
from controller.telemetry.hub import Reading, Telemetry


class MetricsPage:
    """A page of counters that can be changed, delayed, broken and taken away."""

    def __init__(self) -> None:
        self.text = ""
        self.delay_s = 0.0
        self.status = 200
        self.requests = 0
        self.peers: set[object] = set()
        self.port = 0
        self._runner: web.AppRunner | None = None

    def count(self, completed: int, pending: int = 0) -> None:
        labels = '{model="fast",version="1"}'
        self.text = (
            f"nv_inference_request_success{labels} {completed}\n"
            f"nv_inference_count{labels} {2 * completed}\n"
            f"nv_inference_pending_request_count{labels} {pending}\n"
        )

    async def answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        await asyncio.sleep(self.delay_s)
        return web.Response(text=self.text, status=self.status)

    async def open(self) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self.answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


@pytest.fixture
async def page() -> AsyncIterator[MetricsPage]:
    one = MetricsPage()
    one.count(100)
    await one.open()
    yield one
    await one.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def policy_for(port: int, *, traces: str | None = None) -> Policy:
    variants = (VariantPolicy("fast", "fast", 0.8), VariantPolicy("slow", "slow", 0.9))
    return Policy(
        triton=TritonPolicy(
            f"127.0.0.1:{closed_port()}", f"http://127.0.0.1:{port}/metrics", traces
        ),
        models=(ModelPolicy("digits", Objective(0.06, 99.0), variants),),
        gpu=GpuPolicy(GpuSource.NONE),
    )


@pytest.fixture
async def telemetry(page: MetricsPage) -> AsyncIterator[Telemetry]:
    one = Telemetry(policy_for(page.port))
    await one.start()
    yield one
    await one.stop()


def health(reading: Reading, name: str):
    return next(source for source in reading.sources if source.name == name)


async def read_until(
    telemetry: Telemetry, what: Callable[[Reading], bool], within_s: float = 10.0
) -> Reading:
    async with asyncio.timeout(within_s):
        while not what(reading := await telemetry.read(0.05)):  # noqa: ASYNC110 - as the daemon does
            await asyncio.sleep(0.02)
        return reading


async def test_increments_cover_the_time_since_the_reading_before(telemetry, page):
    first = await telemetry.read(1.0)
    assert first.variants["fast"].completed_requests == 0
    page.count(107, pending=5)
    second = await telemetry.read(1.0)
    fast = second.variants["fast"]
    assert (fast.completed_requests, fast.completed_rows, fast.pending_requests) == (7, 14, 5)
    assert 0.0 < second.window_s < 5.0
    third = await telemetry.read(1.0)
    assert third.variants["fast"].completed_requests == 0


async def test_a_glance_tells_what_waits_and_counts_nothing(telemetry, page):
    await telemetry.read(1.0)
    page.count(104, pending=9)
    assert await telemetry.glance(1.0) == {"fast": 9}
    page.count(107, pending=5)
    reading = await telemetry.read(1.0)
    assert reading.variants["fast"].completed_requests == 7
    assert reading.variants["fast"].pending_requests == 5


async def test_a_glance_that_takes_too_long_tells_nothing(telemetry, page):
    page.count(104, pending=9)
    await telemetry.read(1.0)
    page.delay_s = 30.0
    began_s = time.monotonic()
    assert await telemetry.glance(0.01) == {}
    assert time.monotonic() - began_s < 0.5


async def test_a_variant_that_is_not_on_the_page_is_absent_and_not_idle(telemetry):
    reading = await telemetry.read(1.0)
    assert reading.variants["slow"].pending_requests is None
    assert reading.variants["slow"].ready is None


async def test_a_page_that_hangs_never_holds_the_tick(telemetry, page):
    await telemetry.read(1.0)
    page.delay_s = 30.0
    for _ in range(5):
        began_s = time.monotonic()
        reading = await telemetry.read(0.02)
        assert time.monotonic() - began_s < 0.2
        assert reading.variants["fast"].pending_requests == 0  # what came last
        assert reading.window_s == 0.0
    assert reading.readings_age_s is not None
    reading = await read_until(telemetry, lambda r: not health(r, "metrics").up)
    assert "did not answer" in (health(reading, "metrics").error or "")


async def test_a_page_that_comes_after_the_budget_is_counted_at_the_next_tick(telemetry, page):
    await telemetry.read(1.0)
    page.count(110)
    page.delay_s = 0.1
    done = 0
    for _ in range(20):
        done += (await telemetry.read(0.01)).variants["fast"].completed_requests
        await asyncio.sleep(0.03)
    assert done == 10


@pytest.mark.parametrize(("text", "status"), [("<html>", 200), ("", 200), ("x", 503)])
async def test_a_broken_page_is_a_failure_that_heals(telemetry, page, text, status):
    good = page.text
    page.text, page.status = text, status
    reading = await telemetry.read(1.0)
    assert not health(reading, "metrics").up
    assert health(reading, "metrics").failures >= 1
    page.text, page.status = good, 200
    reading = await read_until(telemetry, lambda r: health(r, "metrics").up)
    assert reading.readings_age_s is not None


async def test_an_endless_page_is_refused(telemetry, page):
    telemetry._metrics._client._longest_bytes = 1000
    page.text = "# TYPE nv_x counter\n" * 1000
    reading = await telemetry.read(1.0)
    assert "longer than" in (health(reading, "metrics").error or "")


async def test_counters_that_start_again_never_go_negative(telemetry, page):
    await telemetry.read(1.0)
    page.count(3)
    assert (await telemetry.read(1.0)).variants["fast"].completed_requests == 3


async def test_the_connection_is_kept_and_found_again(telemetry, page):
    for _ in range(5):
        await telemetry.read(1.0)
    assert page.requests == 5
    assert len(page.peers) == 1
    await page.close()
    reading = await read_until(telemetry, lambda r: not health(r, "metrics").up)
    assert "not reachable" in (health(reading, "metrics").error or "")
    page.count(120)
    await page.open()
    reading = await read_until(telemetry, lambda r: health(r, "metrics").up)
    assert reading.variants["fast"].completed_requests == 20


async def test_without_a_server_everything_is_down_and_says_what_to_do(telemetry):
    reading = await read_until(telemetry, lambda r: health(r, "triton").failures > 0)
    assert not reading.triton_up
    assert reading.triton_version is None
    assert "is it running" in (health(reading, "triton").error or "")
    assert health(reading, "gpu").detail == "gpu: none (as the policy says)"


async def test_the_host_is_read(telemetry):
    reading = await read_until(telemetry, lambda r: r.host.cpu_count is not None)
    assert reading.host.memory_total_bytes
    assert 0.0 <= (reading.host.cpu_ratio or 0.0) <= 1.0


async def test_a_policy_with_another_address_replaces_the_sources(telemetry, page):
    await telemetry.read(1.0)
    other = MetricsPage()
    other.count(5)
    await other.open()
    telemetry.set_policy(policy_for(other.port, traces="127.0.0.1:0"))
    await read_until(telemetry, lambda _: other.requests > 0)
    assert telemetry.traces_address is not None
    await other.close()


async def test_stop_is_quick_while_everything_hangs(page):
    page.delay_s = 30.0
    one = Telemetry(policy_for(page.port, traces="127.0.0.1:0"))
    await one.start()
    await one.read(0.01)
    began_s = time.monotonic()
    await one.stop()
    assert time.monotonic() - began_s < 3.0


def test_the_key_of_restricted_protocols_becomes_a_header(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    policy = TritonPolicy("x:1", None, None, str(key), "Admin-Key")
    assert read_headers(policy) == {"triton-grpc-protocol-admin-key": "s3cret"}
    assert read_headers(TritonPolicy("x:1", None, None)) == {}


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff"])
def test_a_key_file_that_cannot_be_used_is_told_with_its_path(tmp_path: Path, content):
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(KeyFileError, match=str(key)):
        read_headers(TritonPolicy("x:1", None, None, str(key)))
