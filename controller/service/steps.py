"""One step after the other: said, done if needed, or only told.

Owns how a plan is carried out and the ways to write a file, run a command and remove something. It
must not know what the steps are for.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_COMMAND_S: Final = 180.0  # a start may take the unit's TimeoutStartSec


class StepError(Exception):
    """A step failed; the text says which and why. Those before it stay done: run it again."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, which can be done again without harm.

    Args:
        what: the thing, as an order: "write /etc/...".
        why_not: returns why it need not be done, or None.
        do: does it. Raises OSError, StepError.
    """

    what: str
    why_not: Callable[[], str | None]
    do: Callable[[], None]


def carry_out(steps: Sequence[Step], *, dry: bool) -> Iterator[str]:
    """Yield a line for each step once it is done; dry: for what would be. Raises StepError."""
    for step in steps:
        try:
            reason = step.why_not()
            if reason is not None:
                yield f"as it is  {step.what}: {reason}"
                continue
            if dry:
                yield f"would     {step.what}"
                continue
            step.do()
        except OSError as error:
            raise StepError(f"could not {step.what}: {error}") from error
        except StepError as error:
            raise StepError(f"could not {step.what}: {error}") from error
        yield f"done      {step.what}"


def write(path: Path, text: str) -> Step:
    """Return the step that gives a file, root's and readable by all, a text."""

    def why_not() -> str | None:
        same = path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text
        return "says so already" if same else None

    verb = "replace" if path.exists() and why_not() is None else "write"
    return Step(f"{verb} {path}", why_not, lambda: put(path, text.encode(), 0o644))


def put(path: Path, data: bytes, mode: int, group: int = -1) -> None:
    """Write a file as a whole or not at all, with its mode and group from the start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - a descriptor
            os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, mode)
            stream.write(data)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def remove(path: Path) -> Step:
    """Return the step that removes a file, or a folder with all that is in it."""

    def do() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    return Step(f"remove {path}", lambda: None if os.path.lexists(path) else "is not there", do)


def run(command: Sequence[str], why_not: Callable[[], str | None], purpose: str = "") -> Step:
    """Return the step that runs a command."""
    shown = shlex.join(command)
    what = f"run {shown}{f' ({purpose})' if purpose else ''}"
    return Step(what, why_not, lambda: _checked(command))


def _checked(command: Sequence[str]) -> None:
    done = ask(command)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise StepError(said)


def ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and return how it ended. Raises StepError where it cannot be run."""
    try:
        return subprocess.run(  # noqa: S603 - ours, no shell
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_S,
            check=False,
        )
    except FileNotFoundError:
        raise StepError(f"there is no program {command[0]}; it is a part of systemd") from None
    except subprocess.TimeoutExpired:
        raise StepError(f"{shlex.join(command)}: not done after {_COMMAND_S:g} s") from None
