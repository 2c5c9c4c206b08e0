"""Children of the demo end with it, in order, and are measured with their own children."""

import os
import signal
import subprocess
import sys
import time

import psutil

from controller.demo import processes

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def start(command):
    process = processes.start(
        command,
        death_signal=signal.SIGKILL,
        output=subprocess.PIPE,
        errors=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == "up\n"
    return process


def gone(pid):
    """Wait for a process to be gone; a zombie that nobody collects counts as gone."""
    try:
        process = psutil.Process(pid)
        process.wait(5.0)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_a_child_is_ended_with_everything_in_its_group():
    family = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print('up', flush=True); time.sleep(60)"
    )
    process = start([sys.executable, "-c", family])
    (grandchild,) = psutil.Process(process.pid).children()
    processes.end(process, patience_s=0)
    assert process.poll() is not None
    assert gone(grandchild.pid)


def test_a_child_that_does_not_listen_is_killed_when_patience_ends():
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(60)"
    )
    process = start([sys.executable, "-c", deaf])
    processes.end(process, patience_s=0.2)
    assert process.poll() == -signal.SIGKILL


def test_ending_twice_does_no_harm():
    process = start(SLEEP)
    processes.end(process, patience_s=0)
    processes.end(process, patience_s=0)
    assert process.poll() == -signal.SIGKILL


def test_a_child_dies_with_a_parent_that_is_killed():
    program = (
        "import signal, subprocess, sys, time\n"
        "from controller.demo import processes\n"
        "child = processes.start([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
        "    death_signal=signal.SIGKILL, output=subprocess.DEVNULL, errors=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_a_leash_whose_parent_is_not_ours_runs_nothing(tmp_path):
    from controller.demo import leash

    proof = tmp_path / "ran"
    command = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid() + 1), "9"]
    done = subprocess.run([*command, "/bin/touch", str(proof)], check=False)
    assert done.returncode == 1
    assert not proof.exists()


def test_the_meter_counts_the_cpu_and_memory_of_children_too():
    busy = (
        "import subprocess, sys, time\n"
        "burn = 'import time\\nend = time.process_time() + 0.3\\n"
        "while time.process_time() < end: pass'\n"
        "print('up', flush=True)\n"
        "sys.stdin.readline()\n"
        "subprocess.run([sys.executable, '-c', burn])\n"
        "print('done', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = processes.start(
        [sys.executable, "-c", busy],
        death_signal=signal.SIGKILL,
        stdin=subprocess.PIPE,
        output=subprocess.PIPE,
        errors=subprocess.DEVNULL,
    )
    try:
        assert process.stdout.readline() == "up\n"
        meter = processes.Meter(process.pid)
        start_s = time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        usage = meter.usage()
        assert usage.cpu_ratio * (time.monotonic() - start_s) >= 0.25
        assert usage.rss_bytes > 2_000_000
    finally:
        processes.end(process, patience_s=0)


def test_the_meter_of_a_process_that_is_gone_reads_nothing():
    process = start(SLEEP)
    meter = processes.Meter(process.pid)
    processes.end(process, patience_s=0)
    assert meter.usage().rss_bytes == 0
