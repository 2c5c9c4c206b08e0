"""Mutations of valid admin requests: an answer or a closed connection, and no harm.

Raw bytes over the real Unix socket, so that the HTTP parser is part of what is tested. A mutation
may still be a valid command (a blank more, a key in another order); what the daemon must never do
is act on anything that the rules of `controller.interfaces.requests` would refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.interfaces.admin import AdminServer
from controller.interfaces.control import CommandResult

COUNT = int(os.environ.get("TRITON_GOVERNOR_FUZZ", "1000"))
ANSWER_S = 10.0
QUIET_S = 0.05
NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)

Call = tuple[str, dict[str, Any]]


class Recorder:
    """A `Control` that keeps every command it is given and has two models."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def status(self) -> dict[str, Any]:
        return {"triton": {"up": True}, "models": [{"name": "digits", "serving": "wide"}]}

    def explain(self, model: str | None) -> dict[str, Any]:
        if model not in (None, "digits", "words"):
            raise KeyError(model)
        return {"models": []}

    def history(self, model: str | None, limit: int) -> list[dict[str, Any]]:
        assert 1 <= limit <= 1000
        return []

    async def pin(self, model: str, variant: str, **given: Any) -> CommandResult:
        return self._keep("pin", model=model, variant=variant, **given)

    async def unpin(self, model: str, **given: Any) -> CommandResult:
        return self._keep("unpin", model=model, **given)

    async def pause(self, model: str | None, **given: Any) -> CommandResult:
        return self._keep("pause", model=model, **given)

    async def resume(self, model: str | None, **given: Any) -> CommandResult:
        return self._keep("resume", model=model, **given)

    def _keep(self, name: str, **given: Any) -> CommandResult:
        self.calls.append((name, given))
        return CommandResult(ok=given["model"] in (None, "digits", "words"), message="noted")


def request(method: str, url: str, body: bytes = b"", **headers: str) -> bytes:
    head = [f"{method} {url} HTTP/1.1", "Host: governor", "Connection: close"]
    head += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    if body or method == "POST":
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


COMMANDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/pin", {"model": "digits", "variant": "wide", "for_s": 600, "why": "an exam"}),
    ("/v1/pin", {"model": "words", "variant": "small"}),
    ("/v1/unpin", {"model": "digits"}),
    ("/v1/pause", {"for_s": 60.5, "why": "night"}),
    ("/v1/pause", {"model": "digits"}),
    ("/v1/resume", {}),
    ("/v1/resume", {"model": "words"}),
)
QUESTIONS = (
    "/v1/status",
    "/v1/health",
    "/v1/explain",
    "/v1/explain?model=digits",
    "/v1/history?model=words&limit=5",
)
TOKENS = (
    *(b"\r\n", b"\n", b"\x00", b"%00", b"%2e%2e/", b"/../", b"?", b"&", b"=", b"#", b";", b'"'),
    *(b"{", b"}", b"[", b"]", b"[[[[[[[[", b":", b",", b"null", b"true", b"NaN", b"-1", b"1e999"),
    *(b"\xff\xfe", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b"9" * 400, b"A" * 9000, b"\x1b[2J"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"Content-Encoding: gzip\r\n"),
    *(b"Host: x\r\n", b"GET /v1/status HTTP/1.1\r\n\r\n", b"HTTP/9.9", b"POST", b"CONNECT"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1e-320, 1e308, 10**400, "", " ", "a/b", "..", "\n", "\u202e"),
    *("x" * 5000, [], {}, ["digits"], {"model": "digits"}, "wide\x00", "digits ", math.inf),
)


def mutate_tree(rng: random.Random) -> bytes:
    """Change the values and keys of a valid body; the HTTP around it stays right."""
    url, body = rng.choice(COMMANDS)
    changed = dict(body)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(4)
        key = rng.choice([*changed, "model"])
        if kind == 0:
            changed[key] = rng.choice(ODD_VALUES)
        elif kind == 1:
            changed.pop(key, None)
        elif kind == 2:
            changed[key + rng.choice("s_ X\u00e9")] = changed.get(key, 1)
        else:
            changed[rng.choice(("variant", "for_s", "why", "who", "mode"))] = rng.choice(ODD_VALUES)
    return request("POST", url, json.dumps(changed).encode())


