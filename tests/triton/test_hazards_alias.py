"""Hazards of the alias itself (H1, H2, H3, H8, H11, H19), provoked from outside under traffic."""

import asyncio
import time

import pytest
import tritonclient.grpc.aio as triton
from governed import ALIAS, governed, make_policy, precompile, until
from repository import Tensor, alias_config, model_config, write_model
from traffic import Traffic

from controller.actuation.state import Timing
from controller.ports import Outcome

VARIANTS = ("slow", "fast")
TAGS = {"fast": 1, "slow": 3}
OTHERS = ("other_type", "renamed", "small")


@pytest.fixture(scope="module")
def server(start_triton, tmp_path_factory):
    root = tmp_path_factory.mktemp("hazards") / "repository"
    for name, tag in TAGS.items():
        write_model(root, name, tag=tag, delay_s=0.001 * tag)
    write_model(root, "other_type", inputs=[Tensor("IN", "TYPE_INT32")])
    write_model(root, "renamed", inputs=[Tensor("INPUT")])
    write_model(root, "small", max_batch_size=2)
    precompile(root)
    return start_triton(root, load_models=[*VARIANTS, *OTHERS])


@pytest.fixture
async def outside(server):
    """Somebody else; leaves the models as they are on disk."""
    client = triton.InferenceServerClient(server.grpc)
    await client.unload_model(ALIAS)
    yield client
    await client.unload_model(ALIAS)
    await client.close()


def changed(name: str, **settings) -> str:
    """A config that makes Triton reload a model, although it does the same."""
    import json

    return json.dumps(model_config(name, **{"tag": TAGS[name], "delay_s": 0.002, **settings}))


async def restore(client, *names: str) -> None:
    for name in names:
        await client.load_model(name, config=changed(name, delay_s=0.001 * TAGS[name]))


OPERATIONS = {
    "reload": {"delay_s": 0.0025},
    "instance up": {"instances": 2, "delay_s": 0.003},
    "instance down": {"instances": 1, "delay_s": 0.003},
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_h1_an_alias_that_triton_reverts_is_pointed_back(server, outside, operation):
    if operation == "instance down":
        await outside.load_model("slow", config=changed("slow", instances=2, delay_s=0.003))
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready()
        await test.switched("slow")
        traffic.answers.clear()
        config = changed("slow", **OPERATIONS[operation])
        reload = asyncio.create_task(outside.load_model("slow", config=config))
        await asyncio.sleep(0.05)
        assert not reload.done()
        assert (await test.switch("fast", urgent=True)).outcome is Outcome.DONE
        await reload
        ended_s = time.monotonic()
        await until(lambda: test.of_kind("reassert"), timeout_s=2.0, what="the re-assertion")
        assert await test.target() == test.reading.serving == "fast"
        assert time.monotonic() - ended_s < 1.0
        assert test.reading.held is None
        mended_s = time.monotonic()
        await until(lambda: len(traffic.tags(mended_s)) > 5)
        assert set(traffic.tags(mended_s)) == {TAGS["fast"]}
    traffic.check(at_least=20)
    await restore(outside, *VARIANTS)


async def test_h2_an_alias_whose_variant_no_longer_fits_is_healed_at_once(server, outside):
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS, rate=100) as traffic:
        await test.ready()
        await test.switched("slow")
        traffic.answers.clear()
        assert (await test.actuator.load("slow", override={"max_batch_size": 2})).outcome is (
            Outcome.REFUSED
        )
        assert (await test.actuator.load("fast", override={"max_batch_size": 2})).outcome is (
            Outcome.REFUSED
        )
        await outside.load_model("slow", config=changed("slow", max_batch_size=2))
        await until(lambda: test.of_kind("heal")[1:], timeout_s=2.0, what="the healing")
        await asyncio.sleep(0.3)
        assert await test.target() == test.reading.serving == "fast"
        assert "slow" in test.reading.unusable
    # The fault itself breaks the service; it is whole again within a second.
    assert traffic.outage_s() < 1.0
    assert traffic.tags()[-1] == TAGS["fast"]
    await restore(outside, *VARIANTS)


