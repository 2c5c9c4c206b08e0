"""The unit on a real systemd, with the real daemon, and a Triton that is not there."""

import re
import shutil
import subprocess
import time

import pytest
from machine import POLICY, REPOSITORY, UNIT, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(180, func_only=True)]


@pytest.fixture
def running(machine: Machine):
    """The service, freshly started and ready."""
    machine.write_policy(POLICY)
    machine.systemctl("restart", UNIT)
    assert machine.show("ActiveState") == "active"
    yield machine
    machine.systemctl("stop", UNIT)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_s_exposure_is_at_most_2() -> None:
    unit = REPOSITORY / "systemd" / UNIT
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level .*: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    print(found.group(0))  # noqa: T201 - the number is wanted
    assert float(found.group(1)) <= 2.0


def test_systemd_finds_nothing_wrong_with_the_unit(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}")
    assert UNIT not in done.stderr


def test_the_shipped_user_is_made(machine: Machine) -> None:
    machine.run("sed", "-i", "/^triton-governor:/d", "/etc/passwd", "/etc/group")
    shipped = (REPOSITORY / "systemd/triton-governor.sysusers.conf").read_text()
    machine.run("sh", "-c", f"systemd-sysusers - <<'END'\n{shipped}END")
    assert "nologin" in machine.run("getent", "passwd", "triton-governor").stdout


def test_start_waits_for_the_first_tick_and_triton_may_be_away(running: Machine) -> None:
    assert running.show("Type") == "notify"
    running.until(lambda: running.show("StatusText") != "")
    assert running.systemctl("is-active", UNIT) == "active"
    assert int(running.show("MainPID")) > 0
    answer = running.run("/opt/triton-governor/bin/governor", "status", "--json", check=False)
    assert '"digits"' in answer.stdout, answer.stderr


def test_it_runs_without_root_in_its_own_folders(running: Machine) -> None:
    pid = running.show("MainPID")
    status = running.run("cat", f"/proc/{pid}/status").stdout
    owner = running.run("id", "-u", "triton-governor").stdout.strip()
    assert re.search(rf"^Uid:\t{owner}\t{owner}\t", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    listed = running.run("stat", "-c", "%U %a", "/var/lib/triton-governor").stdout.split()
    assert listed == ["triton-governor", "750"]
    socket = running.run("stat", "-c", "%F %U %a", "/run/triton-governor/governor.sock").stdout
    assert socket.split() == ["socket", "triton-governor", "660"]


def test_a_hanging_daemon_is_restarted_by_the_watchdog(running: Machine) -> None:
    before = running.show("MainPID")
    restarts = int(running.show("NRestarts"))
    running.run("kill", "-STOP", before)
    running.until(lambda: int(running.show("NRestarts")) > restarts)
    running.until(lambda: running.systemctl("is-active", UNIT, check=False) == "active")
    assert running.show("MainPID") != before
    assert "Watchdog timeout" in running.log()


def test_a_daemon_that_works_is_left_alone_by_the_watchdog(running: Machine) -> None:
    before = running.show("MainPID")
    time.sleep(6.0)  # one and a half times the test's WatchdogSec
    assert running.show("MainPID") == before
    assert running.systemctl("is-active", UNIT) == "active"


def test_a_killed_daemon_is_back_by_itself(running: Machine) -> None:
    before = running.show("MainPID")
    running.run("kill", "-KILL", before)
    running.until(lambda: running.show("MainPID") not in {before, "0"})
    running.until(lambda: running.systemctl("is-active", UNIT, check=False) == "active")


def test_a_stop_is_announced_orderly_and_quick(running: Machine) -> None:
    began_s = time.monotonic()
    running.systemctl("stop", UNIT)
    assert time.monotonic() - began_s < 15.0
    assert running.show("Result") == "success"
    assert running.show("ExecMainStatus") == "0"
    assert running.show("ActiveState") == "inactive"
    gone = running.run("test", "-e", "/run/triton-governor/governor.sock", check=False)
    assert gone.returncode != 0


def test_a_good_policy_is_taken_without_a_restart(running: Machine) -> None:
    before = running.show("MainPID")
    running.write_policy(POLICY.replace("60ms", "80ms"))
    running.systemctl("reload", UNIT)
    assert running.systemctl("is-active", UNIT) == "active"
    assert running.show("MainPID") == before
    running.until(lambda: "new policy" in running.log())


def test_a_bad_policy_is_refused_and_the_daemon_goes_on(running: Machine) -> None:
    before = running.show("MainPID")
    running.write_policy(POLICY.replace("60ms", "sixty"))
    running.systemctl("reload", UNIT)
    running.until(lambda: "policy.yaml:6:" in running.log())
    assert running.systemctl("is-active", UNIT) == "active"
    assert running.show("MainPID") == before
    time.sleep(5.0)  # the watchdog was fed meanwhile
    assert running.show("MainPID") == before


def test_a_start_with_a_bad_policy_fails_with_its_reason_and_recovers_when_mended(
    machine: Machine,
) -> None:
    machine.write_policy(POLICY.replace("version: 1", "version: x"))
    machine.systemctl("start", "--no-block", UNIT)
    machine.until(lambda: "policy.yaml:1:" in machine.log())
    machine.write_policy(POLICY)
    machine.until(lambda: machine.systemctl("is-active", UNIT, check=False) == "active")
    machine.systemctl("stop", UNIT)
