"""Mutations of a valid OTLP body: accepted or refused with a reason, never a crash or a hang.

`TRITON_GOVERNOR_FUZZ` sets how many (1,000 by default; the soak runs 10,000).
"""

import asyncio
import copy
import json
import math
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controller.telemetry.otlp import TraceReceiver
from controller.telemetry.spans import MalformedTraceError, SpanJoiner, read_spans

COUNT = int(os.environ.get("TRITON_GOVERNOR_FUZZ", "1000"))
BODY = (Path(__file__).parents[1] / "unit" / "test_telemetry_otlp_body.json").read_bytes()
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 63, 1 << 64, 1 << 200, -0.0, 1e308, math.nan, math.inf),
    *("", "0", "al", "a", "\ud800", "\x00", "é" * 1000, "9" * 400, "-1", "1e3", " 1", "٣"),
    *([], {}, [[]], [{}], {"": {}}, {"stringValue": "al"}, {"stringValue": None}),
)


def small() -> dict[str, Any]:
    """Return the recorded document with three traces, so that mutations hit what matters."""
    document = json.loads(BODY)
    scope = document["resourceSpans"][0]["scopeSpans"][0]
    scope["spans"] = scope["spans"][:12]
    return document


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutate_document(rng: random.Random) -> bytes:
    document = small()
    for _ in range(rng.randint(1, 4)):
        found = places(document)
        if not found:
            break
        path = rng.choice(found)
        holder: Any = document
        for key in path[:-1]:
            holder = holder[key]
        kind = rng.randrange(4)
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, list):
            holder.extend(copy.deepcopy([holder[path[-1]]] * rng.randint(1, 50)))
        elif kind == 2 and str(holder[path[-1]]).isdigit():
            holder[path[-1]] = str(
                int(holder[path[-1]]) + rng.choice((-1, 1)) * 10 ** rng.randint(0, 19)
            )
        else:
            holder[path[-1]] = copy.deepcopy(rng.choice(NASTY))
    return json.dumps(document).encode()


def mutate_bytes(rng: random.Random) -> bytes:
    body = bytearray(json.dumps(small()).encode())
    for _ in range(rng.randint(1, 20)):
        at = rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                del body[at : at + rng.randint(1, 200)]
            case 2:
                body[at:at] = body[at : at + rng.randint(1, 200)]
            case _:
                body[at:at] = rng.choice((b"{", b"[" * 50, b'"', b"\\u0000", b"9" * 50, b"\x00"))
        body = body or bytearray(b"{")
    return bytes(body[: rng.choice((len(body), len(body), rng.randint(1, len(body))))])


def mutation(number: int) -> bytes:
    rng = random.Random(number)
    return mutate_document(rng) if rng.random() < 0.7 else mutate_bytes(rng)


def test_the_parser_accepts_or_refuses_every_mutation():
    joiner = SpanJoiner(["al"])
    accepted = refused = 0
    for number in range(COUNT):
        try:
            spans = read_spans(mutation(number))
        except MalformedTraceError:
            refused += 1
            continue
        accepted += 1
        for sample in joiner.take(spans, 1000.0 + number, 1_795_442_226.0 - 1000.0 - number):
            assert sample.alias == "al"
            assert math.isfinite(sample.start_s)
            assert 0.0 <= sample.latency_s <= 3600.0
            for part in (sample.queue_s, sample.compute_s):
                assert part is None or part >= 0.0
    assert accepted > COUNT // 20
    assert refused > COUNT // 20


@pytest.fixture
async def receiver() -> AsyncIterator[TraceReceiver]:
    one = TraceReceiver("127.0.0.1:0", ["al"], clock=time.monotonic)
    await one.start()
    yield one
    await one.stop()


async def test_the_receiver_answers_every_mutation_and_serves_on(receiver):
    assert receiver.address is not None
    url = f"http://127.0.0.1:{receiver.address[1]}/v1/traces"
    headers = {"Content-Type": "application/json"}
    statuses: dict[int, int] = {}
    async with aiohttp.ClientSession() as client:
        for number in range(COUNT):
            rng = random.Random(-number - 1)
            sent = dict(headers)
            if rng.random() < 0.1:
                sent["Content-Encoding"] = rng.choice(("gzip", "deflate", "identity", "x"))
            if rng.random() < 0.05:
                sent["Content-Type"] = rng.choice(("text/plain", "application/x-protobuf", ";;"))
            async with asyncio.timeout(10.0):
                async with client.post(url, data=mutation(number), headers=sent) as answer:
                    await answer.read()
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert set(statuses) <= {200, 400, 413, 415}, statuses
        assert statuses[200] > COUNT // 20
        async with client.post(url, data=BODY, headers=headers) as answer:
            assert answer.status == 200
    assert len(receiver.take()) <= 4096
