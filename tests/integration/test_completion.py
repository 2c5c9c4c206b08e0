"""Completion in the real shells, from the script that `governor completion` prints."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli_client import daemon  # noqa: F401 - a fixture

from controller.cli.completion import SHELLS, script
from controller.cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """The command as installed, an empty home, and a folder with a policy to name."""
    program = tmp_path / "bin" / "governor"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m controller.cli.main "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRITON_GOVERNOR_SOCKET", str(tmp_path / "run" / "governor.sock"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "home").mkdir()
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    (work / "mine.yaml").touch()
    monkeypatch.chdir(work)
    for shell in SHELLS:
        (tmp_path / shell).write_text(f"{script(shell)}\n", encoding="utf-8")


def needs(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def in_bash(tmp_path, line):
    """Call what bash would call for the last word of a line; return what it offers."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    asked = (
        f"source {tmp_path}/bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "spec=$(complete -p governor); f=${spec#*-F }; ${f%% *} 2>/dev/null; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def in_fish(tmp_path, line):
    asked = f"source {tmp_path}/fish; complete --do-complete '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", asked], capture_output=True, text=True, timeout=60, check=True
    )
    return [offer.partition("\t")[0] for offer in done.stdout.splitlines()]


def in_zsh(tmp_path, line, rest):
    """Type a line and a tab at a real prompt, see the rest come; return the line as it stands."""
    setup = (
        "PS1='READY> '; autoload -U compinit; compinit -u -D; setopt no_beep; "
        f'eval "$(<{tmp_path}/zsh)"\n'
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp("zsh", ["zsh", "-f", "-i"])  # noqa: S606
    try:
        said = b""

        def until(mark, within_s=30.0):
            nonlocal said
            ends_s = time.monotonic() + within_s
            while mark not in said:
                assert time.monotonic() < ends_s, said.decode(errors="replace")
                if select.select([terminal], [], [], 0.2)[0]:
                    said += os.read(terminal, 65536)
            found, said = said.partition(mark)[::2]
            return found

        os.write(terminal, setup.encode() + b"print SET''UP\n")
        until(b"SETUP\r\n")
        until(b"READY> ")
        # One key after the other has been worked on: zsh completes nothing in what was pasted.
        os.write(terminal, line.encode())
        until(line.encode())
        os.write(terminal, b"\t")
        until(rest.encode())
        os.write(terminal, b"\x01print -r -- 'TYPED\x05'; print DO''NE\n")
        shown = until(b"DONE\r\n")
        typed = [one for one in shown.decode().splitlines() if one.startswith("TYPED")]
        assert typed, shown.decode()
        return typed[-1].removeprefix("TYPED").rstrip()
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def test_bash_offers_every_command(tmp_path):
    assert set(in_bash(tmp_path, "governor ")) >= set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("governor poli", ["policy"]),
        ("governor policy ch", ["check"]),
        ("governor policy check mi", ["mine.yaml"]),
        ("governor run --policy mi", ["mine.yaml"]),
        ("governor run --log-level w", ["warning"]),
        ("governor status --wa", ["--watch"]),
        ("governor profiles materialise mine.yaml --repository fo", ["folder"]),
        ("governor triton sto", ["stop"]),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_commands_options_choices_and_files_are_offered(tmp_path, shell, line, offered):
    needs(shell)
    found = {"bash": in_bash, "fish": in_fish}[shell](tmp_path, line)
    assert [offer.rstrip("/") for offer in found] == offered


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("governor poli", "cy"),
        ("governor policy ch", "eck"),
        ("governor policy check mi", "ne.yaml"),
        ("governor run --log-level w", "arning"),
    ],
)
def test_zsh_completes_a_typed_line(tmp_path, line, rest):
    needs("zsh")
    assert in_zsh(tmp_path, line, rest) == line + rest


def test_names_of_models_and_variants_are_those_of_the_daemon(tmp_path, daemon, capsys):  # noqa: F811
    assert main(["completion", "models"]) == 0
    models = capsys.readouterr().out.split()
    assert models
    assert in_bash(tmp_path, "governor explain ") == models
    if shutil.which("fish"):
        assert set(models) <= set(in_fish(tmp_path, "governor explain "))
    if shutil.which("zsh"):
        typed, rest = f"governor unpin {models[0][:3]}", models[0][3:]
        assert in_zsh(tmp_path, typed, rest) == typed + rest


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_the_daemon_is_the_one_that_the_line_names(tmp_path, daemon, monkeypatch, shell):  # noqa: F811
    needs(shell)
    monkeypatch.delenv("TRITON_GOVERNOR_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nobody"))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    complete = {"bash": in_bash, "fish": in_fish}[shell]
    named = f"--socket {tmp_path / 'run' / 'governor.sock'}"
    models = [one["name"] for one in daemon.status()["models"]]
    offered = complete(tmp_path, f"governor explain {named} ")
    assert [one for one in offered if not one.startswith("-")] == sorted(models)
    assert not set(models) & set(complete(tmp_path, "governor explain "))


def test_zsh_asks_the_daemon_that_the_line_names(tmp_path, daemon, monkeypatch):  # noqa: F811
    needs("zsh")
    monkeypatch.delenv("TRITON_GOVERNOR_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nobody"))
    (tmp_path / "work" / "s").symlink_to(tmp_path / "run" / "governor.sock")
    typed = "governor unpin --socket s dig"
    assert in_zsh(tmp_path, typed, "its") == f"{typed}its"


def test_without_a_daemon_there_are_no_names_and_no_noise(tmp_path, capsys):
    started_s = time.monotonic()
    assert main(["completion", "models"]) == 3
    assert time.monotonic() - started_s < 2.0
    assert capsys.readouterr() == ("", "")
    assert in_bash(tmp_path, "governor explain ") == []


def test_a_variant_is_completed_for_the_model_before_it(tmp_path, daemon, capsys):  # noqa: F811
    status = daemon.status()
    model = next(one for one in status["models"] if one.get("candidates"))
    wanted = sorted({each["variant"] for each in model["candidates"]})
    assert main(["completion", "variants", "--model", model["name"]]) == 0
    assert capsys.readouterr().out.split() == wanted
    assert in_bash(tmp_path, f"governor pin {model['name']} ") == wanted
