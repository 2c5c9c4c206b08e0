"""What Triton's processes hold of the host's memory.

Owns finding the server that the policy names among the processes of this host, and the sum of what
it and its children (the stubs of Python models) hold. It must not know which model holds what.

What counts is memory that cannot be dropped: the anonymous pages of all of them, and the server's
shared memory, which it and its stubs map both. Pages of files are the kernel's to drop. They are
read from `/proc/PID/status`, where the kernel keeps count of them anyway: that takes 0.02 ms for a
process however large it is, and needs no right beyond seeing it. The proportional or unique set
size of `smaps` needs the rights of a debugger and a walk through all pages (21 ms for each GiB),
with a lock held for which the server's own threads may wait.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Final

import psutil

from controller.telemetry.small_file import read_small

_SERVER: Final = "tritonserver"
_USUAL_PORT: Final = "8001"
_PORT: Final = "--grpc-port"
_LONGEST_BYTES: Final = 64 * 1024
_ANON: Final = re.compile(rb"^RssAnon:\s+(\d+) kB$", re.MULTILINE)
_SHARED: Final = re.compile(rb"^RssShmem:\s+(\d+) kB$", re.MULTILINE)
_KIB: Final = 1024


class TritonHost:
    """Reads what one server's processes hold; blocking, so in a thread.

    Args:
        grpc: returns the server's address, host:port.
    """

    def __init__(self, grpc: Callable[[], str]) -> None:
        self._grpc = grpc
        self._known: tuple[str, psutil.Process] | None = None
        self.why: str | None = None  # it was not known, the last time

    def __call__(self) -> int | None:
        """Return the bytes; None: that cannot be told, and `why` says why."""
        try:
            server = self._server(self._grpc())
            found = _held_bytes(server.pid, shared=True)
            if not found:
                raise ProcessLookupError("it has ended")  # and nobody has asked how, as yet
            for child in server.children(recursive=True):
                try:
                    found += _held_bytes(child.pid, shared=False)
                except FileNotFoundError:
                    continue  # it ended meanwhile
        except LookupError as error:
            self.why = str(error)
        except (psutil.Error, OSError, ValueError) as error:
            self._known = None
            self.why = f"its processes cannot be read: {error}"
        else:
            self.why = None
            return found
        return None

    @property
    def pid(self) -> int | None:
        """Return the server that was read last."""
        return None if self._known is None else self._known[1].pid

    def _server(self, grpc: str) -> psutil.Process:
        """Return the server's process. Raises LookupError, with a reason for people."""
        known = self._known
        if known is not None and known[0] == grpc and known[1].is_running():
            return known[1]
        self._known = None
        host, _, port = grpc.rpartition(":")
        if not _is_here(host.strip("[]")):
            raise LookupError(f"{grpc} is not on this host")
        found = list(_servers(port))
        if len(found) != 1:
            raise LookupError(
                f"no {_SERVER} with the gRPC port {port} is to be seen here"
                if not found
                else f"{len(found)} servers here have the gRPC port {port}"
            )
        self._known = (grpc, found[0])
        return found[0]


def _servers(port: str) -> Iterator[psutil.Process]:
    """Yield the servers whose command line names a port, or that have it by default."""
    for process in psutil.process_iter():
        try:
            if _SERVER not in process.name():
                continue
            parent = process.parent()
            if parent is not None and _SERVER in parent.name():
                continue
            if _port(process.cmdline()) == port:
                yield process
        except psutil.Error:
            continue  # gone, or not ours to see


def _port(arguments: list[str]) -> str:
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == _PORT:
            return value if equals else "".join(arguments[at + 1 : at + 2])
    return _USUAL_PORT


def _is_here(host: str) -> bool:
    """Return whether an address is this host's, without asking anybody."""
    if host in ("localhost", "::1", socket.gethostname()) or host.startswith("127."):
        return True
    addresses = (one.address for listed in psutil.net_if_addrs().values() for one in listed)
    return host in {address.partition("%")[0] for address in addresses}


def _held_bytes(pid: int, *, shared: bool) -> int:
    """Return what a process holds. Raises FileNotFoundError: there is no such process, OSError."""
    try:
        status = read_small(f"/proc/{pid}/status", _LONGEST_BYTES)
    except ProcessLookupError as error:
        raise FileNotFoundError(str(error)) from error
    fields = (_ANON, _SHARED) if shared else (_ANON,)
    found = (field.search(status) for field in fields)
    return sum(int(one[1]) for one in found if one is not None) * _KIB  # one that ends has none
