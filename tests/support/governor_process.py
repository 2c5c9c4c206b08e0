"""`governor run` as a process of its own, as an operator would start it."""

import asyncio
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5.0)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5.0)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class Journaled:
    """How much a journal holds."""

    actions: int
    decisions: int
    batches: float  # that service times were learned from
    unsaved_s: float  # since that was written

    def lost_since(self, before: "Journaled") -> bool:
        return (
            self.actions < before.actions
            or self.decisions < before.decisions
            or self.batches < before.batches
        )


class GovernorProcess:
    """One daemon with a policy, a socket and a journal of its own."""

    def __init__(self, folder: Path, policy: dict[str, Any], *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.policy_file = folder / "policy.yaml"
        self.socket = folder / "governor.sock"
        self.journal = folder / "journal.sqlite3"
        self.log = folder / "governor.log"
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.write_policy(policy)

    def write_policy(self, policy: dict[str, Any]) -> None:
        policy = {"journal": {"path": str(self.journal)}, **policy}
        self.policy_file.write_text(yaml.safe_dump(policy, sort_keys=False))

    def start(self) -> None:
        environment = os.environ | {
            "TRITON_GOVERNOR_SOCKET": str(self.socket),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "controller.cli.main",
                    "run",
                    "--policy",
                    str(self.policy_file),
                    "--socket",
                    str(self.socket),
                    *self._arguments,
                ],
                stderr=log,
                stdout=log,
                env=environment,
            )

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 20.0) -> int:
        """Ask it to stop and return its exit code; a daemon that does not is killed and failed."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not stop:\n{self.log.read_text()}") from None

    def journaled(self) -> Journaled:
        """Look into the journal, which must be whole."""
        with sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True) as journal:
            assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            actions = journal.execute("SELECT count(*) FROM actions").fetchone()[0]
            decisions = journal.execute("SELECT count(*) FROM decisions").fetchone()[0]
            query = "SELECT value, updated_unix_s FROM learned WHERE key = 'core'"
            value, updated_unix_s = journal.execute(query).fetchone()
        models = json.loads(value)["service"]["models"].values()
        batches = sum(sum(model["total"]) for model in models)
        return Journaled(actions, decisions, batches, time.time() - updated_unix_s)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = _UnixConnection(self.socket)
        try:
            payload = None if body is None else json.dumps(body)
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, payload, headers)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def status(self) -> dict[str, Any] | None:
        """The status document; None while it does not answer."""
        try:
            return self.ask("GET", "/v1/status")
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def model(self) -> dict[str, Any]:
        """The first model of the status; empty while the daemon does not answer."""
        status = self.status()
        models = [] if status is None else status["models"]
        return models[0] if models else {}

    async def until(self, true, *, timeout_s: float = 30.0, what: str = "") -> float:
        """Wait until something holds of the first model's status; return how long that took."""
        began_s = time.monotonic()
        while True:
            model = await asyncio.to_thread(self.model)
            if model and true(model):
                return time.monotonic() - began_s
            waited_s = time.monotonic() - began_s
            if waited_s > timeout_s:
                log = self.log.read_text()[-3000:]
                raise AssertionError(f"not within {timeout_s} s: {what}\n{model}\n{log}")
            await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def echo_policy(grpc: str, metrics_url: str, otlp_port: int, **changes: Any) -> dict[str, Any]:
    """The policy of the echo models of the test repository."""
    return {
        "version": 1,
        "triton": {
            "grpc": grpc,
            "metrics": metrics_url,
            "traces": {"listen": f"127.0.0.1:{otlp_port}"},
        },
        "probing": {"max_busy": "50%"},  # nobody should wait for what a test is not about
        "models": {
            "chat": {
                "objective": {"latency": "60ms", "percentile": 99},
                "client_max_batch": 8,
                "variants": {
                    "slow": {"model": "echo_slow", "quality": 0.93},
                    "mid": {"model": "echo_mid", "quality": 0.90},
                    "fast": {"model": "echo_fast", "quality": 0.85},
                },
            }
        },
        **changes,
    }
