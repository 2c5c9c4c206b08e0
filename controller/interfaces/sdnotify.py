"""What the service manager is told: ready, reloading, stopping, alive.

Owns systemd's notification protocol (datagrams to the socket in NOTIFY_SOCKET; see sd_notify(3)).
It must not decide when the daemon is ready or alive, and it never fails: without a service
manager every call does nothing, and a socket that went away costs one log line.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping

_LOG = logging.getLogger(__name__)
_MAX_STATUS_CHARS = 500  # `systemctl status` shows one line


class ServiceManager:
    """The service manager that started this process, if any.

    Args:
        environment: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment)
        self._socket: socket.socket | None = None
        self._failed = False

    @property
    def watchdog_interval_s(self) -> float | None:
        """Return how often `watchdog` should be called, in seconds; None: nobody waits for it.

        Half of the time after which systemd acts, as sd_watchdog_enabled(3) recommends.
        """
        return None if self._watchdog_s is None else self._watchdog_s / 2

    def ready(self) -> None:
        """Say that start-up, or a reload, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload began; `ready` ends it, whether or not the new policy was taken.

        The time stamp lets systemd tell this reload's READY from an earlier one.
        """
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_usec}")

    def stopping(self) -> None:
        """Say that an orderly stop began."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        line = " ".join(text.split())[:_MAX_STATUS_CHARS]  # a newline would start a new variable
        self._send(f"STATUS={line}")

    def watchdog(self) -> None:
        """Say that the daemon is alive; to be called after a finished tick only."""
        if self._watchdog_s is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket; later calls open it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
                )
                # A service manager with a full queue must not hold the tick.
                self._socket.setblocking(False)
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failed:
                _LOG.warning(
                    "the service manager did not take %r on NOTIFY_SOCKET: %s; "
                    "if it waits for messages, it will restart this daemon",
                    message.partition("\n")[0],
                    error,
                )
            self._failed = True
        else:
            self._failed = False


def _address(path: str) -> bytes | None:
    if path.startswith("@"):  # the abstract namespace
        return b"\0" + os.fsencode(path[1:])
    if path.startswith("/"):
        return os.fsencode(path)
    if path:
        _LOG.warning("NOTIFY_SOCKET is %r, which is no Unix socket; not reporting to it", path)
    return None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    try:
        usec = int(environment.get("WATCHDOG_USEC", ""))
        pid = int(environment.get("WATCHDOG_PID", "") or os.getpid())
    except ValueError:
        return None
    # Set for another process, our parent's say: not ours to ping.
    if usec <= 0 or pid != os.getpid():
        return None
    return usec / 1e6
