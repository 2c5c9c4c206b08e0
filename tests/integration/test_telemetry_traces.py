"""The OTLP receiver on a loopback socket, fed with what a real tritonserver posted."""

import asyncio
import gzip
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from controller.telemetry import otlp
from controller.telemetry.otlp import TraceReceiver

BODY = (Path(__file__).parents[1] / "unit" / "test_telemetry_otlp_body.json").read_bytes()
JSON = {"Content-Type": "application/json"}


def fresh_body(age_s: float = 0.05) -> bytes:
    """Return the recorded body as if its newest span had ended so long ago."""
    document = json.loads(BODY)
    spans = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    newest_ns = max(int(span["endTimeUnixNano"]) for span in spans)
    shift_ns = time.time_ns() - int(age_s * 1e9) - newest_ns
    for span in spans:
        for event in (span, *span["events"]):
            for key in ("timeUnixNano", "startTimeUnixNano", "endTimeUnixNano"):
                if key in event:
                    event[key] = str(int(event[key]) + shift_ns)
    return json.dumps(document).encode()


@pytest.fixture
async def receiver() -> AsyncIterator[TraceReceiver]:
    one = TraceReceiver("127.0.0.1:0", ["al"], clock=time.monotonic)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def url(receiver: TraceReceiver, path: str = "/v1/traces") -> str:
    assert receiver.address is not None
    host, port = receiver.address
    return f"http://{host}:{port}{path}"


async def until(what: Callable[[], bool], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)


async def post(client, receiver, data: bytes, headers: dict[str, str] | None = None) -> int:
    async with client.post(url(receiver), data=io.BytesIO(data), headers=headers or JSON) as answer:
        await answer.read()
        return answer.status


async def test_a_real_body_becomes_samples_on_our_clock_handed_out_once(receiver, client):
    assert await post(client, receiver, fresh_body()) == 200
    samples = receiver.take()
    assert len(samples) == 8
    now_s = time.monotonic()
    assert all(now_s - 2.0 < sample.start_s < now_s for sample in samples)
    assert receiver.take() == ()
    assert receiver.ledger.health(now_s).up


async def test_gzip_is_understood_and_bounded(receiver, client):
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert await post(client, receiver, gzip.compress(fresh_body()), headers) == 200
    assert len(receiver.take()) == 8
    bomb = gzip.compress(b" " * (64 * 1024 * 1024))
    assert await post(client, receiver, bomb, headers) == 413
    assert await post(client, receiver, b"not gzip", headers) == 400


async def test_protobuf_is_answered_with_unsupported_media_type(receiver, client):
    headers = {"Content-Type": "application/x-protobuf"}
    assert await post(client, receiver, b"\x0a\x00", headers) == 415


async def test_garbage_is_answered_with_bad_request_and_service_goes_on(receiver, client):
    assert await post(client, receiver, b"{") == 400
    assert await post(client, receiver, fresh_body()) == 200


async def test_a_body_over_the_limit_is_refused(receiver, client):
    assert await post(client, receiver, b" " * (otlp.MAX_BODY_BYTES + 1)) == 413


async def test_other_paths_and_methods_are_refused(receiver, client):
    async with client.get(url(receiver)) as answer:
        assert answer.status == 405
    async with client.post(url(receiver, "/v1/metrics"), data=b"{}", headers=JSON) as answer:
        assert answer.status == 404


async def test_samples_that_nobody_takes_are_dropped_oldest_first_and_counted(
    receiver, client, monkeypatch
):
    monkeypatch.setattr(otlp, "MAX_SAMPLES", 10)
    for _ in range(2):
        assert await post(client, receiver, fresh_body()) == 200
    samples = receiver.take()
    assert len(samples) == 10
    assert receiver.dropped == 6


async def test_an_address_in_use_is_said_and_retried(client):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        receiver = TraceReceiver(f"127.0.0.1:{port}", ["al"], clock=time.monotonic)
        await receiver.start()
        health = receiver.ledger.health(time.monotonic())
        assert not receiver.listening
        assert not health.up
        assert f"cannot listen on 127.0.0.1:{port}" in (health.error or "")
    await until(lambda: receiver.listening)
    assert await post(client, receiver, fresh_body()) == 200
    await receiver.stop()


async def test_an_address_that_makes_no_sense_is_a_failure_and_no_crash():
    receiver = TraceReceiver("nowhere.invalid:70000", ["al"], clock=time.monotonic)
    await receiver.start()
    assert not receiver.ledger.health(time.monotonic()).up
    await receiver.stop()
