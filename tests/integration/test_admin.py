"""The admin socket, over a real Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from admin_fakes import FakeControl

from controller.interfaces.admin import AdminServer, AdminSocketError
from controller.interfaces.control import Caller


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "governor.sock"


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
async def server(control: FakeControl, path: Path) -> AsyncIterator[AdminServer]:
    server = AdminServer(control, path)
    await server.start()
    yield server
    await server.stop()


async def ask(path: Path, method: str, url: str, **given: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.request(method, f"http://governor{url}", **given) as answer,
    ):
        assert answer.content_type == "application/json"
        return answer.status, json.loads(await answer.text(), parse_constant=pytest.fail)


async def test_status_is_strict_json(server: AdminServer, path: Path) -> None:
    status, answer = await ask(path, "GET", "/v1/status")
    assert status == 200
    assert [model["name"] for model in answer["models"]] == ["digits", "words"]
    assert answer["odd"] is None


async def test_a_pin_reaches_the_daemon_with_who_the_kernel_says_gave_it(
    server: AdminServer, path: Path, control: FakeControl
) -> None:
    body = {"model": "digits", "variant": "wide", "for_s": 600, "why": "an exam"}
    status, answer = await ask(path, "POST", "/v1/pin", json=body)
    assert (status, answer) == (200, {"message": "digits stays on wide"})
    me = pwd.getpwuid(os.getuid()).pw_name
    caller = Caller(me, "socket", os.getuid(), os.getgid(), os.getpid())
    assert control.pins == {"digits": ("wide", 600.0, "an exam", caller)}
    assert (await ask(path, "POST", "/v1/unpin", json={"model": "digits"}))[0] == 200
    assert control.pins == {}


async def test_pause_and_resume_need_no_body(
    server: AdminServer, path: Path, control: FakeControl
) -> None:
    assert (await ask(path, "POST", "/v1/pause"))[0] == 200
    assert list(control.paused) == [None]
    assert (await ask(path, "POST", "/v1/resume"))[0] == 200
    assert control.paused == {}


async def test_a_command_the_daemon_refuses_is_a_conflict_with_its_sentence(
    server: AdminServer, path: Path
) -> None:
    status, answer = await ask(path, "POST", "/v1/pin", json={"model": "digits", "variant": "huge"})
    assert (status, answer) == (409, {"error": "digits has no variant huge"})


@pytest.mark.parametrize(
    ("url", "body", "part"),
    [
        ("/v1/pin", b"", "model is missing"),
        ("/v1/pin", b'{"model": "digits"}', "variant is missing"),
        ("/v1/pin", b'{"model": 3, "variant": "wide"}', "model must be a name"),
        ("/v1/pin", b'{"model": "a/b", "variant": "wide"}', "model must be a name"),
        ("/v1/pin", b'{"model": "digits", "variant": "wide", "fro_s": 3}', "did you mean 'for_s'?"),
        ("/v1/pin", b'{"model": "digits", "variant": "wide", "for_s": "3"}', "for_s must be a num"),
        ("/v1/pin", b'{"model": "digits", "variant": "wide", "for_s": true}', "for_s must be a nu"),
        ("/v1/pin", b'{"model": "digits", "variant": "wide", "for_s": 0}', "for_s must be more"),
        ("/v1/pin", b'{"model": "digits", "variant": "wide", "for_s": 1e999}', "for_s must be"),
        ("/v1/pin", b'{"model": "digits", "variant": "wide", "for_s": NaN}', "NaN is not a number"),
        ("/v1/pin", b'{"model": "d", "model": "e"}', "a key twice"),
        ("/v1/pause", b'{"why": "two\\nlines"}', "one line"),
        ("/v1/pause", b'{"why": "' + b"x" * 501 + b'"}', "500 are allowed"),
        ("/v1/pause", b"[]", "must be a JSON object"),
        ("/v1/pause", b"[" * 9000, "nested too deeply"),
        ("/v1/pause", b'{"a"', "not JSON"),
        ("/v1/pause", b"\xff", "not JSON"),
        ("/v1/pause?x=1", b"{}", "takes nothing"),
    ],
)
async def test_a_bad_body_is_refused_with_a_sentence_and_changes_nothing(
    server: AdminServer, path: Path, control: FakeControl, url: str, body: bytes, part: str
) -> None:
    status, answer = await ask(path, "POST", url, data=body)
    assert status == 400
    assert part in answer["error"]
    assert control.calls == 0


@pytest.mark.parametrize(
    ("method", "url", "code", "part"),
    [
        ("GET", "/v1/explain?model=nobody", 404, "no model 'nobody'"),
        ("GET", "/v1/explain?modle=digits", 400, "did you mean 'model'?"),
        ("GET", "/v1/history?limit=0", 400, "from 1 to 1000"),
        ("GET", "/v1/history?limit=%2B5", 400, "whole number"),
        ("GET", "/v1/history?limit=5&limit=6", 400, "a key twice"),
        ("GET", "/v1/status?x=1", 400, "takes nothing"),
        ("GET", "/v2/status", 404, "nothing at"),
        ("DELETE", "/v1/status", 405, "DELETE is not possible"),
        ("GET", "/v1/pin", 405, "GET is not possible"),
    ],
)
async def test_a_bad_question_is_refused_with_a_sentence(
    server: AdminServer, path: Path, method: str, url: str, code: int, part: str
) -> None:
    status, answer = await ask(path, method, url)
    assert status == code
    assert part in answer["error"]


async def test_a_body_that_is_too_large_is_refused(
    server: AdminServer, path: Path, control: FakeControl
) -> None:
    status, answer = await ask(path, "POST", "/v1/pause", data=b" " * 20_000)
    assert status == 413
    assert "16384 bytes" in answer["error"]
    assert control.calls == 0


async def test_explain_and_history_answer(server: AdminServer, path: Path) -> None:
    _, answer = await ask(path, "GET", "/v1/explain?model=words")
    assert [entry["name"] for entry in answer["models"]] == ["words"]
    _, answer = await ask(path, "GET", "/v1/history?model=words&limit=3")
    assert [row["model"] for row in answer["actions"]] == ["words"] * 3
    _, answer = await ask(path, "GET", "/v1/history")
    assert len(answer["actions"]) == 20


async def test_health_says_whether_all_is_well(server: AdminServer, path: Path) -> None:
    assert await ask(path, "GET", "/v1/health") == (200, {"ok": True, "problems": []})


async def test_a_bug_in_the_daemon_is_an_error_without_its_details(
    server: AdminServer, path: Path, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "status", lambda: 1 / 0)
    status, answer = await ask(path, "GET", "/v1/status")
    assert status == 500
    assert "division" not in answer["error"]


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_socket_is_for_its_owner_and_group_only(server: AdminServer, path: Path) -> None:
    assert permissions(path) == 0o660
    assert owner(path) == (os.geteuid(), os.getegid())
    assert permissions(path.parent) == 0o700


async def test_a_live_socket_is_refused_and_a_stale_one_replaced(
    server: AdminServer, path: Path
) -> None:
    with pytest.raises(AdminSocketError, match=f"another governor \\(pid {os.getpid()}\\)"):
        await AdminServer(FakeControl(), path).start()
    assert (await ask(path, "GET", "/v1/health"))[0] == 200
    await server.stop()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))  # which fails unless the stopped server removed its socket
    stale.close()
    again = AdminServer(FakeControl(), path)
    await again.start()
    assert (await ask(path, "GET", "/v1/health"))[0] == 200
    await again.stop()


def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(AdminSocketError, match="is not a socket"):
        asyncio.run(AdminServer(FakeControl(), path).start())
    assert path.read_text() == "precious"


async def test_a_folder_open_to_all_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(AdminSocketError, match="open to all"):
        await AdminServer(FakeControl(), path).start()


async def test_more_connections_than_allowed_are_closed_and_the_others_answered(
    server: AdminServer, path: Path
) -> None:
    held = [await asyncio.open_unix_connection(str(path)) for _ in range(64)]
    await asyncio.sleep(0)
    reader, writer = await asyncio.open_unix_connection(str(path))
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    first_reader, first_writer = held[0]
    first_writer.write(b"GET /v1/health HTTP/1.1\r\nHost: governor\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await first_reader.readline()).startswith(b"HTTP/1.1 200")
    for _, open_writer in held:
        open_writer.close()
