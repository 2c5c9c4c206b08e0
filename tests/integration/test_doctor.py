"""The doctor where there is no Triton: this machine, and a server that is something else."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.doctor.finding import Finding, Level, fail, ok, report, warn
from controller.doctor.host import check_journal, check_receiver, check_socket
from controller.doctor.secrets import check_secrets, check_tls_files
from controller.doctor.server import check_listeners, check_metrics
from controller.journal import Journal
from controller.policy.cautions import is_loopback
from controller.policy.model import JournalPolicy, MqttPolicy, Policy, TlsPolicy, TritonPolicy


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_GOVERNOR_SOCKET", str(tmp_path / "run" / "governor.sock"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return port_of(server)


def a_policy(tmp_path: Path, grpc_port: int) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"""\
version: 1
triton: {{grpc: "127.0.0.1:{grpc_port}"}}
models:
  digits:
    objective: {{latency: 60ms, percentile: 99}}
    variants:
      wide: {{model: digits_wide, quality: 0.9}}
"""
    )
    return path


def test_a_server_that_is_down_fails_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--policy", str(a_policy(tmp_path, closed_port()))]) == 1
    out = capsys.readouterr().out
    assert "does not answer over gRPC" in out
    assert "-> start Triton, or correct triton.grpc" in out
    assert "ok    journal" in out
    assert not (tmp_path / "state").exists()  # it leaves no trace


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--policy", str(a_policy(tmp_path, closed_port()))]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert {check["name"]: check["level"] for check in result["checks"]}["triton"] == "fail"


def test_a_policy_that_is_wrong_is_all_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\n")
    assert main(["doctor", "--json", "--policy", str(path)]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {check["name"] for check in checks} == {"policy"}
    assert all(str(path) in check["message"] for check in checks)


def test_the_running_governor_s_policy_is_examined_as_it_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = tmp_path / "its", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "policy.yaml").write_text(
        a_policy(tmp_path, port := closed_port()).read_text()
        + "hosts: {edge: {models: {letters: {objective: {latency: 60ms, percentile: 99},"
        " variants: {l: {model: l, quality: 0.9}}}}}}\n"
    )
    command = [sys.executable, "-m", "controller.cli.main", "run", "--policy", "policy.yaml"]
    daemon = subprocess.Popen(
        [*command, "--host", "edge"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until_s = time.monotonic() + 30.0
        while main(["status", "--json"]) != 0:
            assert daemon.poll() is None
            assert time.monotonic() < until_s
            capsys.readouterr()
            time.sleep(0.1)
        told = json.loads(capsys.readouterr().out)["daemon"]
        assert (told["policy_file"], told["host"]) == (str(folder / "policy.yaml"), "edge")
        monkeypatch.chdir(elsewhere)
        assert main(["doctor", "--json"]) == 1
        checks = json.loads(capsys.readouterr().out)["checks"]
        (policy,) = (check for check in checks if check["name"] == "policy")
        assert policy["level"] == "ok"
        assert str(folder / "policy.yaml") in policy["message"]
        assert any(f"127.0.0.1:{port}" in check["message"] for check in checks)
        data = ["--data", "none.npz"]
        assert main(["quality", "nobody", *data]) == 1
        assert "it has digits, letters" in capsys.readouterr().err
        assert main(["quality", "nobody", *data, "--host", "other"]) == 1
        assert "it has digits\n" in capsys.readouterr().err
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)


def test_a_policy_is_examined_for_the_host_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, port = a_policy(tmp_path, closed_port()), closed_port()
    its = f'hosts: {{h: {{triton: {{grpc: "127.0.0.1:{port}"}}}}}}\n'
    path.write_text(path.read_text() + its)
    assert main(["doctor", "--policy", str(path), "--host", "h"]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().out


def test_quality_says_which_file_of_tls_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_policy(tmp_path, closed_port())
    path.write_text(
        path.read_text().replace('"}', f'", tls: {{ca_file: {tmp_path}/none.pem}}}}', 1)
    )
    data = tmp_path / "rows.jsonl"
    data.write_text('{"inputs": {"x": [1.0]}, "label": 0}\n')
    assert main(["quality", "digits", "--policy", str(path), "--data", str(data)]) == 1
    said = capsys.readouterr().err
    assert f"triton.tls.ca_file: {tmp_path}/none.pem cannot be read" in said


def test_what_works_less_well_is_no_failure() -> None:
    assert report([ok("a", "fine"), warn("b", "so so", "do")])["ok"]
    assert not report([ok("a", "fine"), fail("b", "bad", "do")])["ok"]


def test_the_journal_check_tells_sound_from_broken_and_impossible(tmp_path: Path) -> None:
    path = tmp_path / "j" / "journal.sqlite3"
    policy = JournalPolicy(str(path), max_bytes=2**20)
    assert check_journal(policy).level is Level.OK
    journal = Journal(path, 2**20)
    journal.open()
    assert journal.close(5.0)
    assert check_journal(policy).level is Level.OK
    path.write_bytes(b"broken" * 1000)
    assert "set it aside" in str(check_journal(policy).advice)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    impossible = JournalPolicy(str(in_the_way / "journal.sqlite3"))
    assert check_journal(impossible).level is Level.FAIL
    huge = JournalPolicy(str(tmp_path / "k.sqlite3"), max_bytes=2**60)
    assert "GiB left" in check_journal(huge).message


def test_the_socket_check_tells_free_live_stale_and_blocked(tmp_path: Path) -> None:
    path = tmp_path / "governor.sock"
    assert "is free" in check_socket(path).message
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    assert "a governor answers" in check_socket(path).message
    server.close()
    assert "is left from a governor that is gone" in check_socket(path).message
    path.unlink()
    path.write_text("")
    assert check_socket(path).level is Level.FAIL


def test_the_trace_receivers_port_must_be_free(listener: socket.socket) -> None:
    taken = f"127.0.0.1:{port_of(listener)}"
    assert [f.level for f in check_receiver(taken, governor_runs=False)] == [Level.FAIL]
    assert check_receiver(taken, governor_runs=True) == []
    assert check_receiver(None, governor_runs=False) == []
    free = f"127.0.0.1:{closed_port()}"
    assert [f.level for f in check_receiver(free, governor_runs=False)] == [Level.OK]


def test_a_port_open_to_the_network_is_noticed(listener: socket.socket) -> None:
    def levels(port: int) -> list[Level]:
        return [f.level for f in check_listeners(TritonPolicy(f"127.0.0.1:{port}", None, None))]

    assert levels(port_of(listener)) == [Level.OK]
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104 - that is the test
        assert levels(port_of(everywhere)) == [Level.WARN]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("10.0.0.1:8001", False),
        ("triton.example:8001", False),
    ],
)
def test_loopback_is_recognised(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


async def metrics(page: bytes, status: str = "200 OK") -> Finding:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + page)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await check_metrics(TritonPolicy("", f"http://127.0.0.1:{port}/metrics", None))


async def test_the_metrics_page_must_have_the_queue_depth() -> None:
    assert (await metrics(b"# TYPE nv_inference_pending_request_count gauge\n")).level is Level.OK
    assert "has no nv_inference_pending" in (await metrics(b"up 1\n")).message
    assert "answered 404" in (await metrics(b"", "404 Not Found")).message
    gone = TritonPolicy("", f"http://127.0.0.1:{closed_port()}/metrics", None)
    assert (await check_metrics(gone)).level is Level.FAIL
    assert (await check_metrics(TritonPolicy("", None, None))).level is Level.WARN


def test_a_secret_that_everybody_may_read_is_told_and_never_shown(tmp_path: Path) -> None:
    key, password, tls_key = (tmp_path / name for name in ("key", "password", "tls.key"))
    for path in (key, password, tls_key):
        path.write_text("s3cret")
        path.chmod(0o640)
    triton = TritonPolicy(
        "127.0.0.1:8001",
        None,
        None,
        restricted_key_file=str(key),
        tls=TlsPolicy("/ca.pem", str(tls_key), str(tls_key)),
    )
    policy = Policy(triton, (), mqtt=MqttPolicy("h", password_file=str(password)))
    (sound,) = check_secrets(policy)
    assert sound.level is Level.OK
    tls_key.chmod(0o644)
    password.unlink()
    found = list(check_secrets(policy))
    assert [finding.level for finding in found] == [Level.WARN, Level.FAIL]
    assert "triton.tls.key_file" in found[0].message
    assert "mqtt.password_file" in found[1].message
    assert "s3cret" not in str(found)


def test_files_of_tls_that_only_others_use_are_looked_at_too(tmp_path: Path) -> None:
    triton = TritonPolicy(
        "127.0.0.1:8001",
        "https://127.0.0.1/metrics",
        None,
        metrics_tls=TlsPolicy(str(tmp_path / "none.pem"), prefix="triton.metrics_tls."),
    )
    bus = MqttPolicy("h", tls_ca_file=str(tmp_path / "neither.pem"))
    page, broker = check_tls_files(Policy(triton, (), mqtt=bus))
    assert page.level is broker.level is Level.FAIL
    assert "triton.metrics_tls.ca_file" in page.message
    assert "mqtt.tls_ca_file" in broker.message


def test_a_journal_where_everybody_writes_or_reads_is_told(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    finding = check_journal(JournalPolicy(str(shared / "journal.sqlite3")))
    assert finding.level is Level.WARN
    assert "everybody may put files into" in finding.message
    shared.chmod(0o750)
    path = shared / "journal.sqlite3"
    path.write_bytes(b"")
    path.chmod(0o644)
    finding = check_journal(JournalPolicy(str(path)))
    assert finding.level is Level.WARN
    assert "every user of this machine may read" in finding.message


def test_what_a_policy_opens_to_the_network_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_policy(tmp_path, closed_port())
    path.write_text(f"{path.read_text()}prometheus: {{listen: 0.0.0.0:9464}}\n")
    main(["doctor", "--json", "--policy", str(path)])
    checks = json.loads(capsys.readouterr().out)["checks"]
    (exposed,) = [check for check in checks if check["name"] == "exposure"]
    assert exposed["level"] == "warn"
    assert "prometheus.listen is open to the network" in exposed["message"]
