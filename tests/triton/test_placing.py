"""The GPU that was chosen for a variant, as it is sent to a real server.

There is no GPU here, so Triton is told of one at the edge: what it says of its groups of instances
is taken for GPUs 0 and 1, and what is sent of GPUs it gets as it is, or as processors of the host.
Placement itself is not tested by this.
"""

import copy
from dataclasses import replace

import pytest
from governed import ALIAS, governed, make_policy, precompile, until
from repository import write_model
from traffic import Traffic

from controller.actuation.client import TritonControl
from controller.actuation.places import gpus_of
from controller.actuation.timing import Timing
from controller.policy.model import Policy

VARIANTS = ("echo_good", "echo_fast")
SOON = Timing(calm_s=0.5)


@pytest.fixture(scope="module")
def server(start_triton, tmp_path_factory):
    root = tmp_path_factory.mktemp("placing") / "repository"
    write_model(root, "echo_good", delay_s=0.004, tag=1)
    write_model(root, "echo_fast", delay_s=0.002, tag=2)
    precompile(root)
    return start_triton(root)


def placing(policy: Policy) -> Policy:
    """The policy that lets the governor choose."""
    return replace(
        policy,
        models=tuple(
            replace(m, variants=tuple(replace(v, gpus=()) for v in m.variants))
            for m in policy.models
        ),
    )


class Edge:
    """What goes over gRPC, with GPUs in place of the host's processors."""

    def __init__(self, monkeypatch, *, as_it_is: bool) -> None:
        self.sent: list[tuple[str, dict]] = []
        self.on: dict[str, list[int]] = {}
        load, look = TritonControl.load, TritonControl.model_config

        async def loading(control, model, *, override=None, **more):
            if override is not None and model != ALIAS:
                self.sent.append((model, copy.deepcopy(dict(override))))
                if not as_it_is:
                    groups = [
                        {**g, "kind": "KIND_CPU", "gpus": []} for g in override["instance_group"]
                    ]
                    override = {**override, "instance_group": groups}
            await load(control, model, override=override, **more)
            if override is not None and model != ALIAS:
                self.on[model] = list(gpus_of(self.sent[-1][1]))

        async def looking(control, model, **more):
            seen = copy.deepcopy(await look(control, model, **more))
            for group in () if model == ALIAS else seen["instance_group"]:
                group["kind"], group["gpus"] = "KIND_GPU", self.on.get(model, [0, 1])
            return seen

        monkeypatch.setattr(TritonControl, "load", loading)
        monkeypatch.setattr(TritonControl, "model_config", looking)


def told(test, model: str) -> str:
    return str(test.actuator.describe()["variants"][model]["gpus"])


async def test_a_gpu_that_triton_does_not_have_is_refused_and_the_variant_stays_as_it_was(
    server, monkeypatch
):
    policy = placing(make_policy(server.grpc, *VARIANTS))
    edge = Edge(monkeypatch, as_it_is=True)
    async with governed(policy, timing=SOON) as test:
        await test.ready()
        serving = test.reading.serving
        idle = next(name for name in VARIANTS if name != serving)
        assert test.actuator.placement() == dict.fromkeys(VARIANTS, (0, 1))
        async with Traffic(server.grpc, ALIAS, rate=50.0) as traffic:
            test.actuator.place({idle: (1,), serving: (0,)})
            await until(lambda: "does not load it on GPU 1" in told(test, idle))
            await until(lambda: len(traffic.answers) >= 5)  # it may be refused before
        print(told(test, idle))  # noqa: T201 - the words of this Triton
        traffic.check(at_least=5)
        ((model, config),) = edge.sent[:1]
        assert model == idle
        assert [(g["kind"], g["gpus"], g["count"]) for g in config["instance_group"]] == [
            ("KIND_GPU", [1], 1)
        ]
        assert {k: v for k, v in config.items() if k != "instance_group"} == {
            k: v for k, v in test.variant(idle).config.items() if k != "instance_group"
        }
        # What serves was not touched, and the other can be switched to.
        assert {name for name, _ in edge.sent} == {idle}
        assert "pending: GPU 0" in told(test, serving)
        await test.ready(without=(serving,))
        await test.switched(idle)


async def test_it_is_reloaded_while_it_is_idle_and_goes_there_again_after_a_restart(
    server, monkeypatch, tmp_path
):
    policy, state = placing(make_policy(server.grpc, *VARIANTS)), tmp_path / "state.json"
    edge = Edge(monkeypatch, as_it_is=False)
    async with governed(policy, timing=SOON, state_file=state) as test:
        await test.ready()
        serving = test.reading.serving
        idle = next(name for name in VARIANTS if name != serving)
        async with Traffic(server.grpc, ALIAS, rate=50.0) as traffic:
            test.actuator.place({idle: (1,), serving: (0,)})
            await until(lambda: told(test, idle) == "on GPU 1")
            await test.ready(without=(serving,))
            await test.switched(idle)
            await until(lambda: told(test, serving) == "on GPU 0")
        traffic.check(at_least=20)
        assert test.actuator.placement() == {idle: (1,), serving: (0,)}
        # Somebody unloads it: it comes back where it was chosen to be, not as in its folder.
        count = len(edge.sent)
        await test.actuator.unload(serving)
        await test.actuator.load(serving)
        assert [gpus_of(c) for m, c in edge.sent[count:] if m == serving][:1] == [(0,)]
    async with governed(policy, timing=SOON, state_file=state) as again:
        await until(lambda: again.actuator._keeper is not None)
        assert again.server.aims == {idle: (1,), serving: (0,)}