@pytest.mark.parametrize("target", [*OTHERS, "missing"])
async def test_h3_a_variant_that_does_not_fit_is_refused_before_triton_is_asked(
    server, outside, target
):
    policy = make_policy(server.grpc, target, *VARIANTS)
    # The promise is made to clients before the odd one is known.
    async with governed(policy) as test:
        await test.ready(without=(target,))
        await until(lambda: test.variant(target).warm or test.variant(target).error)
        before, serial = await test.config(), test.server.serial
        async with Traffic(server.grpc, ALIAS) as traffic:
            for urgent in (False, True):
                record = await test.switch(target, urgent=urgent)
                assert record.outcome is Outcome.REFUSED, record
                assert record.error
            await until(lambda: len(traffic.answers) > 5)
        traffic.check()
        assert await test.config() == before
        assert test.server.serial == serial
        assert target in test.reading.unusable


async def test_h8_an_orphan_is_noticed_by_requests_and_healed(server, outside):
    """Ready, yet every request is a 404: its variant was unloaded behind Triton's own back."""
    import json

    files = {"file:1/alias": b"x"}

    async def point(name: str) -> None:
        config = json.dumps(alias_config(ALIAS, name))
        await outside.load_model(ALIAS, config=config, files=files)

    await point("slow")
    reload = asyncio.create_task(outside.load_model("slow", config=changed("slow", delay_s=0.0025)))
    await asyncio.sleep(0.05)
    await point("fast")
    await reload
    await outside.unload_model("slow")
    await asyncio.sleep(0.1)
    assert await outside.is_model_ready(ALIAS)
    async with Traffic(server.grpc, ALIAS) as traffic:
        await until(lambda: len(traffic.failures) > 5)
        assert "unknown model" in traffic.failures[0].error
        policy = make_policy(server.grpc, *VARIANTS, foreign_hold_s=600.0)
        async with governed(policy) as test:
            await until(lambda: test.actuator.capability.can_act)
            started_s = time.monotonic()
            await until(lambda: test.of_kind("heal"), timeout_s=10.0)
            healed_s = test.of_kind("heal")[0].started_s
            await until(lambda: test.reading.ready)
            mended_s = time.monotonic()
            await until(lambda: len(traffic.tags(mended_s)) > 10)
            assert set(traffic.tags(mended_s)) == {TAGS["fast"]}
            assert healed_s - started_s < 1.0
            assert await test.target() == "fast"
            await test.ready()


async def test_h8_an_orphan_that_arises_under_a_governor_is_healed(server, outside):
    """The worst case: the variant is unloaded in the moment in which the alias is reverted."""
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS, rate=100) as traffic:
        await test.ready()
        await test.switched("slow")
        reload = asyncio.create_task(
            outside.load_model("slow", config=changed("slow", delay_s=0.0025))
        )
        await asyncio.sleep(0.05)
        await test.switch("fast", urgent=True)
        traffic.answers.clear()
        await reload
        await outside.unload_model("slow")
        await until(lambda: test.of_kind("reassert"), timeout_s=3.0)
        await asyncio.sleep(0.3)
        assert await test.target() == "fast"
    assert traffic.outage_s() < 1.0
    assert traffic.tags()[-1] == TAGS["fast"]
    await outside.load_model("slow")


async def test_h11_an_escape_does_not_wait_for_an_instance_that_is_being_removed(server, outside):
    await outside.load_model("slow", config=changed("slow", instances=2, delay_s=0.05))
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS, rate=15) as traffic:
        await test.ready()
        await test.switched("slow")
        traffic.answers.clear()
        down = asyncio.create_task(
            outside.load_model("slow", config=changed("slow", instances=1, delay_s=0.05))
        )
        await asyncio.sleep(0.05)
        assert not down.done()
        started_s = time.monotonic()
        record = await test.switch("fast", urgent=True)
        assert record.outcome is Outcome.DONE
        assert time.monotonic() - started_s < 0.25
        assert not down.done()
        await down
        await until(lambda: test.of_kind("reassert"), timeout_s=2.0)
        assert await test.target() == "fast"
    traffic.check()
    await restore(outside, *VARIANTS)


