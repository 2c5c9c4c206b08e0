"""Keeps one embedded Triton running in the foreground, and finds it again.

Owns the state file and the lock in the runtime folder: who holds the lock is the running
supervisor, whatever pids have been recycled. It must not know models or the governor; Triton's
life is not the daemon's.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from controller.embedded import paths
from controller.embedded.server import (
    Ports,
    PortTakenError,
    RunningServer,
    ServerError,
    ServerOptions,
    check_port,
    check_ports,
    free_ports,
)

DEFAULT_PORTS = Ports(http=8000, grpc=8001, metrics=8002)
WARNING = (
    "warning: this Triton is older than the security fixes of 25.07, so it listens on loopback "
    "only; do not forward its ports"
)
_STATE = "triton.json"
_LOCK = "triton.lock"
_LOG = "triton.log"
_LOG_BYTES = 8 * 1024 * 1024
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 10.0
# A server that ran this long was healthy: its end starts a new row of attempts.
_HEALTHY_S = 30.0
_STOP_TIMEOUT_S = 15.0
_STOP_POLL_S = 0.05
_LOCK_ATTEMPTS = 4


class AlreadyRunningError(Exception):
    """Another supervisor of this user runs; the message says where."""


@dataclass(frozen=True, slots=True)
class State:
    """What a supervisor writes down about its server."""

    supervisor_pid: int
    server_pid: int | None
    """None while the server is being (re)started."""
    ports: Ports
    repository: str
    otlp_url: str | None
    log_file: str
    triton_version: str
    restarts: int

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        return asdict(self)


class _StopRequestedError(BaseException):
    """A signal asks the supervisor to end; raised out of whatever it waits for."""


def log_file() -> Path:
    """Return where the supervised server logs to."""
    return paths.runtime_folder() / _LOG


def choose_ports(http: int | None, grpc: int | None, metrics: int | None) -> Ports:
    """Return the ports asked for; for each other one its usual number, or a free one.

    Raises:
        PortTakenError: a port that was asked for is in use.
    """
    spare = free_ports()
    wanted = Ports(
        http=http or _usual_or("http", DEFAULT_PORTS.http, spare.http),
        grpc=grpc or _usual_or("grpc", DEFAULT_PORTS.grpc, spare.grpc),
        metrics=metrics or _usual_or("metrics", DEFAULT_PORTS.metrics, spare.metrics),
    )
    check_ports(wanted)
    return wanted


def _usual_or(name: str, usual: int, spare: int) -> int:
    try:
        check_port(name, usual)
    except PortTakenError:
        return spare
    return usual


def supervise(
    options: ServerOptions, ports: Ports, *, say: Callable[[str], None], max_restarts: int | None
) -> int:
    """Run the server until SIGTERM or SIGINT; start it again, with back-off, when it dies.

    The first signal stops in order, a second one at once; nothing stays behind either way.

    Args:
        options: what to run.
        ports: where it listens, restarts included.
        say: takes one line for the operator.
        max_restarts: give up after so many restarts in a row; None: never.

    Returns:
        Exit status: 0 after a stop, 1 when the server could not be kept running.

    Raises:
        AlreadyRunningError: another supervisor of this user runs.
        ServerError: the very first start failed.
    """
    with _lock(), _signals():
        server = RunningServer(options, ports)
        state = _Reporter(options, ports)
        try:
            state.write(None)
            _rotate(options.log_file)
            _announce(server, say)
            server.start()
            say(f"Triton {options.installation.triton_version} is ready, process {server.pid}")
            return _keep_running(server, state, say, max_restarts)
        except _StopRequestedError:
            say("stopping Triton")
            return 0
        finally:
            server.stop()
            (paths.runtime_folder() / _STATE).unlink(missing_ok=True)


def _announce(server: RunningServer, say: Callable[[str], None]) -> None:
    say(f"gRPC        {server.grpc}")
    say(f"HTTP        {server.http}")
    say(f"metrics     {server.metrics_url}")
    say(f"traces to   {server.options.otlp_url or 'nowhere'}")
    say(f"repository  {server.options.repository}")
    say(f"log         {server.options.log_file}")
    say(WARNING)


def _rotate(log: Path) -> None:
    """Put a grown log aside; Triton only ever appends."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _keep_running(
    server: RunningServer, state: "_Reporter", say: Callable[[str], None], max_restarts: int | None
) -> int:
    in_a_row = 0
    while True:
        if server.is_alive():
            state.write(server.pid)
            started = time.monotonic()
            status = server.wait()
            server.stop()  # releases what belonged to the ended process
            say(f"Triton ended by itself with status {status}; its log: {server.options.log_file}")
            if time.monotonic() - started >= _HEALTHY_S:
                in_a_row = 0
        if max_restarts is not None and in_a_row >= max_restarts:
            say(f"giving up after {in_a_row} restarts in a row")
            return 1
        state.write(None)
        time.sleep(backoff_s(in_a_row))
        in_a_row += 1
        state.restarts += 1
        try:
            server.start()
        except ServerError as error:
            say(f"Triton could not be started again: {error}")
        else:
            say(f"Triton is ready again, process {server.pid}")


