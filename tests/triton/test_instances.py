"""Instances on a real server: the governor finds out that two do more than one, and gives them."""

import asyncio

from governed import precompile
from governor_process import GovernorProcess, echo_policy, free_port
from repository import write_model
from traffic import Traffic

# A row takes so long on one instance, and instances are in nobody's way: they sleep.
BEST_S, FAST_S = 0.012, 0.001
RATE_RPS = 100.0  # more than the best bears with one instance, less than with two


async def test_the_best_variant_gets_the_instances_with_which_it_bears_the_load(
    start_triton, tmp_path
):
    root = tmp_path / "repository"
    write_model(root, "best", tag=1, delay_s=BEST_S, init_s=0.2)
    write_model(root, "fast", tag=2, delay_s=FAST_S, init_s=0.2)
    precompile(root)
    server = start_triton(root)
    policy = echo_policy(server.grpc, server.metrics_url, free_port())
    policy["models"]["chat"]["objective"]["latency"] = "200ms"
    policy["models"]["chat"]["variants"] = {
        "best": {"model": "best", "quality": 0.95, "max_instances": 2},
        "fast": {"model": "fast", "quality": 0.80},
    }
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    try:
        await daemon.until(lambda m: m["serving"] is not None, timeout_s=40.0)
        async with Traffic(server.grpc, "chat", rate=RATE_RPS) as traffic:
            for _ in range(80):
                await asyncio.sleep(0.5)
                status = await asyncio.to_thread(daemon.status)
                assert status is not None
                if status["instances"]["best"]["number"] == 2:
                    break
            resized_after = len(traffic.answers)
            await asyncio.sleep(4.0)
            status = await asyncio.to_thread(daemon.status)
            last = traffic.answers[-200:]
        sized = status["instances"]
    finally:
        daemon.stop()
    log = daemon.log.read_text()
    assert sized["best"]["number"] == 2, (sized, log)
    assert sized["best"]["least"] == 1
    assert sized["best"]["overlap"] < 0.5
    assert sized.keys() == {"best"}, "of the other the policy says nothing"
    assert "1 to 2 instances" in log
    assert traffic.failures == []
    assert len(traffic.answers) - resized_after > 100
    by_best = sum(answer.tag == 1 for answer in last) / len(last)
    assert by_best > 0.9, by_best
