"""The wheel, installed where there is nothing else: it works, and has all that it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from controller import __version__
from controller.policy.shipped import examples

COMMANDS = [
    ("--version",),
    ("policy", "schema"),
    ("policy", "example"),
    ("policy", "explain", "objective"),
    ("completion", "bash"),
    ("triton", "--help"),
]


@pytest.fixture
def governor(installed, environment, tmp_path):
    """Run the installed command in an empty folder, with an empty home."""

    def run(*words, stdin=None):
        return subprocess.run(
            [installed / "bin/governor", *words],
            cwd=tmp_path,
            env={**environment, "HOME": str(tmp_path)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_works_without_the_repository(governor, words):
    done = governor(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_it_is_of_this_version(governor, wheel):
    assert governor("--version").stdout == f"governor {__version__}\n"
    assert f"-{__version__}-" in wheel.name


def test_every_shipped_example_is_in_it_and_sound(governor):
    for name, text in examples().items():
        printed = governor("policy", "example", name)
        assert printed.stdout == text
        checked = governor("policy", "check", "-", stdin=printed.stdout)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_schema_it_prints_is_the_shipped_one(governor, wheel):
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read("controller/policy/examples/policy.schema.json")
    assert json.loads(governor("policy", "schema").stdout) == json.loads(shipped)


def test_every_module_can_be_imported(installed, environment, tmp_path):
    # The demo's picture and the compiled replay are extras, and say so themselves.
    script = (
        "import importlib, pkgutil, controller\n"
        "extras = {'rich', 'matplotlib', 'numba'}\n"
        "for one in pkgutil.walk_packages(controller.__path__, 'controller.'):\n"
        "    scripts = ('controller.embedded.models', 'controller.embedded.engines')\n"
        "    if one.name.startswith(scripts): continue\n"
        "    try: importlib.import_module(one.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert error.name.partition('.')[0] in extras, (one.name, error)\n"
        "print(controller.__file__)\n"
    )
    done = subprocess.run(
        [installed / "bin/python", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))


def test_the_daemon_says_that_triton_is_not_there_and_ends_in_order(
    installed, environment, tmp_path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(examples()["demo"].replace("8001", "1").replace("8002", "1"))
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [installed / "bin/governor", "run", "--policy", policy, "--socket", tmp_path / "s"],
            cwd=tmp_path,
            env={**environment, "HOME": str(tmp_path)},
            stderr=output,
            stdout=output,
        )
    try:
        for _ in range(300):
            if "governing digits" in log.read_text() and (tmp_path / "s").exists():
                break
            assert daemon.poll() is None, log.read_text()
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(0.1)
        daemon.terminate()
        assert daemon.wait(30) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert "Traceback" not in log.read_text()


def test_man_finds_its_pages(installed):
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    for name in ("governor", "triton-governor-policy"):
        done = subprocess.run(
            ["man", "--where", name],
            env={"PATH": os.environ["PATH"], "MANPATH": str(installed / "share/man")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert str(installed / "share/man") in done.stdout, done.stderr


def test_the_source_distribution_has_what_a_packager_needs(distributions):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert names >= {
        "LICENSE",
        "README.md",
        "constraints.txt",
        "policies/example.yaml",
        "packaging/man/governor.1",
        "systemd/triton-governor.service",
        "tests/conftest.py",
    }
