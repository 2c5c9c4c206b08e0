"""One governor per server: a lease that the kernel keeps and a death gives back.

Owns the claim. It must not touch Triton. The claim is a socket in Linux's abstract namespace,
named after the server's address: binding it is atomic, it needs no folder and no permission, it
is gone in the moment its process is, `kill -9` included, and whoever finds it taken can ask the
kernel who holds it. It covers one network namespace, which is where the governor of a server
stands; a governor elsewhere shows itself by its signature on the aliases.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct


def canonical(address: str) -> str:
    """Return one spelling for the addresses that are surely the same server's."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]").lower()
    if host == "localhost":
        return f"loopback:{port}"
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return f"loopback:{port}"
    return f"{host}:{port}"


class Lease:
    """The claim on the server at one gRPC address."""

    def __init__(self, address: str) -> None:
        self._name = f"\0triton-governor/lease/{canonical(address)}"
        self._socket: socket.socket | None = None

    @property
    def held(self) -> bool:
        """Whether the claim is ours."""
        return self._socket is not None

    def acquire(self) -> str | None:
        """Take the lease; return None when it is ours, or who holds it instead."""
        if self._socket is not None:
            return None
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(self._name)
            claim.listen(1)
        except OSError:
            claim.close()
            return self._holder()
        self._socket = claim
        return None

    def release(self) -> None:
        """Give the lease back; nothing if it is not ours."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _holder(self) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(0.1)
            try:
                caller.connect(self._name)
                size = struct.calcsize("3i")
                credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            except OSError:
                return "another governor"  # a full queue, or gone in this moment
            pid, uid, _ = struct.unpack("3i", credentials)
            return f"another governor, process {pid} of user {uid},"
