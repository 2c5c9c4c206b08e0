"""kill -9 of the governor, of Triton and of both, at random moments under load.

`TRITON_GOVERNOR_KILLS` is the count of each. Triton is kept by its own supervisor
(`governor triton start`); the governor is started again as systemd would. What is done is kept in
pytest's cache folder, so that an interrupted soak goes on; `--cache-clear` begins anew.
"""

import asyncio
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from governor_process import GovernorProcess, echo_policy, free_port
from repository import fill_repository
from traffic import Traffic, answered

from controller.embedded.install import install

COUNT = int(os.environ.get("TRITON_GOVERNOR_KILLS", "20"))
RATE = 60.0
BACK_S = 30.0
KINDS = ("governor", "triton", "both")


class SupervisedTriton:
    """`governor triton start` as a process of its own."""

    def __init__(self, folder: Path) -> None:
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


@pytest.fixture
def triton_under_care(tmp_path) -> Iterator[SupervisedTriton]:
    install(lambda *_: None)
    server = SupervisedTriton(tmp_path)
    deadline_s = time.monotonic() + 60.0
    while not server.status().get("ready"):
        assert time.monotonic() < deadline_s, server.status()
        time.sleep(0.2)
    yield server
    server.stop()


def _journaled(governor: GovernorProcess) -> tuple[int, int, float]:
    """Return how many actions and decisions are in the journal, and how much was learned."""
    with sqlite3.connect(f"file:{governor.journal}?mode=ro", uri=True) as journal:
        assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        actions = journal.execute("SELECT count(*) FROM actions").fetchone()[0]
        decisions = journal.execute("SELECT count(*) FROM decisions").fetchone()[0]
        row = journal.execute("SELECT value FROM learned WHERE key = 'core'").fetchone()
    learned = json.loads(row[0]) if row else {"service": {"models": {}}}
    batches = sum(sum(m["total"]) for m in learned["service"]["models"].values())
    return actions, decisions, batches


async def _one(
    kind: str, governor: GovernorProcess, server: SupervisedTriton, moment_s: float
) -> dict[str, Any]:
    async with Traffic(server.grpc, "chat", rate=RATE) as traffic:
        await asyncio.sleep(moment_s)
        before = await asyncio.to_thread(_journaled, governor)
        if kind in {"governor", "both"}:
            governor.kill()
        if kind in {"triton", "both"}:
            server.kill()
        killed_s = time.monotonic()
        if kind in {"governor", "both"}:
            await asyncio.sleep(1.0)
            governor.start()
        await governor.until(lambda m: m["serving"] is not None, timeout_s=BACK_S)
        known = all(c["known"] for c in governor.model()["candidates"])
        await answered(server.grpc, "chat", within_s=BACK_S)
        await asyncio.sleep(2.0)
    failures = traffic.failures
    last_s = max((answer.intended_s for answer in failures), default=killed_s)
    after = await asyncio.to_thread(_journaled, governor)
    assert all(new >= old for new, old in zip(after, before, strict=True)), (before, after)
    return {
        "kind": kind,
        "answers": len(traffic.answers),
        "failed": len(failures),
        "outage_s": last_s - killed_s,
        "known": known,
    }


@pytest.mark.soak
@pytest.mark.triton
async def test_whatever_is_killed_service_is_back_by_itself(triton_under_care, tmp_path, request):
    server = triton_under_care
    progress = request.config.cache.mkdir("soak") / "kills.jsonl"
    lines = progress.read_text().splitlines() if progress.exists() else []
    done = [json.loads(line) for line in lines]
    policy = echo_policy(server.grpc, server.metrics_url, server.otlp_port)
    governor = GovernorProcess(tmp_path / "governor", policy)
    governor.start()
    try:
        await governor.until(
            lambda m: bool(m["candidates"]) and all(c["known"] for c in m["candidates"]),
            timeout_s=60.0,
        )
        await asyncio.sleep(6.0)  # what was learned is written every few seconds
        dice = random.Random(len(done))
        while len(done) < COUNT * len(KINDS):
            kind = KINDS[len(done) % len(KINDS)]
            result = await _one(kind, governor, server, dice.uniform(0.5, 3.0))
            done.append(result)
            with progress.open("a") as file:
                file.write(json.dumps(result) + "\n")
    finally:
        governor.stop()
    print()
    for kind in KINDS:
        runs = [run for run in done if run["kind"] == kind]
        outages = [run["outage_s"] for run in runs]
        print(
            f"{kind:9s} {len(runs)} kills, {sum(r['answers'] for r in runs)} requests,"
            f" {sum(r['failed'] for r in runs)} failed; from the kill to the last failure"
            f" {statistics.median(outages):.2f} s median, {max(outages):.2f} s worst"
        )
    assert all(run["failed"] == 0 for run in done if run["kind"] == "governor")
    assert all(run["known"] for run in done), "what was learned came back"
    assert max(run["outage_s"] for run in done) < BACK_S
