"""Which socket and which journal a client looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli import journals
from controller.interfaces import paths
from controller.journal import paths as journal_paths


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /run, /var/lib and home."""
    for name in ("SOCKET", "INSTANCE"):
        monkeypatch.delenv(f"TRITON_GOVERNOR_{name}", raising=False)
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(paths, "RUN", tmp_path / "run")
    monkeypatch.setattr(journal_paths, "SYSTEM_STATES", tmp_path / "lib")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def socket_of(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "governor.sock").touch()
    return folder / "governor.sock"


def test_the_user_s_own_comes_first_then_the_service_then_a_single_instance(run: Path) -> None:
    own = run.parent / "user" / "triton-governor" / "governor.sock"
    assert paths.find_socket() == own
    instance = socket_of(run / "triton-governor-edge")
    assert paths.find_socket() == instance
    service = socket_of(run / "triton-governor")
    assert paths.find_socket() == service
    socket_of(own.parent)
    assert paths.find_socket() == own


def test_of_several_instances_none_is_guessed(run: Path) -> None:
    for name in ("a", "b"):
        socket_of(run / f"triton-governor-{name}")
    assert paths.find_socket().is_relative_to(run.parent / "user")
    assert paths.running_instances() == ["a", "b"]


def test_a_named_instance_is_looked_for_nowhere_else(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket_of(run / "triton-governor")
    wanted = run / "triton-governor-edge" / "governor.sock"
    assert paths.find_socket("edge") == wanted
    monkeypatch.setenv("TRITON_GOVERNOR_INSTANCE", "edge")
    assert paths.find_socket() == wanted
    assert journals.journal_of(None) == run.parent / "lib/triton-governor-edge/journal.sqlite3"
    monkeypatch.setenv("TRITON_GOVERNOR_SOCKET", "/x/y")
    assert paths.find_socket() == Path("/x/y")
    assert paths.find_socket("edge") == wanted  # the command line has the last word


def test_the_service_s_journal_is_read_where_the_user_has_none(run: Path) -> None:
    folder = run.parent / "lib" / "triton-governor"
    folder.mkdir(parents=True)
    (folder / "journal.sqlite3").touch()
    assert journals.journal_of(None) == folder / "journal.sqlite3"
    own = run.parent / "state" / "triton-governor" / "journal.sqlite3"
    own.parent.mkdir(parents=True)
    own.touch()
    assert journals.journal_of(None) == own
    assert journals.journal_of("edge") != own


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", ".a", "a b", "a" * 64, "é"])
def test_what_is_no_name_of_a_unit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of an instance"):
        paths.service_name(name)


def test_what_may_not_be_looked_at_counts_as_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = run / "triton-governor" / "governor.sock"
    looked = Path.exists

    def exists(path: Path) -> bool:
        if path == service:
            raise PermissionError
        return looked(path)

    monkeypatch.setattr(Path, "exists", exists)
    assert paths.find_socket() == service