def mutate_bytes(rng: random.Random) -> bytes:
    """Change the bytes of a whole valid request, its head included."""
    if rng.random() < 0.75:
        url, body = rng.choice(COMMANDS)
        raw = bytearray(request("POST", url, json.dumps(body).encode()))
    else:
        raw = bytearray(request("GET", rng.choice(QUESTIONS)))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            del raw[at : at + rng.randint(1, 20)]
        elif kind == 3:
            other = rng.randrange(len(raw) + 1)
            raw[at:at] = raw[min(at, other) : max(at, other)][:200]
        else:
            del raw[at:]
    return bytes(raw)


def mutate_body(rng: random.Random) -> bytes:
    """Change the bytes of a valid body; its length is told rightly."""
    url, body = rng.choice(COMMANDS)
    raw = bytearray(json.dumps(body).encode())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw) + 1)
        if rng.random() < 0.5 and at < len(raw):
            raw[at] = rng.randrange(256)
        else:
            raw[at:at] = rng.choice(TOKENS)
    return request("POST", url, bytes(raw))


def mutants(seed: int, count: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.choice((mutate_tree, mutate_bytes, mutate_bytes, mutate_body))(rng)


async def send(path: Path, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(raw)
        answer = await read_for(reader, QUIET_S)
        if not reader.at_eof():  # it waits for more of a request: there is no more
            writer.write_eof()
            answer += await reader.read()
    except ConnectionError:
        return b""
    else:
        return answer
    finally:
        writer.close()


async def read_for(reader: asyncio.StreamReader, time_s: float) -> bytes:
    """Return what comes until the end or until the time is over."""
    chunks = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(time_s):
            while chunk := await reader.read(65536):
                chunks.append(chunk)
    return b"".join(chunks)


def statuses(answer: bytes) -> list[int]:
    """Return the codes of the answers; `100 Continue` is none, it invites the body."""
    codes = re.findall(rb"^HTTP/1\.[01] (\d{3}) ", answer, re.MULTILINE)
    return [int(code) for code in codes if code != b"100"]


def lawful(call: Call) -> bool:
    """Return whether a command is one that the rules allow, whatever the bytes were."""
    _, given = call
    names = [given["model"], given.get("variant")]
    for_s, why = given.get("for_s"), given.get("why")
    return (
        all(name is None or NAME.fullmatch(name) for name in names)
        and (for_s is None or (type(for_s) is float and 0 < for_s < 4e7))
        and (why is None or (why.isprintable() and 0 < len(why) <= 500))
    )


@pytest.fixture
def control() -> Recorder:
    return Recorder()


@pytest.mark.timeout(900)  # 10,000 take a minute and a half
async def test_mutated_requests_are_answered_or_closed_and_do_no_harm(
    control: Recorder, tmp_path: Path
) -> None:
    path = tmp_path / "governor.sock"
    server = AdminServer(control, path)
    await server.start()
    taken = refused = closed = 0
    for number, raw in enumerate(mutants(seed=8, count=COUNT)):
        before = len(control.calls)
        async with asyncio.timeout(ANSWER_S):
            answer = await send(path, raw)
        codes = statuses(answer)
        context = f"mutant {number}: {raw!r} -> {answer[:300]!r}"
        assert all(200 <= code < 500 for code in codes), context
        new = control.calls[before:]
        assert all(lawful(call) for call in new), context
        # What was refused was not done: every command has its own answer, 200 or 409 (no such
        # model); one that never came back may be the one after which the client's bytes broke.
        assert len(new) <= sum(code in (200, 409) for code in codes) or not codes, context
        taken += bool(new)
        refused += any(400 <= code < 500 for code in codes)
        closed += not codes
    assert statuses(await send(path, request("GET", "/v1/health"))) == [200]
    await server.stop()
    assert refused > COUNT / 3  # the mutations do reach the rules
    assert closed < COUNT / 3
    assert taken > COUNT / 100  # and some stay valid: the rules refuse no more than they should


async def test_the_unmutated_requests_are_all_accepted(control: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "governor.sock"
    server = AdminServer(control, path)
    await server.start()
    for url, body in COMMANDS:
        assert statuses(await send(path, request("POST", url, json.dumps(body).encode()))) == [200]
    for url in QUESTIONS:
        assert statuses(await send(path, request("GET", url))) == [200]
    assert len(control.calls) == len(COMMANDS)
    assert all(lawful(call) for call in control.calls)
    await server.stop()
