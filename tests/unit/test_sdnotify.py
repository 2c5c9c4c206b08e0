"""Against a real datagram socket, as systemd opens it."""

import os
import socket
import time
from pathlib import Path

import pytest

from controller.interfaces.sdnotify import ServiceManager


@pytest.fixture
def manager(tmp_path: Path):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(5)
        yield listener, {"NOTIFY_SOCKET": str(path)}


def test_every_state_arrives_as_systemd_expects_it(manager) -> None:
    listener, environment = manager
    service = ServiceManager({**environment, "WATCHDOG_USEC": "3000000"})
    service.ready()
    service.status("2 models\n  READY=1 ")
    service.watchdog()
    service.stopping()
    service.close()
    got = [listener.recv(4096) for _ in range(4)]
    assert got == [b"READY=1", b"STATUS=2 models READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_reloading_carries_the_monotonic_time_in_microseconds(manager) -> None:
    listener, environment = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service = ServiceManager(environment)
    service.reloading()
    service.close()
    first, second = listener.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, value = second.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_an_abstract_socket_is_reached() -> None:
    name = f"governor-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(b"\0" + name.encode())
        listener.settimeout(5)
        service = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        service.ready()
        service.close()
        assert listener.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative/path"])
def test_without_a_unix_socket_nothing_is_sent_and_nothing_fails(address: str) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": address})
    service.ready()
    assert service._socket is None


def test_a_vanished_service_manager_costs_one_log_line_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"})
    for _ in range(3):
        service.watchdog()
    service.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_full_queue_does_not_block(manager) -> None:
    _, environment = manager
    service = ServiceManager(environment)
    for _ in range(10_000):  # far beyond net.unix.max_dgram_qlen; a blocking send hangs here
        service.ready()
    service.close()


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_pinged_at_half_its_time_and_only_by_the_process_it_watches(
    environment: dict[str, str], interval_s: float | None
) -> None:
    assert ServiceManager(environment).watchdog_interval_s == interval_s
