import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from controller.embedded import install, paths
from controller.embedded.support import Interpreter

INTERPRETER = Interpreter(Path("/usr/bin/python3"), "3.11", Path("/opt/python/lib"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(paths.CACHE_ENV, str(tmp_path / "cache"))
    return tmp_path / "cache"


def _complete(root: Path) -> Path:
    """Lay out what a finished installation looks like."""
    described = install._describe(root, INTERPRETER, {})
    for file in (described.tritonserver, described.python):
        file.parent.mkdir(parents=True)
        file.touch()
    install._write_stamp(root, {"format": install._FORMAT, "versions": {"numpy": "1.26.4"}})
    return root


def test_a_complete_installation_is_read_back(tmp_path):
    found = install._read(_complete(tmp_path / "server"), INTERPRETER)
    assert found is not None
    assert found.versions == {"numpy": "1.26.4"}
    assert found.triton_version == "2.51.0"


def _without_stamp(root: Path) -> None:
    (root / "installation.json").unlink()


def _torn_stamp(root: Path) -> None:
    (root / "installation.json").write_text('{"format": 1, "versi', encoding="utf-8")


def _other_format(root: Path) -> None:
    (root / "installation.json").write_text(
        json.dumps({"format": 0, "versions": {}}), encoding="utf-8"
    )


def _stamp_of_another_shape(root: Path) -> None:
    (root / "installation.json").write_text("[]", encoding="utf-8")


def _without_server(root: Path) -> None:
    shutil.rmtree(next(root.rglob("tritonserver")))


def _dangling_interpreter(root: Path) -> None:
    python = root / "venv/bin/python"
    python.unlink()
    python.symlink_to(root / "gone")


@pytest.mark.parametrize(
    "damage",
    [
        _without_stamp,
        _torn_stamp,
        _other_format,
        _stamp_of_another_shape,
        _without_server,
        _dangling_interpreter,
    ],
)
def test_a_half_or_damaged_installation_counts_as_none(tmp_path, damage):
    root = _complete(tmp_path / "server")
    damage(root)
    assert install._read(root, INTERPRETER) is None


def test_another_python_and_other_pins_get_a_folder_of_their_own(cache, tmp_path, monkeypatch):
    first = install._root(INTERPRETER)
    assert first.parent == cache
    assert install._root(Interpreter(Path("/usr/bin/python3"), "3.12", None)) != first
    other = tmp_path / "requirements.txt"
    other.write_text("numpy==1.26.3\n", encoding="utf-8")
    monkeypatch.setattr(install, "REQUIREMENTS", other)
    assert install._root(INTERPRETER) != first


def test_the_servers_environment_shields_its_python_from_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONHOME", "/else")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/users/own")
    found = install._read(_complete(tmp_path / "server"), INTERPRETER)
    assert found is not None
    variables = found.environment()
    assert "PYTHONPATH" not in variables
    assert "PYTHONHOME" not in variables
    assert variables["PATH"].split(os.pathsep)[0] == str(tmp_path / "server/venv/bin")
    assert variables["LD_LIBRARY_PATH"] == "/opt/python/lib:/users/own"


def test_a_gpu_is_never_hidden_from_the_server(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = install._read(_complete(tmp_path / "server"), INTERPRETER)
    assert found is not None
    assert "CUDA_VISIBLE_DEVICES" not in found.environment()


def test_whoever_finds_the_lock_taken_says_so_and_waits(tmp_path):
    path = tmp_path / "lock"
    said = []
    with path.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)

        def progress(message, ratio):
            said.append((message, ratio))
            fcntl.flock(holder, fcntl.LOCK_UN)  # the other one finishes now

        with install.file_lock(path, progress):
            pass
    assert said == [("waiting for another process that is doing this already", None)]


def test_a_failing_tool_is_reported_with_the_tail_of_its_output():
    script = "for i in $(seq 1 50); do echo line $i; done; exit 3"
    with pytest.raises(install.InstallError) as caught:
        install._run(["/bin/sh", "-c", script], "pip could not install x; check the network")
    text = str(caught.value)
    assert text.startswith("pip could not install x; check the network:\n")
    assert text.endswith("line 50")
    assert "line 10" not in text


def test_a_tool_that_is_missing_is_an_install_error_too(tmp_path):
    with pytest.raises(install.InstallError, match="could not create"):
        install._run([tmp_path / "missing"], "could not create a virtual environment")


def test_the_cache_folder_follows_override_then_xdg_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(paths.CACHE_ENV, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert paths.cache_folder() == tmp_path / "home/.cache/triton-governor"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache_folder() == tmp_path / "xdg/triton-governor"
    monkeypatch.setenv(paths.CACHE_ENV, str(tmp_path / "own"))
    assert paths.cache_folder() == tmp_path / "own"
    assert paths.cache_folder().is_dir()


def test_the_runtime_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.runtime_folder().stat().st_mode & 0o077 == 0


def test_a_runtime_folder_that_is_somebodys_link_is_refused(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "triton-governor").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(PermissionError, match="belongs to another user"):
        paths.runtime_folder()
