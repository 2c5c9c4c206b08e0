import sys
from pathlib import Path

import pytest

from controller.embedded import support
from controller.embedded.support import UnsupportedPlatformError


def test_this_kind_of_machine_is_accepted():
    support.check_machine("Linux", "x86_64", ("glibc", "2.35"))
    support.check_machine("Linux", "x86_64", ("glibc", "3.0"))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (("Darwin", "arm64", ("", "")), "runs on Linux only, and this is Darwin"),
        (("Linux", "aarch64", ("glibc", "2.39")), "this machine is aarch64"),
        (("Linux", "x86_64", ("glibc", "2.31")), "needs glibc 2.35 or newer.* has 2.31"),
        (("Linux", "x86_64", ("glibc", "2.4")), "has 2.4"),
        (("Linux", "x86_64", ("", "")), "another C library"),
    ],
)
def test_an_unsupported_machine_is_refused_in_one_sentence(machine, words):
    with pytest.raises(UnsupportedPlatformError, match=words) as caught:
        support.check_machine(*machine)
    assert "\n" not in str(caught.value)


def _fake_python(folder: Path, name: str, facts: str) -> Path:
    """An executable that answers the probe as a Python of that kind would."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{facts}'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_python_without_its_shared_library_is_told_which_package_to_install(tmp_path):
    python = _fake_python(
        tmp_path,
        "python",
        '{"version": "3.11", "implementation": "cpython", "library_folder": null, '
        '"loadable": false}',
    )
    with pytest.raises(UnsupportedPlatformError, match=r"apt install libpython3\.11"):
        support.inspect_interpreter(python)


def test_a_python_that_the_server_cannot_embed_is_named_with_what_would_do(tmp_path):
    python = _fake_python(
        tmp_path,
        "python",
        '{"version": "3.13", "implementation": "cpython", "library_folder": "/lib", '
        '"loadable": true}',
    )
    with pytest.raises(UnsupportedPlatformError, match=r"3\.11 or 3\.12.*is cpython 3\.13"):
        support.inspect_interpreter(python)


def test_what_is_no_python_at_all_is_refused_not_raised_through(tmp_path):
    with pytest.raises(UnsupportedPlatformError, match="does not run as a Python"):
        support.inspect_interpreter(tmp_path / "missing")
    with pytest.raises(UnsupportedPlatformError, match="does not run as a Python"):
        support.inspect_interpreter(_fake_python(tmp_path, "odd", "no json"))


def test_a_usable_python_further_down_the_list_is_found(tmp_path):
    wrong = _fake_python(
        tmp_path,
        "python3.13",
        '{"version": "3.13", "implementation": "cpython", "library_folder": null, '
        '"loadable": true}',
    )
    right = _fake_python(
        tmp_path,
        "python3.12",
        '{"version": "3.12", "implementation": "cpython", "library_folder": "/opt/lib", '
        '"loadable": true}',
    )
    found = support.find_interpreter([wrong, right])
    assert found == support.Interpreter(right, "3.12", Path("/opt/lib"))


def test_when_no_python_is_usable_the_first_ones_problem_is_told(tmp_path):
    first = tmp_path / "first"
    with pytest.raises(UnsupportedPlatformError, match=f"{first} does not run"):
        support.find_interpreter([first, tmp_path / "second"])


def test_the_running_interpreter_reports_its_own_version():
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        found = support.inspect_interpreter(Path(sys.executable))
    except UnsupportedPlatformError as error:
        assert version in str(error)  # noqa: PT017 - either answer must name it
    else:
        assert found.version == version
