"""`governor run` as the demo's child: its policy, its start and end, what it tells.

Owns the daemon's process and a policy written for it. It must not import the daemon: the demo
meets it as an operator does, through a file and a socket.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from controller.demo import processes

_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.1
_SOCKET_TIMEOUT_S = 2.0
_LOG_LINES = 12
_HISTORY = 1000


class GovernorError(Exception):
    """The daemon did not start or ended early; has the tail of its log."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant as a policy names it."""

    name: str
    model: str
    quality: float
    max_batch: int | None = None  # None: not declared
    profile_of: str | None = None  # the variant whose weights it serves; its name is VARIANT.NAME

    @property
    def weights(self) -> str:
        """Return the variant whose weights it serves."""
        return self.profile_of or self.name


def policy_text(
    *,
    grpc: str,
    metrics_url: str,
    traces: str,
    model: str,
    objective_ms: float,
    percentile: float,
    client_max_batch: int,
    choices: Sequence[Choice],
    interval: str = "auto",
    probing: str | None = None,
    dispatcher: tuple[str, Path] | None = None,
) -> str:
    """Return the policy of the demo's daemon.

    `probing`: the share of a second; None: default. `dispatcher`: its model and its key's file;
    None: there is none.
    """
    variants = "\n".join(
        _variant(choice, choices) for choice in choices if choice.profile_of is None
    )
    # The dwell: one or two objectives. A burst lasts about a second here, and is served best by
    # two variants in turn.
    return f"""\
version: 1
triton:
  grpc: {grpc}
  metrics: {metrics_url}
  traces: {{listen: {traces}}}
interval: {interval}
models:
  {model}:
    objective: {{latency: {objective_ms:g}ms, percentile: {percentile:g}}}
    alias: virtual
    client_max_batch: {client_max_batch}
{_dispatcher(dispatcher)}\
    variants:
{variants}
stability: {{min_dwell: 100ms}}
{"" if probing is None else f"probing: {{max_busy: {probing}}}"}
mode: act
"""


def _dispatcher(dispatcher: tuple[str, Path] | None) -> str:
    """Return a dispatcher's line; nothing where there is none."""
    if dispatcher is None:
        return ""
    model, key_file = dispatcher
    return f"    dispatcher: {{model: {model}, key_file: {key_file}}}\n"


def _variant(choice: Choice, choices: Sequence[Choice]) -> str:
    """Return a variant's line, its profiles in it."""
    told = f"model: {choice.model}, quality: {choice.quality:.4f}"
    if choice.max_batch is not None:
        told += f", max_batch: {choice.max_batch}"
    profiles = [
        f"{one.name.removeprefix(f'{choice.name}.')}: "
        f"{{model: {one.model}, max_batch: {one.max_batch}}}"
        for one in choices
        if one.profile_of == choice.name
    ]
    if profiles:
        told += f", profiles: {{{', '.join(profiles)}}}"
    return f"      {choice.name}: {{{told}}}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SOCKET_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Governor:
    """A running daemon; a context manager that stops it."""

    def __init__(self, policy: str, folder: Path, *, ablation: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        policy_file = folder / "policy.yaml"
        policy_file.write_text(policy, encoding="utf-8")
        self._log = folder / "governor.log"
        self._socket = folder / "admin.sock"
        command = processes.python_module(
            "controller.cli.main",
            "run",
            "--policy",
            str(policy_file),
            "--socket",
            str(self._socket),
        )
        if ablation is not None:
            command += ["--ablate", ablation]
        # A state of its own: it starts without having learned anything.
        environment = {
            **os.environ,
            "STATE_DIRECTORY": str(folder),
            "RUNTIME_DIRECTORY": str(folder),
            "TRITON_GOVERNOR_SOCKET": str(self._socket),
        }
        with self._log.open("wb") as log:
            self._process = processes.start(
                command,
                death_signal=signal.SIGTERM,
                output=log,
                errors=subprocess.STDOUT,
                environment=environment,
            )
        self.meter = processes.Meter(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the daemon, in order if it can."""
        processes.end(self._process, patience_s=_STOP_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._process.pid

    def wait_until_serving(self, *, late: bool = False) -> None:
        """Wait until the alias exists and every variant has been measured at least once.

        `late`: and until the dispatcher serves.

        Raises:
            GovernorError: it ended, or does not serve in time. That a variant stays unknown is no
                error: the load may leave no idle moment to probe it.
        """
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while True:
            self.check()
            model = self.model()
            if model is not None and model.get("serving"):
                candidates = model.get("candidates") or [{}]
                ready = not late or model["serving"] == "dispatcher"
                if ready and all(candidate.get("known") for candidate in candidates):
                    return
            if time.monotonic() > deadline_s:
                if model is not None and model.get("serving"):
                    return
                raise GovernorError(f"the governor does not serve:\n{self._tail()}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise GovernorError if the daemon has ended."""
        status = self._process.poll()
        if status is not None:
            raise GovernorError(f"the governor ended with status {status}:\n{self._tail()}")

    def status(self) -> dict[str, Any] | None:
        """Return what `governor status --json` shows; None: it does not answer now."""
        status: dict[str, Any] | None = self._get("/v1/status")
        return status

    def model(self) -> dict[str, Any] | None:
        """Return the status of the one model it governs; None: not known now."""
        status = self.status()
        models = status.get("models") if status is not None else None
        return models[0] if models else None

    def last_switch(self) -> dict[str, Any] | None:
        """Return what `governor explain --json` tells of the last switch; None: there was none."""
        answer = self._get("/v1/explain")
        models = answer.get("models") if isinstance(answer, dict) else None
        return models[0].get("last_switch") if models else None

    def history(self) -> list[dict[str, Any]]:
        """Return the actions it remembers, newest first."""
        answer = self._get(f"/v1/history?limit={_HISTORY}")
        actions = answer.get("actions", []) if isinstance(answer, dict) else answer
        return list(actions or [])

    def _get(self, path: str) -> Any:
        connection = _UnixConnection(self._socket)
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
                if response.status == http.HTTPStatus.OK:
                    return json.loads(body)
            finally:
                connection.close()
        return None

    def _tail(self) -> str:
        with contextlib.suppress(OSError), self._log.open(errors="replace") as log:
            return "".join(deque(log, _LOG_LINES)).rstrip()
        return "(no log)"
