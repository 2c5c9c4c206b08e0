"""Fixtures that need the embedded server; skipped only where the platform cannot run it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repository import fill_repository

from controller.embedded import support
from controller.embedded.install import Installation, install
from controller.embedded.server import RunningServer, start_server


def _progress(message: str, ratio: float | None) -> None:
    print(message if ratio is None else f"{message} ({ratio:.0%})")  # noqa: T201 - pytest keeps it


def _why_not() -> str | None:
    try:
        support.check_machine()
        support.find_interpreter()
    except support.UnsupportedPlatformError as error:
        return str(error)
    return None


_FIXTURES = frozenset({"installation", "ladder", "triton", "start_triton", "repository"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.triton)
            # The first test to use the server pays for its download and the ladder's training.
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(120, func_only=True))


_ahead: list[subprocess.Popen[bytes]] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with the download and the training while tests run that need neither.

    The fixtures below wait for it, or do what it failed to do and say why.
    """
    needed = any(item.get_closest_marker("triton") for item in session.items)
    if needed and not session.config.option.collectonly and _why_not() is None:
        command = [sys.executable, "-m", "controller.cli.main", "triton", "install"]
        quiet = subprocess.DEVNULL
        _ahead.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))


def pytest_sessionfinish() -> None:
    while _ahead:
        process = _ahead.pop()
        process.terminate()  # where it has not ended: the session was interrupted
        process.wait()


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The installed server; downloads it once per machine."""
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)
    return install(_progress)


@pytest.fixture(scope="session")
def ladder(installation: Installation):
    """The trained sample models."""
    from controller.embedded.ladder import ensure_ladder

    return ensure_ladder(installation, _progress)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A fresh copy of the test repository (`fill_repository`)."""
    return fill_repository(tmp_path / "repository")


@pytest.fixture(scope="module")
def start_triton(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RunningServer]]:
    """Start servers that are stopped when the module is done; arguments as `start_server`."""
    servers: list[RunningServer] = []

    def start(repository: Path, **settings) -> RunningServer:
        log = tmp_path_factory.mktemp("triton") / "triton.log"
        server = start_server(installation, repository, **{"log_file": log, **settings})
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def triton(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """One server for the whole session, all models of the test repository loaded."""
    root = fill_repository(tmp_path_factory.mktemp("shared") / "repository")
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    names = ("echo_fast", "echo_mid", "echo_slow", "echo")
    with start_server(installation, root, log_file=log, load_models=names) as server:
        yield server
