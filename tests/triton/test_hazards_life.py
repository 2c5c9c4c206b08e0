"""Hazards of life and death (H12, H13, H17, H18, H21), leases and stops, on a real server."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tritonclient.grpc.aio as triton
from faults import STEPS
from governed import ALIAS, governed, make_policy, precompile, until
from repository import alias_config, write_model
from traffic import Traffic

from controller.planning.decision import Reason
from controller.planning.stability import Damper
from controller.policy.model import OnStop, Policy, StabilityPolicy, TritonPolicy
from controller.ports import Outcome
from controller.telemetry.hub import Telemetry

VARIANTS = ("slow", "fast")
TAGS = {"fast": 1, "slow": 3}


@pytest.fixture(scope="module")
def server(start_triton, tmp_path_factory):
    root = tmp_path_factory.mktemp("life") / "repository"
    for name, tag in TAGS.items():
        write_model(root, name, tag=tag, delay_s=0.001 * tag)
    precompile(root)
    return start_triton(root)


@pytest.fixture
async def outside(server):
    client = triton.InferenceServerClient(server.grpc)
    await client.unload_model(ALIAS)
    yield client
    await client.close()


async def crash(server) -> None:
    """Kill Triton as the kernel would, and clear up after it."""
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: not server.is_alive())
    await asyncio.to_thread(server.stop)


_MORTAL = textwrap.dedent("""
    import asyncio, os, signal, sys
    sys.path.insert(0, {here!r})
    from governed import governed, make_policy

    async def die_at(alias, step):
        if armed and step == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)

    armed = []

    async def main():
        policy = make_policy(sys.argv[1], "slow", "fast")
        async with governed(policy, on_step=die_at) as test:
            await test.ready()
            armed.append(True)
            target = "fast" if test.reading.serving == "slow" else "slow"
            test.variant(target).proven = sys.argv[2] != "probe"
            await test.switched(target)

    asyncio.run(main())
