import socket
from pathlib import Path

import pytest

from controller.embedded import supervisor
from controller.embedded.install import Installation
from controller.embedded.server import (
    HOST,
    Ports,
    PortTakenError,
    RunningServer,
    ServerError,
    ServerOptions,
    check_ports,
    command_line,
    free_ports,
)


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run/triton-governor"


@pytest.fixture
def options(tmp_path) -> ServerOptions:
    installation = Installation(
        root=tmp_path,
        python=tmp_path / "venv/bin/python",
        tritonserver=tmp_path / "missing/tritonserver",
        backends=tmp_path / "backends",
        caches=tmp_path / "caches",
        library_folder=None,
        triton_version="2.51.0",
        versions={},
    )
    return ServerOptions(installation, tmp_path / "repository", tmp_path / "triton.log")


def test_everything_listens_on_loopback_under_explicit_control(options):
    command = command_line(options, Ports(http=1, grpc=2, metrics=3))
    assert {
        "--model-control-mode=explicit",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
    } <= set(command)
    assert not any(part.startswith("--trace-config") for part in command)


def test_free_ports_differ_and_can_be_used():
    ports = free_ports()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    check_ports(ports)


def test_a_port_in_use_is_named():
    with socket.create_server((HOST, 0)) as holder:
        taken = holder.getsockname()[1]
        spare = free_ports()
        with pytest.raises(PortTakenError, match=f"grpc port 127.0.0.1:{taken}"):
            check_ports(Ports(http=spare.http, grpc=taken, metrics=spare.metrics))


def test_equal_ports_are_refused():
    with pytest.raises(PortTakenError, match="must differ"):
        check_ports(Ports(http=4000, grpc=4000, metrics=4001))


def test_ports_asked_for_are_kept_and_the_others_chosen():
    asked = free_ports()
    chosen = supervisor.choose_ports(None, asked.grpc, None)
    assert chosen.grpc == asked.grpc
    check_ports(chosen)


def test_a_server_that_cannot_be_run_says_so_and_leaves_no_process(options):
    server = RunningServer(options, free_ports())
    with pytest.raises(ServerError, match="could not be run"):
        server.start()
    assert not server.is_alive()
    with pytest.raises(ServerError, match="not running"):
        _ = server.pid


def test_stopping_what_never_ran_is_no_error(options):
    RunningServer(options, free_ports()).stop()


def test_pauses_between_restarts_grow_to_a_bound_and_never_overflow():
    pauses = [supervisor.backoff_s(n) for n in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.1
    assert pauses[-1] == supervisor.backoff_s(1_000_000) == 10.0


def test_what_a_supervisor_wrote_counts_only_while_it_holds_the_lock(runtime, options):
    ports = Ports(http=1, grpc=2, metrics=3)
    assert supervisor.running() is None
    with supervisor._lock():
        supervisor._Reporter(options, ports).write(4711)
        state = supervisor.running()
        assert state is not None
        assert (state.ports, state.server_pid) == (ports, 4711)
    assert supervisor.running() is None
    assert supervisor.stop_running() is False


def test_a_second_supervisor_is_told_about_the_first(runtime, options):
    with supervisor._lock():
        supervisor._Reporter(options, Ports(http=1, grpc=2, metrics=3)).write(1)
        with (
            pytest.raises(supervisor.AlreadyRunningError, match=r"gRPC port 2.*triton stop"),
            supervisor._lock(),
        ):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ports": {}}', '{"unknown": 1}'])
def test_an_unreadable_state_file_is_no_crash(runtime, options, content):
    supervisor.running()
    with supervisor._lock():
        (runtime / "triton.json").write_text(content, encoding="utf-8")
        assert supervisor.running() is None


def test_a_grown_log_is_put_aside_and_a_small_one_kept(tmp_path):
    log = tmp_path / "triton.log"
    log.write_text("small", encoding="utf-8")
    supervisor._rotate(log)
    assert log.exists()
    with log.open("w") as handle:
        handle.truncate(supervisor._LOG_BYTES + 1)
    supervisor._rotate(log)
    assert not log.exists()
    assert (tmp_path / "triton.log.1").exists()
