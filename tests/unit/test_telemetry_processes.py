"""What Triton's processes hold of the host: real processes, named like it."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from controller.doctor.finding import Level
from controller.doctor.host import check_host_memory
from controller.telemetry.processes import TritonHost

MIB = 1 << 20
PORT = 20_000 + os.getpid() % 40_000  # nobody listens there: it only stands in a command line
# Holds some memory and has a child that does, after each line that it reads more of it.
PROGRAM = """
import os, subprocess, sys
held = [bytearray(b"x") * (int(sys.argv[1]) << 20)]
child = subprocess.Popen(
    [sys.executable, "-c", "import sys; x = bytearray(b'x') * (40 << 20); print(flush=True); "
     "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
for line in sys.stdin:
    held.append(bytearray(b"x") * (int(line) << 20))
    print("ready", flush=True)
child.stdin.close()
child.wait()
"""


@pytest.fixture
def start(tmp_path):
    """Start processes that are called as Triton is, each with a gRPC port and memory in MiB."""
    started = []

    def begin(port: int = PORT, mib: int = 60, *, given: str = "--grpc-port={}"):
        # A process is called as the file that is run; what that needs it finds by PYTHONHOME.
        program = tmp_path / "bin" / "tritonserver"
        program.parent.mkdir(exist_ok=True)
        if not program.exists():
            shutil.copy(Path(sys.executable).resolve(), program)
        arguments = given.format(port).split()
        process = subprocess.Popen(
            [program, "-c", PROGRAM, str(mib), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONHOME": sys.base_prefix},
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.stdin.close()
        process.wait(timeout=10.0)
        process.stdout.close()


def own_mib(pid: int) -> float:
    """Return what a process and its children hold for themselves, by smaps."""
    family = (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    return sum(one.memory_full_info().uss for one in family) / MIB


def test_a_server_and_its_children_are_found_by_the_port_and_added_up(start):
    start(PORT + 1, 500)
    process = start()
    host = TritonHost(lambda: f"127.0.0.1:{PORT}")
    before = host()
    assert host.pid == process.pid
    assert host.why is None
    assert before / MIB == pytest.approx(own_mib(process.pid), abs=12.0)
    assert 100 * MIB < before < 160 * MIB
    process.stdin.write("70\n")
    process.stdin.flush()
    process.stdout.readline()
    assert (host() - before) / MIB == pytest.approx(70.0, abs=2.0)


@pytest.mark.parametrize("given", ["--grpc-port {}", "--log-verbose=1 --grpc-port={} --x"])
def test_the_port_is_read_from_the_command_line(start, given):
    process = start(given=given)
    host = TritonHost(lambda: f"localhost:{PORT}")
    assert host() is not None
    assert host.pid == process.pid


def test_which_of_two_it_is_is_not_guessed_and_a_new_one_is_found(start):
    host = TritonHost(lambda: f"127.0.0.1:{PORT}")
    assert host() is None
    assert host.why == f"no tritonserver with the gRPC port {PORT} is to be seen here"
    first = start()
    assert host() is not None
    first.stdin.close()
    first.wait()
    second = start()
    assert host() is not None
    assert host.pid == second.pid
    start()
    assert TritonHost(lambda: f"127.0.0.1:{PORT}")() is None
    assert host() is not None, "the one that it knows is still there"


def test_one_that_ended_and_that_nobody_waited_for_holds_nothing_that_could_be_measured(start):
    host = TritonHost(lambda: f"127.0.0.1:{PORT}")
    first = start()
    assert host() is not None
    first.stdin.close()
    while psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert host() is None
    second = start()
    assert host() is not None
    assert host.pid == second.pid


def test_another_host_is_not_this_one():
    host = TritonHost(lambda: "203.0.113.7:8001")
    assert host() is None
    assert host.why == "203.0.113.7:8001 is not on this host"


def test_the_port_that_triton_has_by_default(start):
    others = [p for p in psutil.process_iter() if "tritonserver" in p.name()]
    if any(not any(a.startswith("--grpc-port") for a in p.cmdline()) for p in others):
        pytest.skip("another server has Triton's usual port here")
    process = start(given="--id=x")
    host = TritonHost(lambda: "[::1]:8001")
    assert host() is not None
    assert host.pid == process.pid


def test_it_may_be_read_from_any_thread(start):
    start()
    host, found = TritonHost(lambda: f"127.0.0.1:{PORT}"), []
    threads = [threading.Thread(target=lambda: found.append(host())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found)


def test_the_doctor_says_whether_it_can_be_measured(start):
    grpc = f"127.0.0.1:{PORT}"
    missing = check_host_memory(grpc, limited=True)
    assert missing.level is Level.WARN
    assert "not measured" in missing.message
    assert check_host_memory(grpc, limited=False).level is Level.OK
    process = start()
    found = check_host_memory(grpc, limited=True)
    assert found.level is Level.OK
    assert str(process.pid) in found.message
