"""docs/tutorial.md, word by word, from the wheel in an empty folder."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import tutorial

from controller.embedded import support

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
PORTS = (8000, 8001, 8002, 4318)


def taken():
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                yield port


@pytest.mark.triton
def test_every_command_of_the_tutorial_does_what_it_says(wheel, environment, tmp_path):
    try:
        support.check_machine()
        support.find_interpreter()
    except support.UnsupportedPlatformError as error:
        pytest.skip(str(error))
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(wheel, folder)
    # Short: the kernel takes 107 bytes as the path of a socket.
    with (
        tempfile.TemporaryDirectory(prefix="tut-", dir="/tmp") as run,
        tutorial.network_of_its_own() as apart,
    ):
        if not apart and (ports := list(taken())):
            pytest.skip(f"the tutorial's ports are in use: {ports}")
        Path(run).chmod(0o700)
        private = {"XDG_RUNTIME_DIR": run, "XDG_STATE_HOME": str(tmp_path / "state")}
        reader = tutorial.Reader(folder, {**environment, **private}, apart)
        try:
            for step in tutorial.read(TEXT):
                reader.do(step)
        finally:
            reader.leave()
            print(reader.said)


def test_a_command_that_fails_is_noticed(tmp_path):
    reader = tutorial.Reader(tmp_path, {"PATH": "/usr/bin:/bin"})
    (step,) = tutorial.read("```sh\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError, match=r"FAILED \(1\): false"):
        reader.do(step)
    (step,) = tutorial.read('<!-- run: shows="yes" -->\n```sh\necho no\n```\n')
    with pytest.raises(AssertionError, match="'yes'"):
        reader.do(step)


def test_what_one_block_exports_the_next_one_has(tmp_path):
    reader = tutorial.Reader(tmp_path, {"PATH": "/usr/bin:/bin"})
    for step in tutorial.read(
        '```sh\nexport WORD=here\n```\n<!-- run: shows="here" -->\n```sh\necho $WORD\n```\n'
    ):
        reader.do(step)
