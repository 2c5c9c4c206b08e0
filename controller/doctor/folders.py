"""Checks of the model folders: did files change since Triton loaded them?

Owns finding the server's model repository on this host and the newest file in it. A changed file
makes the next load that touches the folder, a switch of an alias included, reload the model for
seconds instead of milliseconds. Reads only; what cannot be seen from here is said to be so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from controller.doctor.finding import Finding, ok, warn
from controller.policy.cautions import is_loopback
from controller.policy.model import ModelPolicy, TritonPolicy

_FLAGS: Final = ("--model-repository", "--model-store")
_COMPILED: Final = "__pycache__"  # a model's own first import writes it
_MOST_FILES: Final = 10_000  # of one model; a few more may be looked at
_START_S: Final = 2.0  # the time of a process's start is a second off, and loads take a while
_NAME: Final = "model folders"
_ADVICE: Final = (
    "never change the folder of a loaded model: put a new version into a folder of a new name. A "
    "running governor loads it anew while it serves nobody; what serves must be switched away first"
)


def check_folders(
    triton: TritonPolicy, models: Sequence[ModelPolicy], fresh_age_s: Mapping[str, float]
) -> list[Finding]:
    """Return a finding for each variant whose files changed, or one that says all is well; blocks.

    Args:
        triton: where the server is.
        models: whose variants are looked at.
        fresh_age_s: how long ago the running governor saw that loading a variant reloads nothing.
    """
    names = list(dict.fromkeys(v.model for model in models for v in model.variants))
    if not names:
        return []
    server = _find(triton.grpc) if is_loopback(triton.grpc) else None
    found = {} if server is None else dict(_newest(server, names))
    if server is None or not found:
        return [
            ok(
                _NAME,
                "whether files changed since a load cannot be seen: the server's model repository "
                "is not on this host, or not yours to read",
                _ADVICE,
            )
        ]
    now_s = time.time()
    findings = []
    for name, (any_s, source_s) in found.items():
        age_s = fresh_age_s.get(name)
        if age_s is not None and any_s > now_s - age_s:
            since = "the governor last saw that loading it reloads nothing"
        elif age_s is None and source_s > server.create_time() + _START_S:
            since = "Triton was started; if it was not loaded since, its next load reloads it"
        else:
            continue
        ago_s = max(now_s - any_s, 0.0)
        words = f"files of {name} changed {_duration(ago_s)} ago, after {since}"
        findings.append(warn(_NAME, words, _ADVICE))
    count = len(found)
    return findings or [
        ok(_NAME, f"nothing changed in {count} of {len(names)} since it was loaded", _ADVICE)
    ]


def _find(address: str) -> psutil.Process | None:
    """Return the process that listens on a port of this host, if it can be seen."""
    port = address.rpartition(":")[2]
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if str(connection.laddr.port) == port and connection.pid:
                return psutil.Process(connection.pid)
    except (psutil.Error, OSError):
        return None
    return None


def _newest(
    server: psutil.Process, names: Sequence[str]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the newest change of each model: of any file, and of what is not compiled."""
    try:
        roots = [
            # As the server sees it, which may be in a container.
            Path(f"/proc/{server.pid}/root", *Path(server.cwd(), path).parts[1:])
            for path in _repositories(server.cmdline())
        ]
    except (psutil.Error, OSError):
        return
    for name in names:
        for root in roots:
            times = list(_changes(root / name))
            if times:
                source = [when for when, compiled in times if not compiled]
                yield name, (max(when for when, _ in times), max(source, default=0.0))
                break


def _changes(folder: Path) -> Iterator[tuple[float, bool]]:
    """Yield when each file and folder was changed, and whether Python did it for itself.

    Triton looks at folders, too: what is moved into one keeps its own time.
    """
    count = 0
    for where, folders, files in os.walk(folder, followlinks=True):
        own = _COMPILED in Path(where).parts
        for name, compiled in (("", own or _COMPILED in folders), *((file, own) for file in files)):
            with contextlib.suppress(OSError):  # gone meanwhile, or a link to nothing
                yield (Path(where) / name).stat().st_mtime, compiled
            count += 1
        if count >= _MOST_FILES:
            return


def _repositories(command: Sequence[str]) -> Iterator[str]:
    """Yield the local model repositories of a server's command line."""
    for flag, following in zip(command, [*command[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        path = value if equals else following
        if name in _FLAGS and "://" not in path:
            yield path


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