def backoff_s(in_a_row: int) -> float:
    """Return the pause before the next start after so many starts in a row, in seconds."""
    # The exponent is bounded, as a float overflows after some hours of failures.
    return min(_BACKOFF_FIRST_S * 2.0 ** min(in_a_row, 16), _BACKOFF_LAST_S)


class _Reporter:
    """Writes the state file, each time whole."""

    def __init__(self, options: ServerOptions, ports: Ports) -> None:
        self._options = options
        self._ports = ports
        self.restarts = 0

    def write(self, server_pid: int | None) -> None:
        state = State(
            supervisor_pid=os.getpid(),
            server_pid=server_pid,
            ports=self._ports,
            repository=str(self._options.repository),
            otlp_url=self._options.otlp_url,
            log_file=str(self._options.log_file),
            triton_version=self._options.installation.triton_version,
            restarts=self.restarts,
        )
        target = paths.runtime_folder() / _STATE
        temporary = target.with_suffix(".new")
        temporary.write_text(json.dumps(state.to_json()), encoding="utf-8")
        temporary.replace(target)


def running() -> State | None:
    """Return what the running supervisor wrote down, or None where none runs."""
    folder = paths.runtime_folder()
    try:
        with (folder / _LOCK).open(encoding="utf-8") as handle:
            if _try_lock(handle, fcntl.LOCK_SH):
                return None  # nobody holds it
        raw = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return State(**{**raw, "ports": Ports(**raw["ports"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stop_running() -> bool:
    """End the running supervisor and its server.

    Returns:
        False where none runs.

    Raises:
        ServerError: it does not end.
    """
    state = running()
    if state is None:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):  # killed, its guard still cleans up
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.supervisor_pid, number)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if running() is None:
                return True
            time.sleep(_STOP_POLL_S)
    raise ServerError(f"the supervisor, process {state.supervisor_pid}, does not end")


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    with (paths.runtime_folder() / _LOCK).open("a", encoding="utf-8") as handle:
        # Whoever only asks for the status holds the lock too, for some microseconds.
        for attempt in range(_LOCK_ATTEMPTS):
            if _try_lock(handle, fcntl.LOCK_EX):
                break
            if attempt == _LOCK_ATTEMPTS - 1:
                state = running()
                where = f" (gRPC port {state.ports.grpc})" if state else ""
                raise AlreadyRunningError(
                    f"an embedded Triton runs already{where}; 'governor triton stop' ends it"
                )
            time.sleep(_STOP_POLL_S)
        yield


def _try_lock(handle: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn the first SIGTERM, SIGINT or SIGHUP into an exception, the second into an exit."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)  # the guard sees our end and leaves nothing behind
        asked = True
        raise _StopRequestedError

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
