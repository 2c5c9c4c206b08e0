"""The wheel, built from this checkout as a release is, and an environment that has only it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.package)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, REPOSITORY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This process's environment, less what leads to this checkout, with the pinned versions."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "VIRTUAL_ENV", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"}
        and not name.startswith("TRITON_GOVERNOR_")
    }
    path = [
        entry
        for entry in kept["PATH"].split(os.pathsep)
        if not Path(entry).resolve().is_relative_to(REPOSITORY)
    ]
    constraints = str(REPOSITORY / "constraints.txt")
    return {**kept, "PATH": os.pathsep.join(path), "PIP_CONSTRAINT": constraints}


@pytest.fixture(scope="session")
def installed(
    wheel: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fresh virtual environment with the wheel and what it needs, nothing else."""
    prefix = tmp_path_factory.mktemp("installed") / "venv"
    for command in (
        [sys.executable, "-m", "venv", prefix],
        [prefix / "bin/pip", "install", "--quiet", wheel],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return prefix


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "installing into a root of its own needs root"
    for tool in ("dpkg-deb", "dpkg", "chroot", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    # The package depends on the distribution's interpreter, as dpkg knows it.
    python = Path("/usr/bin/python3").resolve().name
    known = subprocess.run(["dpkg", "-s", python], capture_output=True, check=False)
    return None if known.returncode == 0 else f"dpkg knows no {python} to depend on"


@pytest.fixture(scope="session")
def deb(wheel: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (reason := _why_not()) is not None:
        pytest.skip(reason)
    """The Debian package, built as `make deb` does."""
    folder = tmp_path_factory.mktemp("deb")
    # This environment's own pip, whatever it is called.
    pip = f"{REPOSITORY / '.venv/bin/python'} -m pip"
    done = subprocess.run(
        [REPOSITORY / "packaging/deb/build.sh", wheel, folder],
        env={**environment, "PYTHON": "/usr/bin/python3", "PIP": pip},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip().splitlines()[-1])
