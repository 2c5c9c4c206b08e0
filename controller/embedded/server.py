"""One running embedded ``tritonserver``: start, ready, stop, restart.

Owns the command line, the ports and the process. Everything binds to 127.0.0.1: this version
(2.51) is older than the security fixes of 25.07. It must not install anything, and it must not
hide a GPU: which device a model uses is the model's affair.
"""

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from controller.embedded import guard
from controller.embedded.install import Installation

HOST = "127.0.0.1"
# Triton waits this long for requests in flight; its own default holds a stop for 30 s.
EXIT_TIMEOUT_S = 3
_STOP_TIMEOUT_S = EXIT_TIMEOUT_S + 3.0
_POLL_S = 0.02
_PROBE_TIMEOUT_S = 2.0
_LOG_TAIL_LINES = 15
_LOG_TAIL_BYTES = 65536
_USAGE = "Usage: tritonserver"
_HELP_LINE = re.compile(rf"\s|$|{_USAGE}|[A-Z][\w /]*:$")
_START_ATTEMPTS = 3
# What the log says when somebody took a port between our look and the server's bind.
_PORT_TAKEN = ("ddress already in use", "unavailable - Socket")


class ServerError(Exception):
    """The server did not start, or did not become ready; has the tail of its log."""


class PortTakenError(ServerError):
    """Somebody else listens on a port that the server was to use."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The three listening ports, all on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Everything a start needs, so that a restart is the same again."""

    installation: Installation
    repository: Path
    log_file: Path
    otlp_url: str | None = None
    """Where Triton posts traces (OTLP/HTTP JSON); None: no traces."""
    trace_rate: int | None = 100
    """One of so many requests is traced (None: none) until the trace API says otherwise."""
    load_models: tuple[str, ...] = ()
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 60.0
    shm_prefix: str = field(default_factory=lambda: f"triton_governor_{secrets.token_hex(6)}_")


def free_ports() -> Ports:
    """Return three ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        numbers = []
        for _ in range(3):
            probe = stack.enter_context(socket.socket())
            probe.bind((HOST, 0))
            numbers.append(int(probe.getsockname()[1]))
        return Ports(*numbers)


def check_ports(ports: Ports) -> None:
    """Refuse ports that are in use: whoever holds them would answer for our server.

    Raises:
        PortTakenError: names the port and says why it cannot be used.
    """
    numbers = asdict(ports)
    if len(set(numbers.values())) < len(numbers):
        raise PortTakenError(f"the ports must differ from each other: {numbers}")
    for name, port in numbers.items():
        check_port(name, port)


def check_port(name: str, port: int) -> None:
    """Refuse one port that is in use.

    Raises:
        PortTakenError: names the port and says why it cannot be used.
    """
    with socket.socket() as probe:
        # As servers do, so that connections of an earlier one, now closing, are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortTakenError(
                f"the {name} port {HOST}:{port} cannot be used: {error.strerror}; "
                "choose another, or stop what listens there"
            ) from error


def is_ready(ports: Ports) -> bool:
    """Ask the server on these ports whether it serves."""
    connection = http.client.HTTPConnection(HOST, ports.http, timeout=_PROBE_TIMEOUT_S)
    try:
        # An open connection would hold a later stop of the server for a second.
        connection.request("GET", "/v2/health/ready", headers={"Connection": "close"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_server(
    installation: Installation,
    repository: Path,
    *,
    log_file: Path,
    otlp_url: str | None = None,
    trace_rate: int | None = 100,
    load_models: Sequence[str] = (),
    ports: Ports | None = None,
    extra_args: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ready_timeout_s: float = 60.0,
) -> "RunningServer":
    """Start a server and wait until it is ready (about 2 s; blocking: use a thread in asyncio).

    Args:
        installation: what to run.
        repository: the model repository; models are loaded by explicit control only.
        log_file: appended to, standard output and error of the server and its models.
        otlp_url: where to post traces; None: tracing stays off.
        trace_rate: one of so many requests is traced; None: none until the trace API says so.
        load_models: loaded before the server is ready.
        ports: None: free ones, chosen again when somebody else is quicker.
        extra_args: further flags of ``tritonserver``.
        environment: variables that it has besides the installation's.
        ready_timeout_s: deadline, loads included.

    Raises:
        ServerError: it ended, or was not ready in time; has the tail of its log.
    """
    options = ServerOptions(
        installation=installation,
        repository=repository,
        log_file=log_file,
        otlp_url=otlp_url,
        trace_rate=trace_rate,
        load_models=tuple(load_models),
        extra_args=tuple(extra_args),
        environment=environment or {},
        ready_timeout_s=ready_timeout_s,
    )
    for attempt in range(_START_ATTEMPTS):
        server = RunningServer(options, ports or free_ports())
        try:
            server.start()
        except PortTakenError:
            if ports is not None or attempt == _START_ATTEMPTS - 1:
                raise
        else:
            return server
    raise AssertionError


def command_line(options: ServerOptions, ports: Ports) -> list[str]:
    """Return the server's command line."""
    installation = options.installation
    command = [
        str(installation.tritonserver),
        f"--model-repository={options.repository}",
        "--model-control-mode=explicit",
        f"--backend-directory={installation.backends}",
        f"--cache-directory={installation.caches}",
        f"--http-address={HOST}",
        f"--http-port={ports.http}",
        f"--grpc-address={HOST}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={HOST}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--model-load-thread-count=4",
        "--strict-readiness=false",
        "--log-info=false",
        f"--backend-config=python,shm-region-prefix-name={options.shm_prefix}",
        *(f"--load-model={name}" for name in options.load_models),
    ]
    if options.otlp_url is not None:
        settings = (
            "mode=opentelemetry",
            f"level={'OFF' if options.trace_rate is None else 'TIMESTAMPS'}",
            f"rate={options.trace_rate or 100}",
            f"opentelemetry,url={options.otlp_url}",
            # Bounds how late a span comes (ms); the default of 5 s is an age to a governor.
            "opentelemetry,bsp_schedule_delay=200",
        )
        command += [f"--trace-config={setting}" for setting in settings]
    return [*command, *options.extra_args]


