"""kill -9 of the governor, of Triton and of both, at random moments under load.

`TRITON_GOVERNOR_KILLS` is the count of each. Triton is kept by its own supervisor
(`governor triton start`); the governor is started again as systemd would. What is done is kept in
pytest's cache folder, so that an interrupted soak of the same code goes on; `--cache-clear`
begins anew.
"""

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
from governor_process import GovernorProcess, echo_policy
from provenance import code_digest
from supervised import SupervisedTriton
from traffic import Traffic, answered

COUNT = int(os.environ.get("TRITON_GOVERNOR_KILLS", "20"))
RATE = 60.0
BACK_S = 30.0
UNSAVED_S = 2.5  # written every second; a busy machine may be a second late
KINDS = ("governor", "triton", "both")


@pytest.fixture
def triton_under_care(tmp_path) -> Iterator[SupervisedTriton]:
    with SupervisedTriton(tmp_path) as server:
        yield server


async def _one(
    kind: str, governor: GovernorProcess, server: SupervisedTriton, moment_s: float
) -> dict[str, Any]:
    unsaved_s, at_death = None, None
    async with Traffic(server.grpc, "chat", rate=RATE) as traffic:
        await asyncio.sleep(moment_s)
        before = await asyncio.to_thread(governor.journaled)
        if kind in {"governor", "both"}:
            governor.kill()
            at_death = await asyncio.to_thread(governor.journaled)
            unsaved_s = at_death.unsaved_s
            assert not at_death.lost_since(before), (before, at_death)
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
    after = await asyncio.to_thread(governor.journaled)
    assert not after.lost_since(at_death or before), (before, at_death, after)
    return {
        "kind": kind,
        "answers": len(traffic.answers),
        "failed": len(failures),
        "outage_s": last_s - killed_s,
        "known": known,
        "unsaved_s": unsaved_s,
    }


@pytest.mark.soak
@pytest.mark.triton
async def test_whatever_is_killed_service_is_back_by_itself(triton_under_care, tmp_path, request):
    server = triton_under_care
    progress = request.config.cache.mkdir("soak") / f"kills-{code_digest()[:12]}.jsonl"
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
        await asyncio.sleep(3.0)  # what was learned is written every second
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
    unsaved_s = [run["unsaved_s"] for run in done if run["unsaved_s"] is not None]
    print(f"what was learned in the last {max(unsaved_s):.2f} s at worst was not saved yet")
    assert max(unsaved_s) < UNSAVED_S
    assert all(run["known"] for run in done), "what was learned came back"
    assert max(run["outage_s"] for run in done) < BACK_S
