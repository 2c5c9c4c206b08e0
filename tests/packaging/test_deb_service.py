"""The Debian package on a machine with a real systemd: what its scripts do to a service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import UNIT, Machine, boot
from test_deb import CLEAN

pytestmark = pytest.mark.systemd
POLICY = "/etc/triton-governor/policy.yaml"


@pytest.fixture(scope="module")
def machine(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    def furnish(root: Path) -> None:
        (root / "etc/machine-id").write_text("")
        (root / "opt").mkdir(exist_ok=True)
        shutil.copy(deb, root / "package.deb")

    with boot(tmp_path_factory.mktemp("booted"), furnish, size="2g") as machine:
        yield machine


def run(machine: Machine, *words: str, check: bool = True) -> str:
    clean = [f"{name}={value}" for name, value in CLEAN.items()]
    done = machine.run("env", "--ignore-environment", *clean, *words, check=check)
    return done.stdout + done.stderr


def test_a_service_is_started_by_the_operator_and_restarted_only_on_a_policy_it_takes(machine):
    # Installed: nothing runs, nothing is enabled.
    run(machine, "dpkg", "--install", "/package.deb")
    assert run(machine, "systemctl", "is-enabled", UNIT, check=False).strip() == "disabled"
    assert machine.show("ActiveState") == "inactive"
    # With a policy the operator starts it, as the package says.
    run(machine, "sh", "-c", f"governor policy example vision >{POLICY}")
    run(machine, "chgrp", "triton-governor", POLICY)
    run(machine, "systemctl", "enable", "--now", UNIT)
    assert "frames" in run(machine, "governor", "status")
    first = machine.show("MainPID")
    # Upgraded: what runs is restarted.
    run(machine, "dpkg", "--install", "/package.deb")
    machine.until(lambda: machine.show("ActiveState") == "active")
    second = machine.show("MainPID")
    assert second not in {first, "0"}
    # What is wrong for another host alone is not in its way.
    run(machine, "sh", "-c", f"echo 'hosts: {{elsewhere: {{mode: nonsense}}}}' >>{POLICY}")
    run(machine, "governor", "policy", "check", "--host", "here", POLICY)
    run(machine, "dpkg", "--install", "/package.deb")
    machine.until(lambda: machine.show("ActiveState") == "active")
    third = machine.show("MainPID")
    assert third not in {second, "0"}
    # Neither of install-service's commands touches what the package brought.
    for words, told in (
        (("uninstall-service", "--purge"), "sudo apt purge triton-governor"),
        (("install-service",), "would hide it"),
    ):
        assert told in run(machine, "governor", *words, check=False)
    assert machine.show("MainPID") == third
    run(machine, "test", "-f", POLICY)
    # Not on a policy that the new version refuses.
    run(machine, "sh", "-c", f"echo 'mode: nonsense' >>{POLICY}")
    told = run(machine, "dpkg", "--install", "/package.deb")
    assert "this one refuses its policy" in told
    assert machine.show("MainPID") == third
    # Removed: ended first, and enabled no more; its policy stays.
    run(machine, "dpkg", "--remove", "triton-governor")
    assert machine.show("ActiveState") == "inactive"
    wanted = "/etc/systemd/system/multi-user.target.wants"
    assert UNIT not in run(machine, "ls", wanted, check=False)
    run(machine, "test", "-f", POLICY)
