"""The daemon as a process on a real Triton, under traffic."""

import asyncio
import itertools
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from governor_process import GovernorProcess, echo_policy, free_port
from repository import fill_repository
from supervised import SupervisedTriton
from traffic import Traffic, answered

from controller.embedded.server import RunningServer


@pytest.fixture(scope="module")
def otlp_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(start_triton, tmp_path_factory, otlp_port) -> RunningServer:
    root = fill_repository(tmp_path_factory.mktemp("daemon") / "repository")
    return start_triton(root, otlp_url=f"http://127.0.0.1:{otlp_port}/v1/traces")


@pytest.fixture
def governor(server: RunningServer, otlp_port: int, tmp_path: Path) -> Iterator[GovernorProcess]:
    policy = echo_policy(server.grpc, server.metrics_url, otlp_port)
    policy["prometheus"] = {"listen": f"127.0.0.1:{free_port()}"}
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    yield daemon
    daemon.stop()


def scraped(governor: GovernorProcess) -> dict[str, float]:
    """Return the samples of the metrics page by name and labels."""
    listen = yaml.safe_load(governor.policy_file.read_text())["prometheus"]["listen"]
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=5.0) as page:
        lines = page.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(number) for name, _, number in samples}


def _everything_is_known(model) -> bool:
    return bool(model["candidates"]) and all(c["known"] for c in model["candidates"])


def _in_order(model):
    service_ms = {c["variant"]: c["service_ms"] for c in model["candidates"]}
    return service_ms["fast"] < service_ms["mid"] < service_ms["slow"]


async def test_it_measures_what_nobody_has_measured_and_then_serves_the_best(governor):
    await governor.until(_everything_is_known, what="all variants measured by probes")
    await governor.until(lambda m: m["serving"] == "slow", what="the best quality when quiet")
    # What was learned of a variant is in the table a tenth of a second later.
    await governor.until(_in_order, what="times in the order of what variants take")


async def test_a_burst_is_escaped_and_no_request_fails(governor, server):
    await governor.until(lambda m: m["serving"] == "slow")
    async with Traffic(server.grpc, "chat", rate=30.0) as calm:
        await asyncio.sleep(2.0)
        # More than `slow` bears, then more than `mid` does: at once it would make so many late that
        # the calibration takes a minute to forget it.
        async with Traffic(server.grpc, "chat", rate=100.0) as burst:
            await governor.until(lambda m: m["serving"] in {"mid", "fast"}, timeout_s=5.0)
            async with Traffic(server.grpc, "chat", rate=150.0) as more:
                await asyncio.sleep(1.5)
        fast = governor.model()["serving"]
        told = await asyncio.to_thread(scraped, governor)
        # Back towards quality. Where the burst made many late, that counts against the variants
        # they ran on until these have not been used for a minute.
        await governor.until(lambda m: m["serving"] != "fast", timeout_s=75.0, what=f"from {fast}")
    calm.check(at_least=50)
    burst.check(at_least=100)
    more.check(at_least=150)
    assert {1, 2} & set(burst.tags())
    # What Prometheus was told meanwhile.
    assert told['governor_model_switches_total{model="chat"}'] >= 1.0
    assert told['governor_model_forecast_requests_per_second{model="chat"}'] > 100.0
    assert told["governor_switch_duration_seconds_count"] >= 1.0
    decisions = [n for name, n in told.items() if name.startswith("governor_model_decisions_total")]
    assert sum(decisions) >= 50.0
    assert told['governor_source_up{source="metrics"}'] == 1.0


async def test_h21_a_load_that_flaps_moves_it_up_no_more_than_the_policy_allows(
    server, otlp_port, tmp_path
):
    dwell_s, most = 0.3, 4
    policy = echo_policy(
        server.grpc,
        server.metrics_url,
        otlp_port,
        stability={"min_dwell": "300ms", "max_switches_per_minute": most},
    )
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    try:
        await daemon.until(lambda m: _everything_is_known(m) and m["serving"] == "slow")
        began_s = time.monotonic()
        async with Traffic(server.grpc, "chat", rate=30.0) as calm:
            while time.monotonic() - began_s < 8.0:
                # More than `slow` bears, and half of what `mid` does.
                async with Traffic(server.grpc, "chat", rate=100.0) as burst:
                    await asyncio.sleep(0.5)
                burst.check()
                await asyncio.sleep(0.5)
        calm.check()
        actions = daemon.ask("GET", "/v1/history?limit=200")["actions"]
    finally:
        daemon.stop()
    order = ("echo_fast", "echo_mid", "echo_slow")
    moves = [
        (a["monotonic_s"], order.index(a["target"]) - order.index(a["source"]))
        for a in reversed(actions)
        if a["kind"] == "switch" and a["switch_s"] is not None and a["monotonic_s"] > began_s
    ]
    ups = [at for at, step in moves if step > 0]
    assert len(ups) <= most, moves  # on a busy machine it may have found none to be right
    assert any(step < 0 for _, step in moves), moves
    for (before_s, _), (at_s, step) in itertools.pairwise(moves):
        assert step < 0 or at_s - before_s > 0.9 * dwell_s, moves


async def test_after_kill_9_triton_serves_on_and_the_next_daemon_adopts_what_it_finds(
    governor, server
):
    await governor.until(_everything_is_known)
    async with Traffic(server.grpc, "chat", rate=60.0) as traffic:
        await governor.until(lambda m: (m["attainment"] or 0.0) > 0.9, what="traces counted")
        await asyncio.sleep(3.0)  # what was learned is written every second
        before = governor.journaled()
        governor.kill()
        await asyncio.sleep(1.0)
        governor.start()
        await governor.until(lambda m: m["serving"] is not None, what="adopted")
        assert all(c["known"] for c in governor.model()["candidates"]), "what was learned is back"
        await asyncio.sleep(1.0)
    traffic.check(at_least=200)
    actions = governor.ask("GET", "/v1/history?limit=50")["actions"]
    assert any(action["kind"] == "adopt" for action in actions)
    assert not governor.journaled().lost_since(before)


