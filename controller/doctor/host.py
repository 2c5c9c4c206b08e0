"""Checks of this machine: GPU library, journal, socket, trace receiver.

Owns the questions that need no Triton. It must create nothing and leave no trace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from pathlib import Path

from controller.doctor.finding import Finding, fail, ok, warn
from controller.journal.paths import default_journal
from controller.journal.reader import JournalReader, JournalUnreadableError
from controller.policy.model import GpuPolicy, GpuSource, JournalPolicy
from controller.telemetry.gpu import GpuAbsentError, GpuError, NvmlSampler
from controller.telemetry.processes import TritonHost

_GIB = 2**30


def check_gpu(policy: GpuPolicy) -> list[Finding]:
    """Return what NVML sees; blocking."""
    if policy.source is GpuSource.NONE:
        return [ok("gpu", "not watched (gpu.source: none)")]
    sampler = NvmlSampler(policy)
    try:
        readings = sampler.sample()
    except GpuAbsentError as error:
        return [ok("gpu", f"none ({error}); the host's load is used")]
    except GpuError as error:
        return [
            warn("gpu", str(error), "mend the driver (nvidia-smi must work), or gpu.source: none")
        ]
    finally:
        sampler.close()
    findings = []
    for reading in readings:
        name = f"gpu {reading.index}"
        what = reading.name or "unnamed"
        if reading.error is not None:
            findings.append(warn(name, f"{what}: {reading.error}", "see nvidia-smi and dmesg"))
        elif reading.mig:
            findings.append(
                warn(
                    name,
                    f"{what} is split by MIG: its utilisation is not reported",
                    "nothing to change; decisions rest on Triton's own numbers",
                )
            )
        else:
            findings.append(ok(name, what))
    return findings


def check_host_memory(grpc: str, *, limited: bool) -> Finding:
    """Return whether it can be measured what variants take of the host; blocking.

    Args:
        grpc: where the server is.
        limited: whether the policy has a budget of it.
    """
    name, host = "host memory", TritonHost(lambda: grpc)
    held = host()
    if held is not None:
        return ok(
            name, f"Triton (process {host.pid}) holds {held / _GIB:.2f} GiB with its children"
        )
    told = f"what variants take of it is not measured: {host.why}"
    if not limited:
        return ok(name, told)
    return warn(name, told, "declare `memory: {host: ...}` of every variant")


def check_journal(policy: JournalPolicy) -> Finding:
    """Return whether the journal can be written, is sound, and has room."""
    name = "journal"
    path = Path(policy.path) if policy.path else default_journal()
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    advice = "correct journal.path or the folder's owner; without it nothing survives a restart"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return fail(name, f"{path} cannot be written: {folder} does not allow it", advice)
    if _open_to_all(folder):
        return warn(
            name,
            f"everybody may put files into {folder}, and so beside {path}",
            "name a folder of the governor's own in journal.path",
        )
    if path.exists():
        if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            return warn(
                name,
                f"every user of this machine may read {path} or write to it",
                f"chmod 0640 {path}: it tells what was decided and who asked for it",
            )
        if not os.access(path, os.R_OK | os.W_OK):
            return fail(name, f"{path} cannot be read and written", advice)
        try:
            with JournalReader(path):
                pass
        except JournalUnreadableError as error:
            return warn(name, str(error), "the governor will set it aside and begin a new one")
    free = shutil.disk_usage(folder).free
    if free < policy.max_bytes:
        return warn(
            name,
            f"{folder} has {free / _GIB:.1f} GiB left, and the journal may take "
            f"{policy.max_bytes / _GIB:.2f} GiB",
            "make room, or lower journal.max_size",
        )
    return ok(name, f"{path} can be written")


def _open_to_all(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IWOTH)


def check_socket(path: Path) -> Finding:
    """Return whether a governor answers on the admin socket, or could listen there."""
    name = "socket"
    folder = path.parent
    if not path.exists():
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if os.access(folder, os.W_OK | os.X_OK):
            return ok(name, f"no governor runs here; {path} is free")
        return fail(
            name,
            f"{path} cannot be made: {folder} does not allow it",
            "run as another user, or set TRITON_GOVERNOR_SOCKET",
        )
    if not path.is_socket():
        return fail(name, f"{path} is there and is not a socket", "move it away")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        with contextlib.closing(probe):
            probe.connect(str(path))
    except ConnectionRefusedError:
        return ok(name, f"{path} is left from a governor that is gone; the next one replaces it")
    except PermissionError:
        return warn(
            name, f"you may not use {path}", "join its group, or ask as the user who runs it"
        )
    except OSError as error:
        return fail(name, f"{path}: {error}", "move it away, or set TRITON_GOVERNOR_SOCKET")
    return ok(name, f"a governor answers on {path}")


def check_receiver(listen: str | None, *, governor_runs: bool) -> list[Finding]:
    """Return whether the port for traces is free for the governor."""
    if listen is None or governor_runs:
        return []
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except (OSError, ValueError, OverflowError) as error:
        return [
            fail(
                "trace receiver",
                f"the governor cannot listen at {listen}: {error}",
                "end what listens there, or choose another triton.traces.listen "
                "(and start Triton with that URL)",
            )
        ]
    return [ok("trace receiver", f"{listen} is free for the governor")]
