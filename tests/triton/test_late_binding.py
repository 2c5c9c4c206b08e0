"""The daemon and its dispatcher on a real server: late binding, and the way back to a variant."""

import asyncio
import copy
import time

import pytest
import tritonclient.grpc.aio as triton
import yaml
from governed import kill_model, precompile
from governor_process import GovernorProcess, echo_policy, free_port
from repository import write_model
from traffic import DEADLINE_S, Traffic

from controller.cli.main import main
from controller.cli.output import OK

FAST_S, BEST_S = 0.002, 0.015
RATE_RPS = 120.0  # more than one row at a time on the best bears


@pytest.fixture
def bound(start_triton, tmp_path):
    """A server, and a governor of it whose policy has a dispatcher."""
    root = tmp_path / "repository"
    write_model(root, "best", tag=1, delay_s=BEST_S, exponent=0.0, init_s=0.2)
    write_model(root, "fast", tag=2, delay_s=FAST_S, exponent=0.0, init_s=0.2)
    precompile(root)
    policy = echo_policy("127.0.0.1:1", "http://127.0.0.1:1/metrics", free_port())
    model = policy["models"]["chat"]
    model["objective"]["latency"] = "100ms"
    model["variants"] = {
        "best": {"model": "best", "quality": 0.95},
        "fast": {"model": "fast", "quality": 0.80},
    }
    model["dispatcher"] = {"model": "chat_late", "key_file": str(tmp_path / "chat.key")}
    (tmp_path / "written.yaml").write_text(yaml.safe_dump(policy))
    words = ["dispatcher", "write", str(tmp_path / "written.yaml"), "--repository", str(root)]
    assert main(words) == OK
    server = start_triton(root)
    policy["triton"] |= {"grpc": server.grpc, "metrics": server.metrics_url}
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.policy, daemon.root = policy, root
    daemon.start()
    yield server, daemon
    daemon.stop()


async def test_requests_are_bound_late_and_none_fails(bound):
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    async with Traffic(server.grpc, "chat", rate=RATE_RPS) as traffic:
        await asyncio.sleep(6.0)
        status = await asyncio.to_thread(daemon.status)
    model = status["models"][0]
    assert model["reason"] == "late_binding", (model, daemon.log.read_text())
    dispatcher = model["dispatcher"]
    assert dispatcher["healthy"]
    assert set(dispatcher["variants"]) == {"best", "fast"}
    assert dispatcher["failed"] == 0
    assert model["rate_rps"] == pytest.approx(RATE_RPS, rel=0.25)
    assert 0.80 <= model["quality"] <= 0.95
    assert traffic.failures == []
    assert {answer.tag for answer in traffic.answers} <= {1, 2}
    assert sum(answer.tag == 1 for answer in traffic.answers) > 100


async def test_one_that_is_late_where_a_variant_is_not_is_left(bound):
    """As on processors that are too busy for it: here it sleeps before each batch."""
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    code = daemon.root / "chat_late" / "1" / "model.py"
    slow = code.read_text().replace(
        "def have_answered(self, batch):",
        "def have_answered(self, batch):\n        time.sleep(0.15)",
    )
    code.write_text(slow)
    async with triton.InferenceServerClient(server.grpc) as client:
        await client.load_model("chat_late")
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    async with Traffic(server.grpc, "chat", rate=40.0) as traffic:
        await daemon.until(lambda m: m["serving"] in {"best", "fast"}, timeout_s=30.0)
        (model,) = (await asyncio.to_thread(daemon.status))["models"]
        assert model["dispatcher"]["left_for_s"] > 20.0, (model, daemon.log.read_text())
        await asyncio.sleep(2.0)
        served = len(traffic.answers)
        await asyncio.sleep(3.0)
    assert traffic.failures == []
    later = traffic.answers[served:]
    assert len(later) > 100
    assert sum(answer.latency_s <= 0.1 for answer in later) >= 0.95 * len(later)


async def test_what_the_governor_says_to_a_dispatcher_is_no_load(bound):
    """It does so ten times a second, and now and then proves that a request is answered."""
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    await asyncio.sleep(4.0)
    rates = []
    for _ in range(10):
        rates.append((await asyncio.to_thread(daemon.status))["models"][0]["rate_rps"])
        await asyncio.sleep(0.2)
    assert max(rates) < 1.0, rates
    counts = await _rows_by_batch(server.grpc, "best")
    assert any(rows > 1 for rows in counts), "nobody asked it for more than a row, in all this calm"


async def _rows_by_batch(grpc: str, model: str) -> dict[int, int]:
    """Return how often Triton executed batches of each size on a model."""
    async with triton.InferenceServerClient(grpc) as client:
        statistics = await client.get_inference_statistics(model)
    (one,) = statistics.model_stats
    return {entry.batch_size: entry.compute_infer.count for entry in one.batch_stats}


async def test_a_dispatcher_that_dies_is_left_for_a_variant_and_comes_back(bound):
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    async with Traffic(server.grpc, "chat", rate=40.0) as traffic:
        await asyncio.sleep(2.0)
        kill_model(server.pid, "chat_late")
        killed_s = time.monotonic()
        await daemon.until(lambda m: m["serving"] in {"best", "fast"}, timeout_s=20.0)
        left = len(traffic.failures)
        await asyncio.sleep(1.0)
        assert len(traffic.failures) - left <= 2, "those that were under way"
        await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
        # Who was in its process gets no answer, and gives up at his deadline.
        await asyncio.sleep(max(killed_s + DEADLINE_S + 1.0 - time.monotonic(), 0.0))
        again = len(traffic.failures)
        await asyncio.sleep(3.0)
        assert len(traffic.failures) == again
    assert left <= again
    assert left / 40.0 < 3.0, "seconds without an answer"


async def test_a_pin_ends_it_and_unpinning_brings_it_back(bound):
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    async with Traffic(server.grpc, "chat", rate=40.0) as traffic:
        daemon.ask("POST", "/v1/pin", {"model": "chat", "variant": "fast"})
        await daemon.until(lambda m: m["serving"] == "fast", timeout_s=10.0)
        daemon.ask("POST", "/v1/unpin", {"model": "chat"})
        await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=10.0)
        await asyncio.sleep(1.0)
    assert traffic.failures == []


async def test_a_governor_that_starts_again_finds_it_serving(bound):
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    async with Traffic(server.grpc, "chat", rate=40.0) as traffic:
        daemon.stop()
        await asyncio.sleep(2.0)
        daemon.start()
        await daemon.until(
            lambda m: m["serving"] == "dispatcher" and m["dispatcher"]["healthy"], timeout_s=20.0
        )
        await asyncio.sleep(1.0)
        status = await asyncio.to_thread(daemon.status)
    assert status["models"][0]["switches"] == 0, daemon.log.read_text()
    assert traffic.failures == []


async def test_a_policy_without_it_leads_the_alias_to_a_variant(bound):
    server, daemon = bound
    await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=60.0)
    async with Traffic(server.grpc, "chat", rate=40.0) as traffic:
        policy = copy.deepcopy(daemon.policy)
        del policy["models"]["chat"]["dispatcher"]
        daemon.write_policy(policy)
        await daemon.until(lambda m: m["serving"] in {"best", "fast"}, timeout_s=20.0)
        daemon.write_policy(daemon.policy)
        await daemon.until(lambda m: m["serving"] == "dispatcher", timeout_s=20.0)
        await asyncio.sleep(1.0)
    assert traffic.failures == []
