import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from controller.embedded import install as install_module
from controller.embedded import paths
from controller.embedded.install import InstallError, install
from controller.embedded.server import ServerError, start_server

ALL = ("echo_fast", "echo_mid", "echo_slow", "echo")
REPOSITORY_ROOT = Path(__file__).parents[2]


def infer(address: str, model: str, rows: int = 1) -> tuple[list[float], list[int]]:
    """Ask a model; return its values and the tags of who served."""
    with contextlib.closing(grpcclient.InferenceServerClient(address)) as client:
        tensor = grpcclient.InferInput("IN", [rows, 1], "FP32")
        tensor.set_data_from_numpy(np.arange(rows, dtype=np.float32).reshape(rows, 1))
        answer = client.infer(model, [tensor], client_timeout=20)
    return answer.as_numpy("OUT").ravel().tolist(), answer.as_numpy("TAG").ravel().tolist()


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; an orphan that PID 1 has not collected yet does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shared_memory(prefix: str) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{prefix}*")]  # noqa: S108 - where it is


def eventually(condition, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


@contextlib.contextmanager
def otlp_receiver() -> Iterator[tuple[str, list[dict]]]:
    """Take OTLP/HTTP posts on loopback; yield the URL and the bodies so far."""
    bodies: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(json.loads(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        finally:
            server.shutdown()
            thread.join()


def spans(bodies: list[dict]) -> list[dict]:
    return [
        span
        for body in bodies
        for resource in body["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def model_of(span: dict) -> str | None:
    for attribute in span.get("attributes", ()):
        if attribute["key"] == "triton.model_name":
            return attribute["value"]["stringValue"]
    return None


def test_a_second_install_does_nothing_and_finds_the_same(installation):
    said = []
    before = (installation.root / "installation.json").stat()
    again = install(lambda message, _ratio: said.append(message))
    assert again == installation
    assert said == []
    assert (installation.root / "installation.json").stat().st_mtime_ns == before.st_mtime_ns
    assert install_module.installed() == installation


def test_the_servers_python_has_the_numpy_that_its_backend_can_use(installation):
    assert installation.versions["numpy"].startswith("1.")


def test_a_failing_download_is_told_in_a_sentence_and_the_half_install_is_redone(
    installation, tmp_path, monkeypatch
):
    monkeypatch.setenv(paths.CACHE_ENV, str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    half = tmp_path / installation.root.name / "venv/half-written"
    half.parent.mkdir(parents=True)
    half.touch()
    with pytest.raises(InstallError, match=r"could not install nvidia-pytriton==0\.7\.0; check"):
        install(lambda _message, _ratio: None)
    assert not half.exists()
    assert install_module.installed() is None


def test_a_request_is_served_through_an_ensemble_alias(triton):
    values, tags = infer(triton.grpc, "echo", rows=3)
    assert values == [0.0, 1.0, 2.0]
    assert tags == [1, 1, 1]
    assert infer(triton.grpc, "echo_slow")[1] == [3]


def test_the_server_listens_on_loopback_only(triton):
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in family(triton.pid)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = triton.ports
    assert listening == {("127.0.0.1", port) for port in (ports.http, ports.grpc, ports.metrics)}


def test_spans_of_alias_and_variant_arrive_at_a_local_receiver(start_triton, repository):
    with otlp_receiver() as (url, bodies):
        server = start_triton(repository, load_models=ALL, otlp_url=url, trace_rate=1)
        infer(server.grpc, "echo")
        wanted = {"echo", "echo_fast"}
        assert eventually(lambda: wanted <= {model_of(span) for span in spans(bodies)}, 5.0)
        server.stop()


def test_a_receiver_that_is_not_there_neither_fails_requests_nor_fills_the_log(
    start_triton, repository
):
    url = "http://127.0.0.1:9/v1/traces"
    server = start_triton(repository, load_models=ALL, otlp_url=url, trace_rate=1)
    before = server.options.log_file.stat().st_size
    for _ in range(100):
        assert infer(server.grpc, "echo")[1] == [1]
    grown = server.options.log_file.stat().st_size - before
    server.stop()
    assert grown < 100_000


def test_a_stop_leaves_no_process_and_no_shared_memory(start_triton, repository):
    server = start_triton(repository, load_models=ALL)
    processes = family(server.pid)
    prefix = server.options.shm_prefix
    assert len(processes) == 4  # the server and three Python stubs
    assert shared_memory(prefix)
    server.stop()
    assert not alive(processes)
    assert shared_memory(prefix) == []
    server.stop()  # once more is no error


def test_a_killed_server_leaves_nothing_and_comes_back_on_the_same_ports(start_triton, repository):
    server = start_triton(repository, load_models=ALL)
    processes = family(server.pid)
    prefix = server.options.shm_prefix
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait(10.0) == 128 + signal.SIGKILL
    assert not alive(processes)
    assert shared_memory(prefix) == []
    address = server.grpc
    server.restart()
    assert server.grpc == address
    assert infer(address, "echo")[1] == [1]


PARENT = """
import sys, time
from pathlib import Path
from controller.embedded.install import install
from controller.embedded.server import start_server
server = start_server(install(print), Path(sys.argv[1]), log_file=Path(sys.argv[2]),
                      load_models=("echo_fast",))
print("READY", server.pid, server.options.shm_prefix, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_a_killed_parent_or_guard_leaves_no_process_and_no_shared_memory(
    installation, repository, tmp_path, victim
):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(repository), str(tmp_path / "log")],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        words = next(line for line in parent.stdout if line.startswith("READY")).split()
        server_pid, prefix = int(words[1]), words[2]
        guard = psutil.Process(server_pid).parent()
        assert guard is not None
        assert guard.pid != parent.pid
        processes = family(guard.pid)
        assert len(processes) == 3
        assert shared_memory(prefix)
        (parent if victim == "parent" else guard).send_signal(signal.SIGKILL)
        assert eventually(lambda: not alive(processes))
        assert eventually(lambda: shared_memory(prefix) == [])
        parent.kill()


def test_a_server_that_cannot_start_says_why_with_the_tail_of_its_log(
    installation, repository, tmp_path
):
    with pytest.raises(
        ServerError, match=r"before it was ready:\n.*unrecognized option '--no-such-flag'$"
    ):
        start_server(
            installation, repository, log_file=tmp_path / "log", extra_args=["--no-such-flag"]
        )


def test_a_start_that_takes_too_long_is_given_up_and_cleaned_away(
    installation, tmp_path, repository
):
    from repository import write_model

    write_model(repository, "sleeper", init_s=30)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ServerError, match="not ready after 3 s"):
        start_server(
            installation,
            repository,
            log_file=tmp_path / "log",
            load_models=["sleeper"],
            ready_timeout_s=3,
        )
    assert not alive(list(set(psutil.Process().children(recursive=True)) - before))


@contextlib.contextmanager
def governor(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `governor triton ...` as its own parser would."""
    script = (
        "import argparse, sys\n"
        "from controller.cli.triton import add_parser\n"
        "parser = argparse.ArgumentParser(prog='governor')\n"
        "add_parser(parser.add_subparsers(required=True))\n"
        "args = parser.parse_args()\n"
        "sys.exit(args.run(args))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "triton", *arguments],
        cwd=REPOSITORY_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    with governor(environment, *arguments) as process:
        output, _ = process.communicate(timeout=30)
        return process.returncode, output


def test_start_status_kill_restart_and_stop_from_the_command_line(
    installation, repository, tmp_path
):
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    assert ask(environment, "status")[0] == 3

    def status() -> dict:
        return json.loads(ask(environment, "status", "--json")[1])

    start = ("start", "--repository", str(repository), "--load", "echo_fast")
    with governor(environment, *start) as supervisor:
        assert eventually(lambda: status()["ready"], 20.0)
        first = status()
        code, output = ask(environment, *start)
        assert code == 1
        assert "runs already" in output

        os.kill(first["server_pid"], signal.SIGKILL)
        assert eventually(lambda: status()["ready"] and status()["restarts"] == 1, 20.0)
        second = status()
        assert second["ports"] == first["ports"]
        assert infer(f"127.0.0.1:{second['ports']['grpc']}", "echo_fast")[1] == [1]

        processes = family(supervisor.pid)
        assert ask(environment, "stop")[0] == 0
        assert supervisor.wait(10) == 0
        assert supervisor.stdout is not None
        printed = supervisor.stdout.read()
        assert "older than the security fixes of 25.07" in printed
        assert not alive(processes)
    assert ask(environment, "status")[0] == 3