""")


async def test_h17_a_governor_killed_between_any_two_steps_harms_nobody(server, outside):
    program = _MORTAL.format(here=str(Path(__file__).parent))
    async with governed(make_policy(server.grpc, *VARIANTS)) as test:
        await test.ready()
    async with Traffic(server.grpc, ALIAS) as traffic:
        for step in STEPS:
            answered_before = len(traffic.answers)
            mortal = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, server.grpc, step
            )
            assert await mortal.wait() == -signal.SIGKILL
            before = await outside.get_model_config(ALIAS)
            async with governed(make_policy(server.grpc, *VARIANTS)) as test:
                await until(lambda test=test: test.reading.ready)
                found = before.config.ensemble_scheduling.step[0].model_name
                assert test.reading.serving == found
                assert [r.kind for r in test.records] == ["adopt"]
                await test.ready()
                other = "fast" if found == "slow" else "slow"
                assert (await test.switched(other)).outcome is Outcome.DONE
            # However fast the machine went through the step, requests were answered in it.
            assert len(traffic.answers) > answered_before
            await until(lambda n=answered_before: len(traffic.answers) >= n + 20)
    traffic.check(at_least=20 * len(STEPS))


async def test_h18_after_a_restart_of_triton_everything_is_put_back(server, outside, tmp_path):
    state = tmp_path / "actuator.json"
    policy = make_policy(server.grpc, *VARIANTS)
    override = {"instance_group": [{"kind": "KIND_CPU", "count": 2}]}

    async def instances(test) -> int:
        return int((await test.config("slow"))["instance_group"][0]["count"])

    async with governed(policy, state_file=state) as test:
        await test.ready()
        assert test.reading.serving == "fast"
        assert (await test.actuator.load("slow", override=override)).outcome is Outcome.DONE
        async with Traffic(server.grpc, ALIAS) as traffic:
            await until(lambda: len(traffic.answers) > 10)
            await crash(server)
            await until(lambda: test.reading.ready is None)
            assert (await test.switch("slow")).outcome is not Outcome.DONE
            test.records.clear()
            await asyncio.to_thread(server.start)
            await until(lambda: test.reading.ready, timeout_s=30.0)
            served_s = time.monotonic()
            # The fastest first, and clients are served before the rest is loaded.
            await until(lambda: test.of_kind("load"))
            loaded = test.of_kind("load")[0]
            assert loaded.target == "fast"
            possible_s = loaded.started_s + loaded.transaction_s
            assert served_s - possible_s < 1.0
            await test.ready()
            assert test.reading.held is None
            assert await instances(test) == 2
            await until(lambda: len(traffic.tags(served_s + 0.1)) > 10)
        assert not [f for f in traffic.failures if f.intended_s > served_s]
    # Nothing is left on the server, and the governor is another: the file remembers.
    for name in (ALIAS, *VARIANTS):
        await outside.unload_model(name)
    async with governed(policy, state_file=state) as test:
        await test.ready()
        assert await instances(test) == 2
        assert (await test.actuator.load("slow", override={})).outcome is not Outcome.REFUSED


async def test_a_second_governor_refuses_to_act_and_says_who_does(server, outside):
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as first:
        await first.ready()
        async with governed(policy) as second:
            await until(lambda: second.reading.ready)
            assert second.reading.serving == first.reading.serving
            record = await second.switch("slow", urgent=True)
            assert record.outcome is Outcome.REFUSED
            assert "has the lease" in record.error
            assert f"process {os.getpid()}" in record.error
            assert (await first.switched("slow")).outcome is Outcome.DONE
            await until(lambda: second.reading.serving == "slow")
            await first.actuator.stop()
            await second.ready()
            assert (await second.switched("fast")).outcome is Outcome.DONE


@pytest.mark.parametrize(("on_stop", "after"), [(OnStop.KEEP, "fast"), (OnStop.REVERT, "slow")])
async def test_at_a_stop_the_alias_stays_or_goes_to_the_best_variant(
    server, outside, on_stop, after
):
    policy = make_policy(server.grpc, *VARIANTS, on_stop=on_stop)
    async with Traffic(server.grpc, ALIAS) as traffic:
        async with governed(policy) as test:
            await test.ready()
            if test.reading.serving != "fast":
                await test.switched("fast")
            traffic.answers.clear()
        await asyncio.sleep(0.1)
        config = await outside.get_model_config(ALIAS)
        assert config.config.ensemble_scheduling.step[0].model_name == after
        stopped_s = time.monotonic()
        await until(lambda: len(traffic.tags(stopped_s)) > 5)
        assert set(traffic.tags(stopped_s)) == {TAGS[after]}
    traffic.check()


async def test_h12_h13_rates_are_never_negative_and_come_from_the_variants(server, outside):
    """Statistics start from zero at each switch and reload; an alias's queue is always 0."""
    base = make_policy(server.grpc, *VARIANTS)
    policy = Policy(triton=TritonPolicy(server.grpc, server.metrics_url, None), models=base.models)
    telemetry = Telemetry(policy)
    readings, samples = [], []

    async def read() -> None:
        while True:
            reading = await telemetry.read(0.05)
            readings.append(reading)
            samples.extend(reading.batch_samples)
            await asyncio.sleep(0.05)

    async with governed(base) as test, Traffic(server.grpc, ALIAS, rate=100) as traffic:
        await test.ready()
        await telemetry.start()
        reader = asyncio.create_task(read())
        try:
            traffic.answers.clear()
            for name in ("slow", "fast", "slow", "fast"):
                await test.switched(name)
                await asyncio.sleep(0.3)
            config = await test.config("slow")
            config["dynamic_batching"] = {"max_queue_delay_microseconds": "1000"}
            await outside.load_model("slow", config=json.dumps(config))
            await asyncio.sleep(0.3)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
            await telemetry.stop()
    traffic.check()
    assert ALIAS not in readings[-1].variants
    for reading in readings:
        for variant in reading.variants.values():
            assert min(variant.completed_requests, variant.completed_rows) >= 0
            assert min(variant.executions, variant.queue_s, variant.compute_s) >= 0
            assert variant.pending_requests is None or variant.pending_requests >= 0
    assert {sample.model for sample in samples} >= set(VARIANTS)
    assert all(sample.mean_service_s >= 0 for sample in samples)
    seen = sum(v.completed_requests for r in readings for v in r.variants.values())
    assert seen > 0.5 * len(traffic.answers)


