"""What the journal's minutes say of a real Triton is what its clients saw."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from governor_process import GovernorProcess, echo_policy, free_port
from repository import fill_repository
from traffic import Traffic


def reported(journal: Path, target: Path) -> dict[str, Any]:
    """What the command says of a journal; it writes its page, too."""
    words = ["report", "--journal", str(journal), "--json", "-o", str(target)]
    command = [sys.executable, "-m", "controller.cli.main", *words]
    told = subprocess.run(command, check=True, capture_output=True, timeout=60)
    document: dict[str, Any] = json.loads(told.stdout)
    return document


async def test_the_report_counts_what_clients_got(start_triton, tmp_path: Path):
    port = free_port()
    root = fill_repository(tmp_path / "repository")
    server = start_triton(root, otlp_url=f"http://127.0.0.1:{port}/v1/traces")
    policy = echo_policy(server.grpc, server.metrics_url, port)
    governor = GovernorProcess(tmp_path / "governor", policy)
    governor.start()
    try:
        await governor.until(lambda m: m["serving"] is not None, timeout_s=60.0)
        async with Traffic(server.grpc, "chat", rate=30.0) as traffic:
            await asyncio.sleep(4.0)
        await asyncio.sleep(1.0)  # the last traces are on their way
    finally:
        governor.stop()
    traffic.check(at_least=100)
    document = await asyncio.to_thread(reported, governor.journal, tmp_path / "r.html")
    (model,) = document["models"]
    # Triton counts the governor's own requests as any other, ten or more by now. One of those may
    # end just when a look at the counters begins or is lost: a request in a hundred is no fault.
    counted = model["requests"]["completed"] - len(traffic.answers)
    assert abs(counted) <= 2, model
    assert model["requests"]["failed"] == 0
    # At first one request in so many is traced; how many that is depends on the load.
    assert model["traced"]["in_time"] + model["traced"]["late"] >= 5
    assert model["known_share"] > 0.3
    # A request takes less in the server than at its client; which ones are traced is chance.
    seen_s = [answer.latency_s for answer in traffic.answers]
    assert 0.0 < model["latency_ms"]["mean"] <= 1e3 * max(seen_s)
    # Before that it waited for Triton, however long that took.
    assert sum(variant["seconds"] for variant in model["variants"]) > 4.0
    assert document["machine"]["triton_gone_s"] <= document["machine"]["watched_s"]
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
