"""Hazards of the variants (H4 to H7, H10, H14 to H16, H20), on a real server under traffic."""

import asyncio
import json
import os
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton
from faults import Wire
from governed import ALIAS, governed, make_policy, precompile, until
from repository import alias_config, write_model
from traffic import HttpTraffic, Traffic

from controller.actuation.memory import MemoryWatch
from controller.actuation.state import Timing
from controller.policy.model import Policy
from controller.ports import Outcome
from controller.telemetry.host import read_memory
from controller.telemetry.observation import HostReading

VARIANTS = ("slow", "fast")
MIB = 1024 * 1024
TAGS = {"fast": 1, "slow": 3}
FILES = {"file:1/alias": b"x"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("variants") / "repository"
    for name, tag in TAGS.items():
        write_model(root, name, tag=tag, delay_s=0.001 * tag)
    write_model(root, "late", tag=4, init_s=1.0)
    write_model(root, "restless", tag=6, restless=True)
    write_model(root, "heavy", tag=5, ballast_mib=600)
    write_model(root, "broken", fail_load=True)
    write_model(root, "cached", extra={"response_cache": {"enable": True}})
    write_model(root, "sequential", extra={"sequence_batching": {}})
    for name, tag in (("stream_slow", 3), ("stream_fast", 1)):
        write_model(root, name, tag=tag, decoupled=True, delay_s=0.1 * tag, responses=5)
    precompile(root)
    return root


def with_memory(policy: Policy, model: str, size: int) -> Policy:
    """Declare what a variant takes of the host's memory."""
    (aliased,) = policy.models
    variants = tuple(
        replace(v, host_memory_bytes=size) if v.model == model else v for v in aliased.variants
    )
    return replace(policy, models=(replace(aliased, variants=variants),))


@pytest.fixture(scope="module")
def server(start_triton, root):
    # The variants that do not batch dynamically: Triton allows one scheduler for a model.
    path = root / "sequential" / "config.pbtxt"
    text = path.read_text().replace("dynamic_batching {\n}\n", "")
    path.write_text(text)
    names = [*VARIANTS, "cached", "sequential", "stream_slow", "stream_fast"]
    return start_triton(root, load_models=names, extra_args=["--cache-config=local,size=1048576"])


@pytest.fixture
async def outside(server):
    client = triton.InferenceServerClient(server.grpc)
    await client.unload_model(ALIAS)
    yield client
    await client.unload_model(ALIAS)
    await client.close()


async def test_h4_h9_h10_a_cold_variant_is_loaded_and_proven_before_it_is_switched_to(
    server, outside
):
    """Its load outlasts its deadline: settled by looking, done once, and nothing stalls."""
    policy = make_policy(server.grpc, "late", *VARIANTS)
    async with governed(
        policy, order=("fast", "slow", "late"), timing=Timing(variant_load_s=0.5)
    ) as test:
        loads = []
        load = test.server.control.load

        async def counted(name, **settings):
            loads.append(name)
            await load(name, **settings)

        test.server.control.load = counted  # before its first load could begin
        await until(lambda: test.reading.ready)
        async with (
            Traffic(server.grpc, ALIAS) as traffic,
            HttpTraffic(server.http, ALIAS) as keep_alive,
        ):
            refused = await test.switch("late", urgent=True)
            assert refused.outcome in (Outcome.REFUSED, Outcome.BUSY)
            await until(lambda: test.of_kind("load"), timeout_s=20.0)
            settled = test.of_kind("load")[0]
            assert (settled.target, settled.outcome) == ("late", Outcome.DONE)
            assert "looking" in settled.reason
            assert loads.count("late") == 1
            await test.ready()
            record = await test.switched("late")
            assert record.outcome is Outcome.DONE
            assert record.switch_s < 0.5
        traffic.check(at_least=50)
        keep_alive.check(at_least=50)
        assert max(answer.latency_s for answer in keep_alive.answers) < 1.0
        assert (await test.switched("fast")).outcome is Outcome.DONE


async def test_h4_h16_a_load_that_fails_changes_nothing_and_is_tried_ever_less_often(
    server, outside
):
    policy = make_policy(server.grpc, "broken", *VARIANTS)
    timing = Timing(backoff_s=0.4)
    async with governed(policy, timing=timing) as test:
        await test.ready(without=("broken",))
        async with Traffic(server.grpc, ALIAS) as traffic:
            await until(lambda: test.of_kind("load"), timeout_s=20.0)
            first = test.of_kind("load")[0]
            assert (first.target, first.outcome) == ("broken", Outcome.FAILED)
            assert "told to fail its load" in first.error
            refused = await test.switch("broken")
            assert refused.outcome is not Outcome.DONE
            await until(lambda: len(test.of_kind("load")) == 2, timeout_s=20.0)
            assert test.variant("broken").retry_s - time.monotonic() > 0.5
            assert await test.target() == "fast"
        traffic.check()


async def test_h16_a_load_for_which_there_is_no_memory_is_not_begun(server, outside):
    await outside.unload_model("late")
    before = make_policy(server.grpc, "late", *VARIANTS)
    policy = with_memory(before, "late", 2 * psutil.virtual_memory().total)
    watch = MemoryWatch(policy, read_memory, tuple)
    order = ("fast", "slow", "late")
    async with governed(policy, order=order, free_memory=watch) as test:
        await test.ready(without=("late",))
        await until(lambda: test.variant("late").error)
        assert "memory is short" in (await test.switch("late")).error
        assert not await outside.is_model_ready("late")
        # An operator who declared too much corrects that.
        await test.actuator.set_policy(with_memory(before, "late", 16 * MIB))
        await test.ready()
        assert (await test.switched("late")).outcome is Outcome.DONE


async def test_h16_a_refusal_for_want_of_memory_is_told_once_and_mended_soon(server, outside):
    await outside.unload_model("late")
    free = {"bytes": 0}
    total = 1 << 40

    def host() -> HostReading:
        return HostReading(memory_used_bytes=total - free["bytes"], memory_total_bytes=total)

    policy = with_memory(make_policy(server.grpc, "late", *VARIANTS), "late", 64 * MIB)
    watch = MemoryWatch(policy, host, tuple)
    async with governed(policy, order=("fast", "slow", "late"), free_memory=watch) as test:
        await test.ready(without=("late",))
        await asyncio.sleep(4.0)
        loads = [record.outcome for record in test.of_kind("load")]
        assert loads.count(Outcome.REFUSED) == 1, loads
        assert Outcome.FAILED not in loads
        free["bytes"] = 1 << 39
        # A second until it is looked at again, half a one between looks, one that it loads for.
        await until(lambda: test.variant("late").proven, timeout_s=4.0)
        # An override that is refused leaves the variant as it was.
        await test.ready()
        free["bytes"] = 0
        record = await test.actuator.load("late", override={"max_batch_size": 16})
        assert record.outcome is Outcome.REFUSED
        assert (await test.switched("late")).outcome is Outcome.DONE
        assert (await test.config("late"))["max_batch_size"] == 8
    await outside.unload_model("late")


async def test_h21_a_variant_that_never_settles_is_not_reloaded_for_ever(server, root, outside):
    policy = make_policy(server.grpc, "restless", *VARIANTS)
    loads = root / "restless" / "1" / "loads"
    async with governed(policy, order=("fast", "slow", "restless")) as test:
        await until(lambda: test.variant("restless").proven, timeout_s=20.0)
        await test.ready(without=("restless",))
        # It has been tried often enough, and is left alone for some time.
        await until(lambda: test.variant("restless").retry_s > time.monotonic() + 10.0)
        before = len(loads.read_text())
        async with Traffic(server.grpc, ALIAS) as traffic:
            await asyncio.sleep(5.0)
            assert len(loads.read_text()) == before
        traffic.check()
        assert not test.variant("restless").warm
    await outside.unload_model("restless")


async def test_h15_h16_an_unload_has_ended_when_its_memory_is_free(server, outside):
    policy = with_memory(make_policy(server.grpc, "heavy", *VARIANTS), "heavy", 600 * MIB)
    watch = MemoryWatch(policy, read_memory, tuple)
    order = ("fast", "slow", "heavy")
    async with governed(policy, order=order, free_memory=watch) as test:
        await test.ready()
        assert test.reading.serving != "heavy"
        loaded = psutil.virtual_memory().available
        assert (await test.actuator.unload("heavy")).outcome is Outcome.DONE
        assert psutil.virtual_memory().available - loaded >= 300 * MIB
        # Where it is not seen to come back, that is said.
        test.server.timing = replace(test.server.timing, unload_s=1.0)
        await test.actuator.load("heavy")
        await test.actuator.set_policy(with_memory(policy, "heavy", 1 << 40))
        late = await test.actuator.unload("heavy")
        assert late.outcome is Outcome.UNKNOWN
        assert "memory is not free" in late.error


async def test_h5_h15_a_variant_is_unloaded_only_when_nothing_points_at_it_and_then_fully(
    server, outside
):
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready()
        await test.switched("slow")
        traffic.answers.clear()
        refused = await test.actuator.unload("slow")
        assert refused.outcome is Outcome.REFUSED
        assert ALIAS in refused.error
        # Somebody else's ensemble counts as much as an alias of ours.
        theirs = json.dumps(alias_config("theirs", "fast"))
        await outside.load_model("theirs", config=theirs, files=FILES)
        await test.switched("fast")
        assert (await test.actuator.unload("fast")).outcome is Outcome.REFUSED
        done = await test.actuator.unload("slow")
        assert done.outcome is Outcome.DONE
        index = await outside.get_model_repository_index()
        assert {m.name: m.state for m in index.models}["slow"] == "UNAVAILABLE"
        await asyncio.sleep(1.2)
        assert not await outside.is_model_ready("slow")
        await outside.unload_model("theirs")
    traffic.check()
    await outside.load_model("slow")


async def test_h6_h7_an_override_survives_what_happens_to_the_folder(server, root, outside):
    policy = make_policy(server.grpc, *VARIANTS)
    override = {"instance_group": [{"kind": "KIND_CPU", "count": 2}]}

    async def instances() -> int:
        return int((await test.config("slow"))["instance_group"][0]["count"])

    async with governed(policy) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready()
        traffic.answers.clear()
        assert (await test.actuator.load("slow", override=override)).outcome is Outcome.DONE
        assert await instances() == 2
        # H7: a plain load is no way to take an override back, and never used as one.
        await outside.load_model("slow")
        assert await instances() == 2
        # H6: the folder changes, so a switch makes Triton reload it as it stands on disk.
        later = time.time() + 1
        os.utime(root / "slow" / "1" / "model.py", (later, later))
        record = await test.switched("slow")
        assert record.outcome is Outcome.ROLLED_BACK
        assert "override" in record.error
        assert await test.target() == "fast"
        await test.ready()
        assert await instances() == 2
        assert (await test.switched("slow")).outcome is Outcome.DONE
        assert await instances() == 2
        await test.switched("fast")
        assert (await test.actuator.load("slow", override={})).outcome is Outcome.DONE
        assert await instances() == 1
    traffic.check()


async def test_h6_a_changed_folder_is_noticed_while_the_variant_is_idle(server, root, outside):
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy, timing=Timing(refresh_s=0.3)) as test:
        await test.ready()
        later = time.time() + 2
        os.utime(root / "slow" / "1" / "model.py", (later, later))
        await until(lambda: test.of_kind("load"), what="the reload")
        await test.ready()
        record = await test.switched("slow")
        assert record.switch_s < 0.5


