"""What is made from the program is as the program is, and reads well."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import command_line
import pytest
import reference

from controller.cli.main import COMMANDS
from controller.policy import describe, shipped
from controller.policy.load import load_policy

PAGES = ["governor.1", "triton-governor-policy.5"]


@pytest.mark.parametrize("name", reference.documents())
def test_a_made_file_is_current(name):
    assert name not in reference.stale(), "run: make reference"


def test_every_command_has_its_part():
    page = reference.documents()["docs/reference/cli.md"]
    for command in command_line.commands():
        assert f"\n## {command.name}\n" in page
        assert command.synopsis in page
    assert {one.name.split()[1] for one in command_line.commands()} == set(COMMANDS)


def test_every_key_of_a_policy_has_its_row():
    page = reference.documents()["docs/reference/policy.md"]
    for key in describe.find("models") + describe.find("mqtt"):
        if "." in key.path:
            assert f"| `{key.path}` |" in page
    assert "a duration from 100us to 1h" in page


def test_hidden_options_stay_hidden():
    assert "--details" not in reference.documents()["docs/reference/cli.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_linter_of_manual_pages_has_nothing_to_say(name):
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed (Debian, Ubuntu: apt install mandoc)")
    page = reference.ROOT / "packaging" / "man" / name
    done = subprocess.run(
        ["mandoc", "-Tlint", page], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout + done.stderr == ""


def test_an_example_is_printed_as_it_is_and_told_by_what_it_is_for(tmp_path: Path):
    for name, text in shipped.examples().items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_policy(path).models
        assert 8 < len(shipped.summary(text)) < 70
    assert shipped.example("vision.yaml") == shipped.example("vision")
    with pytest.raises(shipped.UnknownExampleError, match="there are example, assistant"):
        shipped.example("visoin")