class RunningServer:
    """A server process and all that belongs to it; a context manager that stops it."""

    def __init__(self, options: ServerOptions, ports: Ports) -> None:
        self.options = options
        self.ports = ports
        self._guard: subprocess.Popen[str] | None = None
        self._pid: int | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id of ``tritonserver`` itself.

        Raises:
            ServerError: it was never started, or was stopped.
        """
        if self._pid is None:
            raise ServerError("the server is not running")
        return self._pid

    @property
    def grpc(self) -> str:
        """The gRPC address, ``host:port``."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def http(self) -> str:
        """The HTTP address, ``host:port``."""
        return f"{HOST}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """The URL of the Prometheus metrics."""
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            ServerError: it ended, or was not ready in time; nothing is left running.
        """
        if self.is_alive():
            raise ServerError(f"the server is running already, as process {self.pid}")
        check_ports(self.ports)
        try:
            self._launch()
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        while not self.is_ready():
            if not self.is_alive():
                tail = self.log_tail()
                taken = any(words in tail for words in _PORT_TAKEN)
                kind = PortTakenError if taken else ServerError
                raise kind(f"tritonserver ended before it was ready:\n{tail}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {self.options.ready_timeout_s:g} s:\n"
                    f"{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _launch(self) -> None:
        specification = {
            "command": command_line(self.options, self.ports),
            "environment": {**self.options.installation.environment(), **self.options.environment},
            "log_file": str(self.options.log_file),
            "shm_prefix": self.options.shm_prefix,
            "stop_timeout_s": _STOP_TIMEOUT_S,
        }
        log = self.options.log_file
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log.stat().st_size if log.exists() else 0
        # A session of its own: Ctrl-C in a terminal reaches the owner, who stops us in order.
        self._guard = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._guard.stdin is not None  # noqa: S101 - asked for above
        assert self._guard.stdout is not None  # noqa: S101 - asked for above
        # Not on the command line, which every user of the machine can read. The pipe stays
        # open: its end is how the guard learns of ours.
        self._guard.stdin.write(json.dumps(specification) + "\n")
        self._guard.stdin.flush()
        line = self._guard.stdout.readline()
        if not line.strip().isdigit():
            raise ServerError(f"tritonserver could not be run:\n{self.log_tail()}")
        self._pid = int(line)

    def is_alive(self) -> bool:
        """Tell whether the server's process runs."""
        return self._guard is not None and self._guard.poll() is None

    def is_ready(self) -> bool:
        """Ask the server whether it serves."""
        return is_ready(self.ports)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server has ended by itself.

        Returns:
            Its exit status (128 + signal), or None if it still runs after the time.
        """
        if self._guard is None:
            return None
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End the server, its Python stubs and its shared memory; nothing if it is stopped."""
        guardian = self._guard
        if guardian is None:
            return
        if guardian.poll() is None:
            guardian.terminate()
            try:
                guardian.wait(_STOP_TIMEOUT_S + 3.0)
            except subprocess.TimeoutExpired:
                self._kill()
        for pipe in (guardian.stdin, guardian.stdout):
            if pipe is not None:
                pipe.close()
        self._guard = None
        self._pid = None

    def _kill(self) -> None:
        """Do the guard's work where the guard itself hangs."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
        for region in Path("/dev/shm").glob(f"{self.options.shm_prefix}*"):  # noqa: S108 - by its name
            region.unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop, and start again on the same ports with the same options.

        Raises:
            ServerError: it did not come back.
        """
        self.stop()
        self.start()

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """Return the last lines that this start of the server logged."""
        try:
            with self.options.log_file.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _LOG_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        wanted = text.splitlines()
        if _USAGE in text:
            # A wrong flag makes Triton print 400 lines of help around the one that tells.
            wanted = [line for line in wanted if not _HELP_LINE.match(line)]
        return "\n".join(wanted[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