async def test_h6_a_folder_that_was_broken_does_no_harm(server, root, outside):
    """A half-copied model: Triton keeps the old copy, which serves until the new one is whole."""
    policy = make_policy(server.grpc, *VARIANTS)
    path = root / "slow" / "1" / "model.py"
    good, later = path.read_text(), time.time() + 10
    timing = Timing(refresh_s=0.2, backoff_s=0.3)
    async with governed(policy, timing=timing) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready()
        traffic.answers.clear()
        path.write_text("raise RuntimeError('half of a file')")
        os.utime(path, (later, later))
        await test.switch("slow", urgent=True)
        await test.switch("fast", urgent=True)
        await until(lambda: test.variant("slow").error, what="the failing load is noticed")
        assert "half of a file" in test.variant("slow").error
        assert (await test.switch("slow", urgent=True)).outcome is not Outcome.DONE
        path.write_text(good)
        os.utime(path, (later + 10, later + 10))
        await until(lambda: "slow" not in test.reading.unusable, timeout_s=20.0)
        assert (await test.switched("slow")).outcome is Outcome.DONE
    traffic.check()


async def test_h14_h20_variants_that_a_switch_would_harm_are_refused(server, outside):
    policy = make_policy(server.grpc, "cached", "sequential", *VARIANTS)
    odd = ("cached", "sequential")
    async with governed(policy) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready(without=odd)
        await until(lambda: all(test.variant(name).error for name in odd))
        traffic.answers.clear()
        for name, word in zip(odd, ("response cache", "sequence"), strict=True):
            record = await test.switch(name, urgent=True)
            assert record.outcome is Outcome.REFUSED
            assert word in record.error
        await until(lambda: len(traffic.answers) > 5)
    traffic.check()