@pytest.mark.usefixtures("installation")
async def test_after_kill_9_of_both_service_is_back_by_itself(tmp_path):
    with SupervisedTriton(tmp_path) as triton:
        policy = echo_policy(triton.grpc, triton.metrics_url, triton.otlp_port)
        daemon = GovernorProcess(tmp_path / "governor", policy)
        daemon.start()
        try:
            await daemon.until(_everything_is_known)
            await asyncio.sleep(1.5)  # what was learned is written every second
            before = daemon.journaled()
            daemon.kill()
            triton.kill()
            daemon.start()  # as systemd would
            await answered(triton.grpc, "chat", within_s=30.0)
            await daemon.until(lambda m: m["serving"] is not None)
            assert _everything_is_known(daemon.model()), "what was learned is back"
            async with Traffic(triton.grpc, "chat", rate=60.0) as traffic:
                await asyncio.sleep(1.5)
            traffic.check(at_least=60)
            assert not daemon.journaled().lost_since(before)
        finally:
            daemon.stop()


async def test_after_kill_9_of_triton_everything_is_put_back(governor, server):
    await governor.until(lambda m: m["serving"] is not None)
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(server.restart)
    await answered(server.grpc, "chat", within_s=10.0)
    async with Traffic(server.grpc, "chat", rate=60.0) as traffic:
        await asyncio.sleep(2.0)
    traffic.check(at_least=100)


async def test_a_pin_holds_until_it_is_taken_back(governor, server):
    await governor.until(lambda m: m["serving"] == "slow")
    wish = {"model": "chat", "variant": "mid", "why": "a test"}
    assert "mid" in governor.ask("POST", "/v1/pin", wish)["message"]
    await governor.until(lambda m: m["serving"] == "mid" and m["reason"] == "pinned")
    refused = governor.ask("POST", "/v1/pin", {"model": "chat", "variant": "md"})
    assert "did you mean mid?" in str(refused)
    assert "message" in governor.ask("POST", "/v1/unpin", {"model": "chat"})
    await governor.until(lambda m: m["serving"] == "slow" and m["pinned"] is None)


async def test_sighup_takes_a_good_policy_and_refuses_a_bad_one(governor, server, otlp_port):
    await governor.until(_everything_is_known)
    assert governor.process is not None
    policy = echo_policy(server.grpc, server.metrics_url, otlp_port)
    policy["models"]["chat"]["objective"]["latency"] = "sixty"
    governor.write_policy(policy)
    governor.process.send_signal(signal.SIGHUP)
    await governor.until(lambda _: "latency" in str(governor.status()["daemon"]["policy_error"]))
    assert governor.model()["objective"]["latency_ms"] == 60.0
    policy["models"]["chat"]["objective"]["latency"] = "90ms"
    governor.write_policy(policy)
    governor.process.send_signal(signal.SIGHUP)
    await governor.until(lambda m: m["objective"]["latency_ms"] == 90.0)
    assert all(c["known"] for c in governor.model()["candidates"]), "nothing learned was lost"
    # Another way to the server is followed without a restart.
    policy["triton"]["grpc"] = policy["triton"]["grpc"].replace("127.0.0.1", "localhost")
    governor.write_policy(policy)
    governor.process.send_signal(signal.SIGHUP)
    await governor.until(lambda _: governor.status()["triton"]["grpc"].startswith("localhost"))
    await governor.until(lambda m: m["serving"] is not None, what="the same server again")
    assert governor.status()["daemon"]["policy_error"] is None


async def test_advising_decides_and_records_but_touches_nothing(
    server, otlp_port, tmp_path, governor
):
    await governor.until(lambda m: _everything_is_known(m) and m["serving"] == "slow")
    assert governor.stop() == 0
    policy = echo_policy(server.grpc, server.metrics_url, otlp_port, mode="advise")
    adviser = GovernorProcess(tmp_path / "adviser", policy)
    adviser.start()
    try:
        await adviser.until(lambda m: m["serving"] == "slow", what="what it finds is shown")
        async with Traffic(server.grpc, "chat", rate=40.0) as traffic:
            await asyncio.sleep(3.0)
        traffic.check(at_least=80)
        assert set(traffic.tags()) == {3}
        assert adviser.model()["desired"] is not None
        assert adviser.status()["daemon"]["advice"]
    finally:
        assert adviser.stop() == 0


async def test_a_schedule_in_force_says_who_may_serve(server, otlp_port, tmp_path):
    policy = echo_policy(server.grpc, server.metrics_url, otlp_port)
    policy["schedules"] = {
        "always": {"from": "00:00", "to": "00:00", "models": {"chat": {"variants": ["mid"]}}}
    }
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    try:
        await daemon.until(lambda m: m["serving"] == "mid")
        told = {c["variant"]: c["excluded"] for c in daemon.model()["candidates"]}
        assert told == {"slow": "not_allowed", "mid": None, "fast": "not_allowed"}
        assert daemon.ask("GET", "/v1/status")["daemon"]["schedules"] == ["always"]
        # Without it the best serves again, within a second or two.
        del policy["schedules"]
        daemon.write_policy(policy)
        await daemon.until(lambda m: m["serving"] == "slow")
    finally:
        daemon.stop()
