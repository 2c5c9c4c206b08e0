"""The `governor` command as a process: fast to start, quiet when its reader or its user leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.cli.main import COMMANDS

GOVERNOR = [sys.executable, "-m", "controller.cli.main"]
HEAVY = ("aiohttp", "grpc", "numpy", "pydantic", "pynvml", "sklearn", "tritonclient", "yaml")
DEMO = str(Path(__file__).parents[2] / "policies" / "demo.yaml")


def imported(*arguments):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "controller.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}


def test_help_answers_soon():
    # The target is 0.2 s on an idle machine; this bound only catches a heavy import.
    started_s = time.monotonic()
    subprocess.run([*GOVERNOR, "--help"], stdout=subprocess.DEVNULL, check=True, timeout=60)
    assert time.monotonic() - started_s < 2.0


def test_help_imports_no_library():
    modules = {name.partition(".")[0] for name in imported("--help")}
    assert "argparse" in modules  # the list is not empty for another reason
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_no_library(command):
    assert {name.partition(".")[0] for name in imported(command, "--help")}.isdisjoint(HEAVY)


def test_a_command_does_not_import_the_others():
    modules = {name for name in imported("policy", "--help") if name.startswith("controller.cli.")}
    helpers = {"controller.cli.arguments", "controller.cli.journals", "controller.cli.output"}
    assert modules <= {"controller.cli.policy", *helpers}


def test_a_reader_that_leaves_is_no_traceback():
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = subprocess.run(
            [*GOVERNOR, "policy", "schema"],
            stdout=write_end,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (141, b"")


def test_ctrl_c_while_waiting_for_input_is_no_traceback():
    with subprocess.Popen(
        [*GOVERNOR, "policy", "check", DEMO, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.readline()  # the first file is done: it now waits for standard input
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")


def test_a_policy_from_standard_input_is_checked():
    result = subprocess.run(
        [*GOVERNOR, "policy", "check", "-"],
        input=b"version: 1\n",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stdout.startswith(b"<stdin>:1:1: triton: is missing")


def test_output_that_the_terminal_cannot_spell_is_escaped(tmp_path):
    policy = tmp_path / "p.yaml"
    policy.write_text("é: 1\n", encoding="utf-8")
    result = subprocess.run(
        [*GOVERNOR, "policy", "check", str(policy)],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert b"'\\xe9': unknown key" in result.stdout
