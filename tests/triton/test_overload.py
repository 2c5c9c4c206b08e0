"""What the policy sets of Triton's queues, on a real server: set, changed, refused; an overload."""

import asyncio
import collections
import time
from dataclasses import replace

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from governed import ALIAS, governed, make_policy, precompile, until
from repository import model_config, to_pbtxt, write_model
from traffic import Traffic

from controller.actuation.client import Fault, classify
from controller.actuation.state import Timing
from controller.policy.model import Policy, QueuePolicy
from controller.ports import Outcome

VARIANTS = ("echo_good", "echo_fast")
SOON = Timing(calm_s=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("overload") / "repository"
    write_model(root, "echo_good", delay_s=0.004, tag=1, queue_delay_us=100)
    write_model(root, "echo_fast", delay_s=0.010, exponent=0.5, tag=2)
    plain = model_config("no_queue", tag=3)
    del plain["dynamic_batching"]
    (write_model(root, "no_queue") / "config.pbtxt").write_text(to_pbtxt(plain))
    # Triton knows no priorities where the order is to be kept.
    write_model(root, "ordered", tag=4, extra={"dynamic_batching": {"preserve_ordering": True}})
    precompile(root)
    return root


@pytest.fixture(scope="module")
def server(start_triton, root):
    return start_triton(root)


def wanting(policy: Policy, **queue) -> Policy:
    """The policy with such a queue."""
    wanted = QueuePolicy(**queue)
    return replace(policy, models=tuple(replace(m, queue=wanted) for m in policy.models))


async def batching(test, model: str) -> dict:
    return (await test.config(model))["dynamic_batching"]


def test_a_request_that_waited_too_long_does_not_mean_that_triton_is_gone():
    # The words of Triton 2.51, which sends both under UNAVAILABLE.
    for words in ("Request timeout expired", "Exceeds maximum queue size"):
        told = f"in ensemble 'chat', {words}"
        assert classify("StatusCode.UNAVAILABLE", told) is Fault.OVERLOADED


async def test_what_the_policy_sets_is_there_before_a_variant_serves_and_follows_its_edits(
    server, tmp_path
):
    policy = make_policy(server.grpc, *VARIANTS)
    state = tmp_path / "state.json"
    wanted = wanting(policy, timeout_s=0.05, max_size=40)
    async with governed(wanted, state_file=state, timing=SOON) as test:
        await test.ready()
        for model in VARIANTS:
            limits = (await batching(test, model))["default_queue_policy"]
            assert (limits["default_timeout_microseconds"], limits["max_queue_size"]) == (
                "50000",
                40,
            )
        assert (await batching(test, "echo_good"))["max_queue_delay_microseconds"] == "100"
        described = test.actuator.describe()["variants"]
        assert {one["queue"] for one in described.values()} == {"set"}

        async with Traffic(server.grpc, ALIAS, rate=60.0) as traffic:
            serving = test.reading.serving
            idle = next(name for name in VARIANTS if name != serving)
            await test.actuator.set_policy(wanting(policy, timeout_s=0.08, max_delay_s=0.001))
            await until(lambda: test.actuator.describe()["variants"][idle]["queue"] == "set")
            limits = await batching(test, idle)
            assert limits["default_queue_policy"] == {"default_timeout_microseconds": "80000"}
            assert limits["max_queue_delay_microseconds"] == "1000"
            # What serves is not reloaded: it has its turn when it is idle.
            kept = (await batching(test, serving))["default_queue_policy"]
            assert kept["default_timeout_microseconds"] == "50000"
            assert "pending" in test.actuator.describe()["variants"][serving]["queue"]
            await test.ready(without=(serving,))
            await test.switched(idle)
            await until(lambda: test.actuator.describe()["variants"][serving]["queue"] == "set")
            kept = (await batching(test, serving))["default_queue_policy"]
            assert kept["default_timeout_microseconds"] == "80000"
            await test.ready()
        traffic.check(at_least=30)

    async with governed(
        policy, state_file=state, timing=SOON
    ) as test:  # nothing is wanted any more
        await test.ready()
        serving = test.reading.serving
        idle = next(name for name in VARIANTS if name != serving)

        async def as_in_its_folder(model: str) -> None:
            await until(lambda: test.variant(model).override is None)
            await test.ready()
            found = await test.config(model)
            assert "default_queue_policy" not in found.get("dynamic_batching", {})

        await as_in_its_folder(idle)
        await test.switched(idle)
        await as_in_its_folder(serving)


async def test_what_cannot_be_set_is_told_and_does_not_keep_a_variant_from_serving(server):
    policy = make_policy(server.grpc, "no_queue", "ordered")
    async with governed(wanting(policy, timeout_s=0.05, priority_levels=2), timing=SOON) as test:
        await test.ready()
        told = {n: v["queue"] for n, v in test.actuator.describe()["variants"].items()}
        assert "no dynamic_batching" in told["no_queue"]
        assert "does not load it" in told["ordered"]
        assert "priority_levels" not in (await test.config("ordered"))["dynamic_batching"]
        for target in ("ordered", "no_queue", "ordered"):
            if await test.target() != target:
                assert (await test.switched(target)).outcome is Outcome.DONE
        assert all(variant.error is None for variant in test.server.variants.values())
        # Another wish is tried again.
        await test.actuator.set_policy(wanting(policy, timeout_s=0.05))
        await test.switched("no_queue")
        await until(lambda: test.actuator.describe()["variants"]["ordered"]["queue"] == "set")


async def test_in_an_overload_those_who_are_answered_are_in_time_and_the_first_come_first(server):
    """Twice what the fastest variant bears, for two seconds, with a limit and without."""
    policy = make_policy(server.grpc, "echo_fast", client_max_batch=8)
    limited = wanting(policy, timeout_s=0.04, priority_levels=2)
    late, told = {}, {}
    for name, wanted in (("none", policy), ("limited", limited)):
        async with triton.InferenceServerClient(server.grpc) as outside:
            for model in (ALIAS, "echo_fast"):  # what serves is never idle
                await outside.unload_model(model)
        async with governed(wanted) as test:
            await test.ready()
            began_s = time.monotonic()
            outcomes = await storm(server.grpc, rate=560.0, seconds=2.0)
            assert test.reading.ready
            assert test.reading.held is None
            assert not [r for r in test.of_kind("heal") if r.started_s > began_s]
            await asyncio.sleep(0.3)
            await test.actuator.probe("echo_fast", 1)
        late[name] = np.array([took for _, took, error in outcomes if error is None])
        told[name] = collections.Counter(
            (priority, error) for priority, _, error in outcomes if error is not None
        )
        print(  # noqa: T201 - the numbers of docs/overload.md
            name,
            *(f"p{q:.0f} {np.percentile(late[name], q) * 1e3:.0f} ms" for q in (50, 99)),
            f"{np.mean(late[name] <= 0.1) * len(late[name]) / len(outcomes):.3f} within 100 ms",
            dict(told[name]),
            collections.Counter(priority for priority, _, _ in outcomes),
        )
    # Without a limit everybody waits behind everybody; a full batch takes 28 ms.
    assert not told["none"]
    assert np.quantile(late["none"], 0.5) > 0.2
    assert np.quantile(late["limited"], 0.99) < 0.15
    refused = {priority: told["limited"][priority, "refused"] for priority in (1, 2)}
    assert sum(told["limited"].values()) == sum(refused.values())
    assert refused[2] > 3 * max(refused[1], 1)


async def storm(grpc: str, *, rate: float, seconds: float) -> list[tuple[int, float, str | None]]:
    """Send at a rate, every fourth request with priority 1; (priority, seconds, error) of each."""
    client = triton.InferenceServerClient(grpc)
    tensor = triton.InferInput("IN", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    found = []

    async def ask(priority: int) -> None:
        began_s, error = time.monotonic(), None
        try:
            await client.infer(ALIAS, [tensor], priority=priority, client_timeout=10.0)
        except triton.InferenceServerException as failure:
            told = failure.message()
            error = "refused" if "Request timeout expired" in told else told
        found.append((priority, time.monotonic() - began_s, error))

    begins_s = time.monotonic()
    tasks = []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(begins_s + number / rate - time.monotonic(), 0.0))
        tasks.append(asyncio.create_task(ask(1 if number % 4 == 0 else 2)))
    await asyncio.gather(*tasks)
    await client.close()
    return found
