"""A Triton that its own supervisor brings back, as `governor triton start` runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from governor_process import free_port
from repository import fill_repository

from controller.embedded.install import install


class SupervisedTriton:
    """`governor triton start` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        install(lambda *_: None)
        self.otlp_port = free_port()
        ports = {name: free_port() for name in ("grpc", "http", "metrics")}
        self.grpc = f"127.0.0.1:{ports['grpc']}"
        self.metrics_url = f"http://127.0.0.1:{ports['metrics']}/metrics"
        self._environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
        repository = fill_repository(folder / "repository")
        flags = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
        self._command = [sys.executable, "-m", "controller.cli.main", "triton"]
        self._process = subprocess.Popen(
            [
                *self._command,
                "start",
                *("--repository", str(repository)),
                *("--otlp-url", f"http://127.0.0.1:{self.otlp_port}/v1/traces"),
                *flags,
            ],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def status(self) -> dict[str, Any]:
        answer = subprocess.run(
            [*self._command, "status", "--json"],
            env=self._environment,
            capture_output=True,
            check=False,
        )
        return json.loads(answer.stdout or b"{}")

    def kill(self) -> None:
        """Kill tritonserver itself; its supervisor stays."""
        os.kill(int(self.status()["server_pid"]), signal.SIGKILL)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30.0)

    def __enter__(self) -> Self:
        """Wait until it serves."""
        deadline_s = time.monotonic() + 60.0
        while not self.status().get("ready"):
            if time.monotonic() > deadline_s:
                self.stop()
                raise AssertionError(f"it does not serve: {self.status()}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