async def test_h21_flapping_is_bounded_but_never_holds_back_an_escape(server, outside):
    damper = Damper(StabilityPolicy(min_dwell_s=0.2, max_switches_per_minute=600))
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready()
        traffic.answers.clear()
        upgrades = escapes = 0
        started_s = time.monotonic()
        while (now_s := time.monotonic()) - started_s < 2.0:
            if test.reading.serving == "fast":
                reason = damper.hold(now_s)
                assert reason in (None, Reason.DWELL)
                if reason is None and (await test.switch("slow")).outcome is Outcome.DONE:
                    damper.moved(now_s, upgrade=True)
                    upgrades += 1
            else:
                record = await test.switch("fast", urgent=True)
                assert record.outcome is Outcome.DONE
                assert time.monotonic() - now_s < 0.25
                damper.moved(now_s, upgrade=False)
                escapes += 1
            await asyncio.sleep(0.01)
        assert 3 <= upgrades <= 10
        assert escapes >= upgrades - 1
    traffic.check()


# -- servers that do not let a governor do everything -----------------------------------------


def write_restricted(root: Path) -> Path:
    for name, tag in TAGS.items():
        write_model(root, name, tag=tag)
    folder = root / ALIAS
    (folder / "1").mkdir(parents=True)
    from repository import to_pbtxt

    (folder / "config.pbtxt").write_text(to_pbtxt(alias_config(ALIAS, "fast")))
    precompile(root)
    return root


async def test_a_repository_alias_is_adopted_and_switched_and_back_after_a_restart(
    start_triton, tmp_path
):
    from controller.policy.model import AliasKind

    server = start_triton(write_restricted(tmp_path / "repository"), load_models=[*VARIANTS, ALIAS])
    policy = make_policy(server.grpc, *VARIANTS, alias=AliasKind.REPOSITORY)
    async with Traffic(server.grpc, ALIAS) as traffic, governed(policy) as test:
        await test.ready()
        assert [r.kind for r in test.records if r.kind in ("adopt", "heal")] == ["adopt"]
        assert (await test.switched("slow")).outcome is Outcome.DONE
        assert await test.target() == "slow"
        await traffic.stop()
        traffic.check()
        # Clients are served before the governor has looked: the alias stands on disk.
        await crash(server)
        await asyncio.to_thread(server.start)
        async with Traffic(server.grpc, ALIAS) as again:
            await until(lambda: test.reading.ready and test.reading.serving == "fast")
            await test.ready()
            assert test.reading.held is None
            assert (await test.switched("slow")).outcome is Outcome.DONE
        again.check()
    await crash(server)


async def test_a_server_that_restricts_model_control_is_only_advised_without_the_key(
    start_triton, tmp_path
):
    from dataclasses import replace

    server = start_triton(
        write_restricted(tmp_path / "repository"),
        load_models=[*VARIANTS],
        extra_args=["--grpc-restricted-protocol=model-repository:admin-key=open sesame"],
    )
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test:
        await until(lambda: "refuses" in str(test.actuator.capability))
        assert "advise only" in str(test.actuator.capability)
        assert "grpc-restricted-protocol" in str(test.actuator.capability)
        assert (await test.switch("slow")).outcome is Outcome.REFUSED
        with pytest.raises(triton.InferenceServerException):
            await test.outside.get_model_config(ALIAS)
    key = tmp_path / "key"
    key.write_text("open sesame\n")
    open_policy = replace(policy, triton=replace(policy.triton, restricted_key_file=str(key)))
    async with governed(open_policy) as test:
        await test.ready()
        assert (await test.switched("slow")).outcome is Outcome.DONE
    missing = replace(policy.triton, restricted_key_file=str(tmp_path / "none"))
    async with governed(replace(policy, triton=missing)) as test:
        await until(lambda: test.server.reachable)
        assert "restricted_key_file" in str(test.actuator.capability)
    await crash(server)


async def test_a_server_in_poll_mode_is_only_advised(start_triton, tmp_path):
    root = write_restricted(tmp_path / "repository")
    server = start_triton(root, extra_args=["--model-control-mode=none"])
    policy = make_policy(server.grpc, *VARIANTS)
    async with Traffic(server.grpc, ALIAS) as traffic, governed(policy) as test:
        await until(lambda: "refuses" in str(test.actuator.capability))
        assert "--model-control-mode=explicit" in str(test.actuator.capability)
        await until(lambda: test.reading.ready)
        assert test.reading.serving == "fast"
        record = await test.switch("slow", urgent=True)
        assert record.outcome is Outcome.REFUSED
        assert await test.target() == "fast"
    traffic.check()
    await crash(server)