async def test_h19_a_switch_by_somebody_else_is_reported_and_not_fought(server, outside):
    import json

    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy) as test, Traffic(server.grpc, ALIAS) as traffic:
        await test.ready()
        await test.switched("slow")
        traffic.answers.clear()
        theirs = await test.config()
        theirs["ensemble_scheduling"]["step"][0]["model_name"] = "fast"
        await outside.load_model(ALIAS, config=json.dumps(theirs), files={"file:1/alias": b"x"})
        await until(lambda: test.reading.held, timeout_s=2.0, what="noticed")
        assert test.reading.serving == "fast"
        assert "foreign change" in test.of_kind("adopt")[-1].reason
        refused = await test.switch("slow", urgent=True)
        assert refused.outcome is Outcome.REFUSED
        assert "held" in refused.error
        await asyncio.sleep(0.6)
        assert await test.target() == "fast"
        test.actuator.resume(ALIAS)
        assert test.reading.held is None
        assert (await test.switched("slow")).outcome is Outcome.DONE
    traffic.check()


async def test_h19_a_hold_ends_by_itself(server, outside):
    import json

    policy = make_policy(server.grpc, *VARIANTS, foreign_hold_s=0.5)
    async with governed(policy) as test:
        await test.ready()
        await test.switched("slow")
        theirs = json.dumps(alias_config(ALIAS, "fast"))
        await outside.load_model(ALIAS, config=theirs, files={"file:1/alias": b"x"})
        await until(lambda: test.reading.held, timeout_s=2.0)
        await until(lambda: not test.reading.held, timeout_s=2.0)
        assert (await test.switched("slow")).outcome is Outcome.DONE


async def test_h19_a_variant_that_somebody_unloads_is_not_loaded_again(server, outside):
    policy = make_policy(server.grpc, *VARIANTS)
    async with governed(policy, timing=Timing(index_s=0.2)) as test:
        await test.ready()
        assert test.reading.serving == "fast"
        await outside.unload_model("slow")
        await until(lambda: "slow" in test.reading.unusable, timeout_s=3.0)
        await until(lambda: any("unloaded" in r.reason for r in test.of_kind("adopt")))
        await asyncio.sleep(1.0)
        assert not await outside.is_model_ready("slow")
        record = await test.actuator.load("slow")
        assert record.outcome is Outcome.DONE
        await test.ready()
        assert (await test.switched("slow")).outcome is Outcome.DONE


async def test_a_calm_alias_is_looked_at_less_often_and_its_loss_is_healed_as_fast(server, outside):
    policy = make_policy(server.grpc, *VARIANTS)
    # So rare a look that only the counts can tell of the loss in time.
    timing = Timing(calm_look_s=30.0)
    async with (
        governed(policy, timing=timing) as test,
        Traffic(server.grpc, ALIAS, rate=100) as traffic,
    ):
        await test.ready()
        await test.switched("slow")
        await asyncio.sleep(1.0)
        looks: list[str] = []
        ask = test.server.control.model_config

        async def counting(name: str, *, deadline_s: float) -> dict:
            looks.append(name)
            return await ask(name, deadline_s=deadline_s)

        test.server.control.model_config = counting
        await asyncio.sleep(4.0)
        assert looks.count(ALIAS) <= 1
        traffic.answers.clear()
        heals = len(test.of_kind("heal"))  # it was created by one
        await outside.unload_model(ALIAS)
        await until(lambda: len(test.of_kind("heal")) > heals, timeout_s=10.0)
        await asyncio.sleep(0.3)
    assert traffic.failures
    assert traffic.outage_s() < 1.0
    assert traffic.tags()[-1] == TAGS["slow"]
