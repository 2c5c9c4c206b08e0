"""The unit on a real systemd, with the real daemon, and a Triton that is not there."""

import json
import re
import shutil
import subprocess
import time

import pytest
from machine import GOVERNOR, POLICY, REPOSITORY, UNIT, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(180, func_only=True)]


@pytest.fixture
def running(machine: Machine):
    """The service, ready and under the usual policy; it goes on running from test to test."""
    if machine.run("cat", "/etc/triton-governor/policy.yaml").stdout != POLICY:
        machine.write_policy(POLICY)
        machine.systemctl("reload", UNIT, check=False)  # where it runs
    machine.systemctl("start", UNIT)
    assert machine.show("ActiveState") == "active"
    return machine


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", [UNIT, "triton-governor@.service"])
def test_the_units_exposure_is_at_most_2(name: str) -> None:
    unit = REPOSITORY / "systemd" / name
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


@pytest.mark.parametrize("name", [UNIT, "triton-governor@.service"])
def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine, name: str) -> None:
    shipped = (REPOSITORY / "systemd" / name).read_text()
    machine.write(f"/run/verify/{name}", shipped)
    done = machine.run("systemd-analyze", "verify", f"/run/verify/{name}")
    assert "governor" not in done.stdout + done.stderr


def test_start_waits_for_the_first_tick_and_triton_may_be_away(machine: Machine) -> None:
    machine.systemctl("restart", UNIT)
    assert machine.show("Type") == "notify"
    machine.until(lambda: machine.show("StatusText") != "")
    assert machine.systemctl("is-active", UNIT) == "active"
    assert int(machine.show("MainPID")) > 0
    answer = machine.governor("status", "--json", check=False)
    assert '"digits"' in answer.stdout, answer.stderr


def test_its_state_is_one_line_of_systemctl_status(running: Machine) -> None:
    running.until(lambda: running.show("StatusText") == "waiting for Triton at 127.0.0.1:1")
    shown = running.systemctl("status", "--no-pager", UNIT)
    assert '  Status: "waiting for Triton at 127.0.0.1:1"\n' in shown


def test_the_socket_is_for_the_group_alone(running: Machine) -> None:
    for name, groups in (("ann", "triton-governor"), ("bob", "users")):
        running.run("sh", "-c", f"id {name} 2>&1 || useradd --groups {groups} {name}")
    status = (GOVERNOR, "status", "--json")
    assert '"digits"' in running.run("runuser", "-u", "ann", "--", *status).stdout
    refused = running.run("runuser", "-u", "bob", "--", *status, check=False)
    assert refused.returncode == 3
    told = json.loads(refused.stdout)["error"]
    assert told.startswith("you may not use /run/triton-governor/governor.sock; join its group")
    pause = ("pause", "digits", "--why", "by hand")
    running.run("runuser", "-u", "ann", "--", GOVERNOR, *pause)
    running.until(lambda: "pause of digits by ann, uid 1001" in running.log())
    running.run("runuser", "-u", "ann", "--", GOVERNOR, "resume", "digits")


def test_the_journal_has_priorities_and_no_second_time(running: Machine) -> None:
    running.governor("pin", "digits", "wdie", check=False)
    unit = running.show("InvocationID")
    words = ("journalctl", "--no-pager", "--output=json", f"_SYSTEMD_INVOCATION_ID={unit}")

    def lines() -> dict[str, str]:
        read = map(json.loads, running.run(*words).stdout.splitlines())
        return {line["MESSAGE"]: line["PRIORITY"] for line in read}

    running.until(lambda: any("pin of digits by root, uid 0" in line for line in lines()))
    found = lines()
    assert found["governing digits"] == "6"
    assert next(v for k, v in found.items() if k.startswith("pin of digits")) == "4"


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
    folder = running.run("stat", "-c", "%U %G %a", "/etc/triton-governor").stdout.split()
    assert folder == ["root", "triton-governor", "750"]
    assert "already exists but the mode is different" not in running.log()
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


def test_a_good_policy_is_taken_without_a_restart(running: Machine) -> None:
    before = running.show("MainPID")
    running.write_policy(POLICY.replace("60ms", "80ms"))
    running.systemctl("log-level", "debug")  # then systemd tells what it was told
    try:
        running.systemctl("reload", UNIT)
        assert running.systemctl("is-active", UNIT) == "active"
        assert running.show("MainPID") == before
        running.until(lambda: "new policy" in running.log())
        told = rf"PID {before} \(RELOADING=1, MONOTONIC_USEC=\d+\).*PID {before} \(READY=1\)"
        heard = ("journalctl", "--no-pager", "--output=cat", "_PID=1")
        running.until(lambda: bool(re.search(told, running.run(*heard).stdout, re.DOTALL)))
    finally:
        running.systemctl("log-level", "info")


def test_a_bad_policy_is_refused_and_the_daemon_goes_on(running: Machine) -> None:
    before = running.show("MainPID")
    running.write_policy(POLICY.replace("60ms", "sixty"))
    running.systemctl("reload", UNIT)
    running.until(lambda: "policy.yaml:6:" in running.log())
    assert running.systemctl("is-active", UNIT) == "active"
    assert running.show("MainPID") == before
    time.sleep(5.0)  # the watchdog was fed meanwhile
    assert running.show("MainPID") == before


def test_a_stop_is_announced_orderly_and_quick(running: Machine) -> None:
    began_s = time.monotonic()
    running.systemctl("stop", UNIT)
    assert time.monotonic() - began_s < 15.0
    assert running.show("Result") == "success"
    assert running.show("ExecMainStatus") == "0"
    assert running.show("ActiveState") == "inactive"
    gone = running.run("test", "-e", "/run/triton-governor/governor.sock", check=False)
    assert gone.returncode != 0


def test_json_and_a_quiet_log_still_tell_who_did_what(machine: Machine) -> None:
    start = f"{GOVERNOR} run --policy /etc/triton-governor/policy.yaml"
    words = f"[Service]\nExecStart=\nExecStart={start} --log-format json --log-level error\n"
    drop_in = f"/etc/systemd/system/{UNIT}.d/log.conf"
    machine.write(drop_in, words)
    machine.write_policy(POLICY)
    try:
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", UNIT)
        machine.governor("pin", "digits", "narrow", "--why", "test")
        unit = machine.show("InvocationID")

        def lines() -> list[str]:
            log = machine.log(UNIT, "--identifier=governor", f"_SYSTEMD_INVOCATION_ID={unit}")
            return log.splitlines()

        machine.until(lambda: bool(lines()))
        told = [json.loads(line) for line in lines()]
        assert [line["what"] for line in told] == ["pin"]
        assert (told[0]["who"], told[0]["outcome"]) == ("root", "done")
        machine.governor("unpin", "digits")
    finally:
        machine.run("rm", "-f", drop_in)
        machine.systemctl("daemon-reload")
        machine.systemctl("stop", UNIT)


def test_a_start_with_a_bad_policy_fails_with_its_reason_and_recovers_when_mended(
    machine: Machine,
) -> None:
    machine.systemctl("stop", UNIT)
    machine.write_policy(POLICY.replace("version: 1", "version: x"))
    machine.systemctl("start", "--no-block", UNIT)
    machine.until(lambda: "policy.yaml:1:" in machine.log(UNIT, "--priority=err"))
    machine.write_policy(POLICY)
    machine.until(lambda: machine.systemctl("is-active", UNIT, check=False) == "active")
    machine.systemctl("stop", UNIT)
