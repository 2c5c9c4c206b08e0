"""The batch scenario's device and the neighbour on it, as real processes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from controller.demo import neighbour
from controller.demo.neighbour import DeviceError, Neighbour, device

needs_two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one processor core is all there is"
)


@needs_two
def test_everything_but_engines_is_kept_off_the_device_for_as_long_as_it_is_one():
    before = os.sched_getaffinity(0)
    with device() as core:
        assert os.sched_getaffinity(0) == before - {core}
        shown = subprocess.run(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert {int(word) for word in shown.stdout.split()} == before - {core}
    assert os.sched_getaffinity(0) == before


def test_one_core_is_too_few_and_said_so(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(DeviceError, match="two processor cores"), device():
        pass


def test_where_cores_cannot_be_chosen_that_is_said(monkeypatch):
    def refuse(_pid, _cores):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with pytest.raises(DeviceError, match="not allowed here: Operation not permitted"), device():
        pass


def test_the_neighbour_is_busy_when_it_is_told_and_only_then():
    core = max(os.sched_getaffinity(0))
    with Neighbour(core, rises_s=0.0) as found:
        family = [psutil.Process(process.pid) for process in found._processes]
        assert len(family) == neighbour.PROCESSES
        assert len({os.getsid(one.pid) for one in family}) == neighbour.PROCESSES
        now_s = time.monotonic()
        found.begin([(now_s + 0.4, now_s + 0.8), (now_s + 1.2, now_s + 1.5)])
        time.sleep(max(now_s + 1.0 - time.monotonic(), 0.0))
        before = [sum(one.cpu_times()[:2]) for one in family]
        time.sleep(0.1)
        after = [sum(one.cpu_times()[:2]) for one in family]
        assert sum(after) - sum(before) < 0.05  # between the spans
        assert all(one.cpu_affinity() == [core] for one in family)
        shares = found.shares()
    assert len(shares) == 2
    assert all(0.1 < share <= 1.05 for share in shares)  # beside whatever else runs there


def test_the_neighbour_becomes_more_busy_bit_by_bit():
    core = max(os.sched_getaffinity(0))
    shares = []
    for rises_s in (0.0, 4.0):
        with Neighbour(core, rises_s=rises_s) as found:
            now_s = time.monotonic()
            found.begin([(now_s + 0.4, now_s + 1.4)])
            time.sleep(max(now_s + 1.5 - time.monotonic(), 0.0))
            shares += found.shares()
    at_once, rising = shares
    assert rising < 0.5 * at_once  # an eighth, in the mean, and what a burst takes to begin


def test_a_neighbour_that_was_told_nothing_ends_at_once():
    with Neighbour(0) as found:
        family = [psutil.Process(process.pid) for process in found._processes]
    assert not any(one.is_running() for one in family)


def test_a_neighbour_that_fails_is_told():
    with Neighbour(0) as found:
        found.begin([(0.0, 1e18)])
        found._processes[0].send_signal(signal.SIGKILL)
        with pytest.raises(DeviceError, match="ended with status"):
            found.shares()