async def test_h20_a_stream_ends_on_the_variant_on_which_it_began(server, outside):
    policy = make_policy(server.grpc, "stream_slow", "stream_fast")
    tensor = triton.InferInput("IN", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))

    async def requests():
        yield {"model_name": ALIAS, "inputs": [tensor]}
        await asyncio.sleep(3.0)

    async def stream(tags: list[int]) -> None:
        async for answer, error in outside.stream_infer(requests()):
            assert error is None
            values = answer.as_numpy("TAG")
            if values is not None:
                tags.append(int(values[0, 0]))
            if len(tags) == 5:
                return

    async with governed(policy) as test:
        await test.ready()
        assert (await test.switched("stream_slow")).outcome is Outcome.DONE
        before: list[int] = []
        running = asyncio.create_task(stream(before))
        await until(lambda: before)
        assert (await test.switch("stream_fast", urgent=True)).outcome is Outcome.DONE
        after: list[int] = []
        await stream(after)
        await running
    assert before == [3] * 5
    assert after == [1] * 5


async def test_a_stream_and_a_plain_model_do_not_stand_behind_one_alias(server, outside):
    policy = make_policy(server.grpc, "stream_fast", *VARIANTS)
    async with governed(policy) as test:
        await test.ready(without=("stream_fast",))
        await until(lambda: test.variant("stream_fast").warm)
        record = await test.switch("stream_fast", urgent=True)
        assert record.outcome is Outcome.REFUSED
        assert "stream" in record.error


