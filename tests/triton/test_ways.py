"""The ways in and out of governing, on a real Triton: advise, one model, all, and out again."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from governor_process import GovernorProcess, echo_policy, free_port
from repository import fill_repository
from traffic import Traffic
from tritonclient.utils import InferenceServerException

from controller.embedded.ladder import Ladder, sample_requests
from controller.embedded.server import RunningServer

# Tags of the echo models, by the policy's names.
TAG = {"fast": 1, "mid": 2, "slow": 3}


def governor_says(governor: GovernorProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "TRITON_GOVERNOR_SOCKET": str(governor.socket),
        "STATE_DIRECTORY": str(governor.folder),
        "COLUMNS": "100",
    }
    command = [sys.executable, "-m", "controller.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return fill_repository(tmp_path_factory.mktemp("ways") / "repository")


@pytest.fixture(scope="module")
def server(start_triton, root) -> RunningServer:
    names = ("echo_fast", "echo_mid", "echo_slow")
    return start_triton(root, load_models=names)


@pytest.fixture
def otlp_port() -> int:
    return free_port()


def policy_of(server: RunningServer, otlp_port: int, **changes):
    """The policy of the echo models, with time enough that the best variant is always in time.

    The 60 ms that it otherwise has are not enough where the one probe of `slow` met a busy machine:
    30 ms instead of 10 are 60.5 ms for one in a hundred, and what is released is not probed again.
    """
    policy = echo_policy(server.grpc, server.metrics_url, otlp_port, **changes)
    policy["models"]["chat"]["objective"]["latency"] = "500ms"
    return policy


def _is_known(model) -> bool:
    return bool(model["candidates"]) and all(c["known"] for c in model["candidates"])


async def _tag(grpc: str, alias: str = "chat") -> int:
    async with triton.InferenceServerClient(grpc) as client:
        tensor = triton.InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        answer = await client.infer(alias, [tensor], client_timeout=5.0)
        return int(answer.as_numpy("TAG")[0, 0])


async def test_a_model_is_handed_back_on_a_variant_over_restarts_of_both(
    start_triton, root, otlp_port, tmp_path
):
    server = start_triton(root, load_models=("echo_fast", "echo_mid", "echo_slow"))
    governor = GovernorProcess(tmp_path / "governor", policy_of(server, otlp_port))
    governor.start()
    try:
        await governor.until(lambda m: _is_known(m) and m["serving"] == "slow")
        async with Traffic(server.grpc, "chat", rate=30.0) as traffic:
            arguments = ("release", "chat", "--on", "mid", "--why", "a new team")
            said = await asyncio.to_thread(governor_says, governor, *arguments)
            assert said.returncode == 0, said.stderr
            assert "it stays on mid" in said.stdout
            assert "gone when Triton restarts" in said.stdout
            assert await _tag(server.grpc) == TAG["mid"]
            released_s = time.monotonic()
            # `slow` would be better, and nobody goes there.
            await governor.until(lambda m: m["reason"] == "released" and m["desired"] == "slow")
            governor.stop()
            governor.start()
            await governor.until(lambda m: m["released"] is not None and m["serving"] == "mid")
            await asyncio.sleep(1.5)
            assert governor.model()["serving"] == "mid"
        traffic.check(at_least=30)
        # Until then it may have gone anywhere: a busy machine makes the best variant late.
        assert set(traffic.tags(released_s)) == {TAG["mid"]}
        arguments = ("release", "chat", "--write-config", str(root))
        said = await asyncio.to_thread(governor_says, governor, *arguments)
        assert said.returncode == 0, said.stderr
        assert governor.model()["released"]["why"] == "a new team"
        # Somebody else's word on the server now: looked at, and left alone.
        shown = await asyncio.to_thread(governor_says, governor, "status")
        assert "RELEASED" in shown.stdout
        assert "governor adopt chat" in shown.stdout
    finally:
        governor.stop()
    server.stop()
    # The governor is gone for good, and the name that clients call is not.
    again = start_triton(root, load_models=("chat",))
    try:
        assert await _tag(again.grpc) == TAG["mid"]
    finally:
        again.stop()
        for path in sorted((root / "chat").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (root / "chat").rmdir()


async def test_adopt_takes_it_over_again_and_a_busy_alias_is_waited_for(
    server, otlp_port, tmp_path
):
    governor = GovernorProcess(tmp_path / "governor", policy_of(server, otlp_port))
    governor.start()
    try:
        await governor.until(lambda m: _is_known(m) and m["serving"] == "slow")
        async with Traffic(server.grpc, "chat", rate=30.0) as traffic:
            for variant in ("fast", "mid"):
                body = {"model": "chat", "on": variant}
                answer = await asyncio.to_thread(governor.ask, "POST", "/v1/release", body)
                assert f"it stays on {variant}" in answer["message"]
                assert await _tag(server.grpc) == TAG[variant]
                refused = await asyncio.to_thread(
                    governor.ask, "POST", "/v1/release", {"model": "chat", "on": "slow"}
                )
                assert "adopt it first" in refused["error"]
                await asyncio.to_thread(governor.ask, "POST", "/v1/adopt", {"model": "chat"})
                await governor.until(lambda m: m["serving"] == "slow", what="acted on again")
        traffic.check(at_least=5)
    finally:
        governor.stop()


async def test_advise_then_one_model_then_what_it_would_have_done(server, otlp_port, tmp_path):
    policy = policy_of(server, otlp_port, mode="advise")
    policy["probing"]["while_advising"] = True
    chat = policy["models"]["chat"]
    # The same variants behind another name: one is acted on, the other is not.
    policy["models"] = json.loads(json.dumps({"talk": {**chat, "mode": "act"}, "chat": chat}))
    governor = GovernorProcess(tmp_path / "governor", policy)
    async with triton.InferenceServerClient(server.grpc) as client:
        with contextlib.suppress(InferenceServerException):
            await client.unload_model("chat")  # what the test before left there
        governor.start()
        try:
            await governor.until(lambda m: _is_known(m) and m["serving"] == "slow")
            models = {m["name"]: m for m in (governor.status() or {})["models"]}
            assert {name: m["mode"] for name, m in models.items()} == {
                "talk": "act",
                "chat": "advise",
            }
            # An alias of somebody else's, on the fastest one: advised on, never touched.
            config = json.loads(json.dumps(await _config(client, "talk")))
            config["name"] = "chat"
            config["ensemble_scheduling"]["step"][0]["model_name"] = "echo_fast"
            config.pop("parameters", None)
            await client.load_model("chat", config=json.dumps(config), files={"file:1/x": b"x"})
            async with Traffic(server.grpc, "chat", rate=20.0) as traffic:
                await _until_advised(governor)
                await asyncio.sleep(3.0)
            traffic.check(at_least=20)
            assert set(traffic.tags()) == {TAG["fast"]}
        finally:
            governor.stop()
            await client.unload_model("chat")
    said = await asyncio.to_thread(governor_says, governor, "advice", "--since", "5m", "--json")
    assert said.returncode == 0, said.stderr
    found = {m["name"]: m for m in json.loads(said.stdout)["models"]}
    assert found["chat"]["acted_ratio"] == 0.0
    assert found["talk"]["acted_ratio"] > 0.5
    variants = {v["variant"]: v for v in found["chat"]["variants"]}
    assert variants["fast"]["served_ratio"] == 1.0
    assert variants["slow"]["chosen_ratio"] > 0.5
    gain = found["chat"]["as_chosen"]["predicted_effective_quality"]
    assert gain > found["chat"]["as_served"]["predicted_effective_quality"]
    # Which variant served, without a daemon.
    said = await asyncio.to_thread(
        governor_says, governor, "served", "chat", "--at", f"{time.time() - 2.0:.3f}", "--json"
    )
    assert json.loads(said.stdout)["variants"] == ["fast"]


async def _config(client, name: str):
    answer = await client.get_model_config(name, as_json=True)
    return answer["config"]


async def _until_advised(governor: GovernorProcess) -> None:
    ends_s = time.monotonic() + 20.0
    while time.monotonic() < ends_s:
        models = {m["name"]: m for m in (await asyncio.to_thread(governor.status) or {})["models"]}
        if models["chat"]["serving"] == "fast" and models["chat"]["desired"] == "slow":
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not advised: {models['chat']}")


async def test_a_response_does_not_tell_which_variant_it_is_from_and_an_output_can(server):
    """What docs/which-variant.md says of an unmodified Triton."""
    async with triton.InferenceServerClient(server.grpc) as client:
        tensor = triton.InferInput("IN", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        await client.load_model("echo")
        answer = (await client.infer("echo", [tensor], request_id="r-1")).get_response()
        await client.unload_model("echo")
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "r-1")
    assert "echo_fast" not in str(answer)
    assert [output.name for output in answer.outputs if output.name == "TAG"] == ["TAG"]


@pytest.mark.timeout(300, func_only=True)
def test_measured_quality_is_that_of_the_ladder(start_triton, ladder: Ladder, tmp_path):
    names = tuple(variant.model for variant in ladder.variants)
    server = start_triton(ladder.repository, load_models=names[:-1])  # the last one is not loaded
    rows = sample_requests(ladder)
    np.savez(tmp_path / "rows.npz", page=rows.pages, labels=rows.labels, source=rows.sources)
    policy = {
        "version": 1,
        "triton": {"grpc": server.grpc},
        "models": {
            "digits": {
                "objective": {"latency": "60ms", "percentile": 99},
                "variants": {v.name: {"model": v.model, "quality": 0.5} for v in ladder.variants},
            }
        },
    }
    (tmp_path / "policy.json").write_text(json.dumps(policy))  # JSON is YAML
    command = [sys.executable, "-m", "controller.cli.main", "quality", "digits", "--json"]
    command += ["--policy", str(tmp_path / "policy.json"), "--data", str(tmp_path / "rows.npz")]
    command += ["--group", "source", "--samples", "1000", "--max-rate", "500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # one of them was not measured
    found = {one["variant"]: one for one in json.loads(done.stdout)["variants"]}
    last = ladder.variants[-1].name
    assert "not loaded" in found[last]["skipped"]
    for variant in ladder.variants[:-1]:
        quality = found[variant.name]["quality"]
        assert quality["groups"] == 100
        # Three standard errors: five of these at 95 % would miss in a fifth of all samples.
        half = 1.5 * (quality["high"] - quality["low"]) / 2.0
        assert abs(quality["mean"] - variant.quality) < half, (variant, quality)
    # And with the same rows, exactly what was right when the ladder was made.
    places = np.flatnonzero(np.isin(rows.sources, _sampled(rows.sources, 1000)))
    for place, variant in enumerate(ladder.variants[:-1]):
        share = rows.correct[place][places].mean()
        assert abs(found[variant.name]["quality"]["mean"] - share) <= 0.002, variant


def _sampled(sources, most: int):
    from controller.quality.data import Rows, sample

    some = sample(Rows({"x": np.arange(len(sources))}, groups=sources), most, seed=0)
    return np.unique(some.groups)
