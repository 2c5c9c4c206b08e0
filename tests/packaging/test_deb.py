"""The Debian package: installed, upgraded and removed in a throw-away copy of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
# The machine's own places for state, and a PATH without this checkout.
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


class Machine:
    """A root in which programs are run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command, ends=0):
        done = subprocess.run(
            ["chroot", self.root, *command],
            env=CLEAN,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == ends, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def has(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))


@contextlib.contextmanager
def mounted(*words, where: Path) -> Iterator[None]:
    done = subprocess.run(["mount", *words, where], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


@pytest.fixture(scope="module")
def machine(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """This machine as it is, with an empty upper layer and the package in /tmp of it."""
    folder = tmp_path_factory.mktemp("machine")
    scratch, root = folder / "scratch", folder / "root"
    scratch.mkdir()
    root.mkdir()
    with contextlib.ExitStack() as stack:
        options = "size=2g,mode=755"
        stack.enter_context(mounted("-t", "tmpfs", "tmpfs", "-o", options, where=scratch))
        (scratch / "upper").mkdir()
        (scratch / "work").mkdir()
        layers = f"lowerdir=/,upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
        stack.enter_context(mounted("-t", "overlay", "overlay", "-o", layers, where=root))
        stack.enter_context(mounted("--bind", "/dev", where=root / "dev"))
        stack.enter_context(mounted("-t", "proc", "proc", where=root / "proc"))
        # As on a machine that has never seen it.
        shutil.rmtree(root / "etc/triton-governor", ignore_errors=True)
        (root / "opt").mkdir(exist_ok=True)
        shutil.copy(deb, root / "package.deb")
        yield Machine(root)


def test_the_package_is_of_this_version_and_asks_for_the_interpreter(deb):
    told = subprocess.run(["dpkg-deb", "-f", deb], capture_output=True, text=True, check=True)
    assert f"Version: {__version__}-1" in told.stdout
    assert "Depends: python3." in told.stdout


def test_every_unit_of_the_tree_is_in_it(deb):
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    units = [path.name for path in (REPOSITORY / "systemd").glob("*.service")]
    assert units
    for unit in units:
        assert f"./usr/lib/systemd/system/{unit}" in listed.stdout


def test_no_folder_of_the_machine_is_closed_and_the_libraries_bring_no_commands(deb):
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    lines = [line.split() for line in listed.stdout.splitlines()]
    folders = [words for words in lines if words[5].endswith("/")]
    assert {(words[0], words[1]) for words in folders} == {("drwxr-xr-x", "root/root")}
    scripts = {words[5] for words in lines if "/bin/" in words[5] and words[0][0] == "-"}
    assert scripts == {"./opt/triton-governor/bin/governor"}


def test_it_is_installed_used_upgraded_removed_and_purged(machine):
    # Installed: it works, it has its user, and nothing is enabled without a policy.
    told = machine.run("dpkg", "--install", "/package.deb")
    assert "write /etc/triton-governor/policy.yaml" in told
    assert machine.run("governor", "--version") == f"governor {__version__}\n"
    assert machine.run("readlink", "-f", "/opt/triton-governor/bin/python3").startswith(
        "/usr/bin/python3."
    )
    assert machine.run("getent", "passwd", "triton-governor").startswith("triton-governor:")
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/triton-governor") == (
        "root:triton-governor 750\n"
    )
    assert not machine.has("/etc/systemd/system/multi-user.target.wants/triton-governor.service")
    for path in (
        "/usr/share/man/man1/governor.1.gz",
        "/usr/share/man/man5/triton-governor-policy.5.gz",
        "/usr/share/bash-completion/completions/governor",
        "/usr/share/zsh/vendor-completions/_governor",
        "/usr/share/fish/vendor_completions.d/governor.fish",
    ):
        assert machine.has(path)
    # The service's user can run it with the policy that an operator writes.
    machine.run("sh", "-c", "governor policy example vision >/etc/triton-governor/policy.yaml")
    machine.run("chgrp", "triton-governor", "/etc/triton-governor/policy.yaml")
    machine.run("chmod", "640", "/etc/triton-governor/policy.yaml")
    as_service = ("setpriv", "--reuid=triton-governor", "--regid=triton-governor", "--clear-groups")
    policy = "/etc/triton-governor/policy.yaml"
    assert "fine" in machine.run(*as_service, "governor", "policy", "check", policy)
    # The machine's own Python has got nothing.
    machine.run("/usr/bin/python3", "-I", "-c", "import controller", ends=1)
    # Upgraded: the policy stays, and it is not told again what to do first.
    told = machine.run("dpkg", "--install", "/package.deb")
    assert "write /etc" not in told
    # Removed: the program goes, what is the operator's stays.
    machine.run("touch", "/opt/triton-governor/lib/left-by-python")
    machine.run("install", "-d", "/var/lib/triton-governor", "/var/lib/triton-governor-edge")
    machine.run("dpkg", "--remove", "triton-governor")
    assert not machine.has("/opt/triton-governor")
    assert not machine.has("/usr/bin/governor")
    assert machine.has("/var/lib/triton-governor")
    assert machine.has(policy)
    # Purged: what was learned goes, too; the policy stays.
    machine.run("dpkg", "--purge", "triton-governor")
    assert not machine.has("/var/lib/triton-governor")
    assert not machine.has("/var/lib/triton-governor-edge")
    assert machine.has(policy)
