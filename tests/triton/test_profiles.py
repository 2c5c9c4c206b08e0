"""Batch profiles on a real server: made on disk, loaded, switched between under traffic."""

import asyncio
import statistics

import pytest
from governed import ALIAS, governed
from repository import write_model
from traffic import Traffic

from controller.actuation.profiles import materialise
from controller.doctor.finding import Level
from controller.doctor.models import check_models
from controller.policy.load import parse_policy
from controller.policy.model import Policy
from controller.ports import Outcome

MODELS = ("echo", "echo_b2", "echo_b4")


def policy_for(grpc: str, *, b4: int = 4) -> Policy:
    return parse_policy(
        f"""\
version: 1
triton: {{grpc: "{grpc}"}}
models:
  {ALIAS}:
    objective: {{latency: 60ms, percentile: 99}}
    client_max_batch: 2
    variants:
      whole:
        model: echo
        quality: 0.9
        max_batch: 8
        profiles:
          b2: {{model: echo_b2, max_batch: 2}}
          b4: {{model: echo_b4, max_batch: {b4}}}
""",
        "policy.yaml",
    )


@pytest.fixture(scope="module")
def server(start_triton, tmp_path_factory):
    root = tmp_path_factory.mktemp("profiles") / "repository"
    write_model(root, "echo", delay_s=0.001, tag=1)
    list(materialise(policy_for("127.0.0.1:8001").models, root))
    return start_triton(root)


async def test_profiles_are_switched_between_under_traffic_and_nothing_fails(server):
    async with governed(policy_for(server.grpc)) as test:
        await test.ready()
        limits = [int((await test.config(model))["max_batch_size"]) for model in MODELS]
        assert limits == [8, 2, 4]
        async with Traffic(server.grpc, ALIAS, rate=100.0) as traffic:
            for turn in range(30):
                await test.switched(("whole.b2", "whole.b4", "whole")[turn % 3])
            await asyncio.sleep(0.2)
        traffic.check(at_least=30)
        assert await test.target() == "echo"
        assert int((await test.config())["max_batch_size"]) == 2  # as clients are promised
        switches = [r for r in test.of_kind("switch") if r.outcome is Outcome.DONE]
        assert {record.target for record in switches} == set(MODELS)
        # Two links to one folder would reload one model when the other is imported.
        assert statistics.median(record.switch_s for record in switches) < 0.1


async def test_a_profile_that_is_not_as_the_policy_says_is_found(server):
    async with governed(policy_for(server.grpc)) as test:
        await test.ready()
        told = {
            b4: [
                finding.message
                for finding in await check_models(
                    test.outside, {}, policy_for(server.grpc, b4=b4).models
                )
                if finding.level is Level.FAIL
            ]
            for b4 in (4, 6)
        }
    assert told[4] == []
    assert told[6] == [
        "echo_b4 takes 4 rows at once, but the policy says 6: what is predicted of it is wrong"
    ]
