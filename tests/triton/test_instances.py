"""Instances on a real server: the governor finds out that two do more than one, and gives them."""

import asyncio

from governed import precompile
from governor_process import GovernorProcess, echo_policy, free_port
from repository import write_model
from traffic import Traffic

# A row takes so long on one instance, and instances are in nobody's way: they sleep.
BEST_S, FAST_S = 0.012, 0.001
RATE_RPS = 100.0  # more than the best bears with one instance, less than with two
LONE_RPS = 95.0  # a little more than one instance bears, on any machine


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


async def test_a_lone_variant_gets_them_where_it_serves_while_another_queue_waits(
    start_triton, tmp_path
):
    root, held = tmp_path / "repository", tmp_path / "held"
    held.mkdir()
    write_model(root, "best", tag=1, delay_s=BEST_S, init_s=0.2, gpu_mib=1, gpu_folder=str(held))
    precompile(root)
    server = start_triton(root)
    policy = echo_policy(server.grpc, server.metrics_url, free_port())
    model = policy["models"]["chat"]
    model["variants"] = {"best": {"model": "best", "quality": 0.95, "max_instances": 2}}
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    try:
        await daemon.until(lambda m: m["serving"] == "best", timeout_s=40.0)
        model["queue"] = {"max_size": 200}  # would take a reload of what serves
        daemon.write_policy(policy)
        began = (held / ".log").read_text().splitlines()
        async with Traffic(server.grpc, "chat", rate=LONE_RPS) as traffic:
            for _ in range(100):
                await asyncio.sleep(0.5)
                status = await asyncio.to_thread(daemon.status)
                assert status is not None
                if status["instances"]["best"]["number"] == 2:
                    break
            await asyncio.sleep(1.0)
        since = (held / ".log").read_text().splitlines()[len(began) :]
    finally:
        daemon.stop()
    log = daemon.log.read_text()
    assert status["instances"]["best"]["number"] == 2, (status["instances"], log)
    queue = status["triton"]["variants"]["best"]["queue"]
    assert queue == "pending: it is reloaded when it does not serve"
    assert since == [f"{1 << 20} 1"], "one more instance, and none that was there is made anew"
    assert traffic.failures == []