async def test_h10_a_reload_whose_answer_is_lost_is_not_taken_for_somebody_elses(
    server, outside, tmp_path
):
    """Nor by the next governor, though the first one dies before it knows."""
    state = tmp_path / "alias.json"
    async with Wire(server.grpc) as wire:
        policy = make_policy(wire.address, *VARIANTS)
        async with governed(policy, server=server.grpc, state_file=state) as test:
            await test.ready()
            loading = asyncio.create_task(
                test.actuator.load("slow", override={"max_batch_size": 16})
            )
            await until(lambda: test.variant("slow").operation is not None)
            await asyncio.sleep(0.02)
            await wire.cut(0.5)
            await loading
            written = json.loads(state.read_text())["overrides"]["slow"]
            await test.ready()
            assert int((await test.config("slow"))["max_batch_size"]) == 16
            assert test.variant("slow").override is not None
            assert not [r for r in test.records if "foreign" in r.reason]
    assert written["sent"]["max_batch_size"] == 16
    # As it was written before the load: what a death in the middle leaves behind.
    whole = json.loads(state.read_text())
    whole["overrides"]["slow"] = {**written, "expected": {}}
    state.write_text(json.dumps(whole))
    async with governed(make_policy(server.grpc, *VARIANTS), state_file=state) as test:
        await test.ready()
        assert int((await test.config("slow"))["max_batch_size"]) == 16
        assert not [r for r in test.records if "foreign" in r.reason]
        assert (await test.actuator.load("slow", override={})).outcome is Outcome.DONE
        assert int((await test.config("slow"))["max_batch_size"]) == 8
        await until(lambda: "slow" not in json.loads(state.read_text())["overrides"])


async def test_h5_a_switch_and_an_unload_of_its_target_exclude_each_other(server, outside):
    """Also while the unload is still looking whether anybody uses it."""
    async with governed(make_policy(server.grpc, *VARIANTS)) as test:
        await test.ready()
        idle = next(name for name in VARIANTS if name != test.reading.serving)
        async with Traffic(server.grpc, ALIAS) as traffic:
            unloading = asyncio.create_task(test.actuator.unload(idle))
            await asyncio.sleep(0)  # it has begun to look
            record = await test.switch(idle)
            assert record.outcome in (Outcome.BUSY, Outcome.REFUSED), record
            assert (await unloading).outcome is Outcome.DONE
            await asyncio.sleep(0.2)
        traffic.check()
        assert test.reading.serving != idle
        await test.actuator.load(idle)
        await test.ready()
