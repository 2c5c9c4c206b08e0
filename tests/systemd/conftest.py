"""One booted machine for all tests of the service."""

from collections.abc import Iterator

import pytest
from machine import DROP_IN, POLICY, UNIT, Machine, boot


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine, with the governor in /opt and no service."""
    with boot(tmp_path_factory.mktemp("machine")) as machine:
        machine.write("/root/policy.yaml", POLICY)
        yield machine


@pytest.fixture
def bare(booted: Machine) -> Iterator[Machine]:
    """The machine without a service, before and after."""
    _uninstall(booted)
    yield booted
    _uninstall(booted)


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """The machine with the service installed, and quicker than it is shipped."""
    if not (booted.upper / "etc/systemd/system" / UNIT).is_file():
        booted.governor("install-service", "--policy", "/root/policy.yaml")
        booted.write(f"/etc/systemd/system/{UNIT}.d/test.conf", DROP_IN)
        booted.systemctl("daemon-reload")
    return booted


def _uninstall(machine: Machine) -> None:
    if not any("/triton-governor" in path for path in machine.files()):
        return
    for unit in (machine.upper / "etc/systemd/system").glob("*.wants/triton-governor@*.service"):
        instance = unit.name.removeprefix("triton-governor@").removesuffix(".service")
        machine.governor("uninstall-service", "--purge", "--instance", instance)
    machine.governor("uninstall-service", "--purge")
