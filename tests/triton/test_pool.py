"""The warm pool on a real server: a GPU's memory as the models hold it is never over the budget.

The GPU is a fake `libnvidia-ml.so.1` behind the real bindings. What it tells is what the models of
the test repository hold, from the begin of a load to the end of an unload, two of a reload
included; what is checked is their own log, which misses no moment.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from fake_nvml import compile_fake
from governed import governed, make_policy, precompile, until
from governor_process import GovernorProcess, echo_policy, free_port
from repository import write_model
from traffic import Traffic

from controller.actuation.client import Fault, TritonError
from controller.planning.pool import PoolPlan
from controller.policy.model import MemoryPolicy
from controller.ports import Outcome

MIB = 1 << 20
CONTEXT_MIB = 50  # that Triton's processes hold beside models
BUDGET_MIB = 1020  # the context counts as 64 of it, as it is counted in steps
# Seconds of a row, MiB, quality; Triton's name is the same. Together they hold 1,450 MiB.
VARIANTS = {
    "best": (0.030, 500, 0.95),
    "good": (0.012, 450, 0.90),
    "fair": (0.004, 300, 0.85),
    "fast": (0.001, 200, 0.80),
}


def held_mib(folder: Path) -> list[int]:
    """Return what the models held together after each change, in its order."""
    held, after = CONTEXT_MIB, []
    for line in (folder / ".log").read_text().splitlines():
        held += int(line.split()[0]) // MIB
        after.append(held)
    return after


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The folder in which models say what they hold, with a fake NVML that reads it."""
    folder = tmp_path / "gpu"
    folder.mkdir()
    (folder / "context").write_text(str(CONTEXT_MIB * MIB))
    library = tmp_path / "library"
    library.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_fake(library)))
    monkeypatch.setenv("FAKE_NVML_FILE", str(tmp_path / "behaviour"))
    return folder


# Requests a second, and the best variant that bears them: where it is not loaded, it comes.
SHORT, FULL = ((8.0, "best"),), ((8.0, "best"), (40.0, "good"), (120.0, "fair"))


@pytest.mark.parametrize(
    ("phases", "seconds"),
    [
        (SHORT, 14.0),
        pytest.param(FULL, 100.0, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
async def test_what_is_loaded_follows_the_load_within_the_budget(
    start_triton, tmp_path, monkeypatch, gpu, phases, seconds
):
    root = tmp_path / "repository"
    for tag, (name, (delay_s, mib, _)) in enumerate(VARIANTS.items(), start=1):
        # Not compiled: their first import changes their folders, and the next load reloads them.
        write_model(root, name, tag=tag, delay_s=delay_s, init_s=0.2, gpu_mib=mib, gpu_folder=gpu)
    with monkeypatch.context() as server_env:
        server_env.delenv("LD_LIBRARY_PATH")
        server = start_triton(root)
    (tmp_path / "behaviour").write_text(f"held {gpu}\nprocess {server.pid} held\n")
    policy = echo_policy(server.grpc, server.metrics_url, free_port())
    policy["memory"] = {"gpu_budget": f"{BUDGET_MIB}MiB"}
    policy["models"]["chat"]["objective"]["latency"] = "200ms"
    policy["models"]["chat"]["variants"] = {
        name: {"model": name, "quality": quality} for name, (_, _, quality) in VARIANTS.items()
    }
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    served: list[str] = []
    try:
        await daemon.until(lambda m: m["serving"] is not None, timeout_s=40.0)
        answers = failures = 0
        for rate, bears in phases:
            async with Traffic(server.grpc, "chat", rate=rate) as traffic:
                await asyncio.sleep(seconds)
                status = await asyncio.to_thread(daemon.status)
            answers, failures = answers + len(traffic.answers), failures + len(traffic.failures)
            assert status is not None
            served.append(f"{rate:g}/s: {' '.join(status['memory']['held'])}")
            assert {"fast", bears} <= set(status["memory"]["held"]), (
                served,
                daemon.log.read_text(),
            )
            for name, one in status["memory"]["variants"].items():
                if not one["guessed"]:
                    assert one["gpu_bytes"] == VARIANTS[name][1] * MIB, name
        # What a load took is known once it was proven, which a busy host may need seconds for.
        for _ in range(40):
            if status["actions"]["learned_s"]["load"].keys() >= {"best", "fast"}:
                break
            await asyncio.sleep(0.5)
            status = await asyncio.to_thread(daemon.status)
            assert status is not None
    finally:
        daemon.stop()
    assert failures == 0
    assert answers > 5 * seconds * len(phases)
    most = max(held_mib(gpu))
    print(f"{len(held_mib(gpu))} loads and unloads, at most {most} of {BUDGET_MIB} MiB; {served}")  # noqa: T201 - for the docs
    assert most <= BUDGET_MIB
    measured = status["memory"]["variants"]
    assert not measured["best"]["guessed"]
    assert status["actions"]["learned_s"]["load"].keys() >= {"best", "fast"}


# MiB of ballast, quality, seconds of a row.
ON_HOST = {"best": (260, 0.95, 0.006), "good": (200, 0.90, 0.004), "fast": (40, 0.80, 0.001)}
HOST_BUDGET_MIB = 420  # best and fast, or good and fast
STUB_MIB = 60  # that a Python model holds beside its ballast, at most
APART_MIB = 8  # between what was measured and what its process holds later


def stubs_mib(server_pid: int) -> dict[str, float]:
    """Return what each model's process holds for itself alone (its unique set size)."""
    found: dict[str, float] = {}
    for stub in psutil.Process(server_pid).children(recursive=True):
        try:
            line, held = " ".join(stub.cmdline()), stub.memory_full_info().uss / MIB
        except psutil.Error:
            continue
        name = next((name for name in ON_HOST if f"/{name}/" in line), "other")
        found[name] = found.get(name, 0.0) + held
    return found


@contextlib.asynccontextmanager
async def watched(server_pid: int) -> AsyncIterator[list[float]]:
    """Watch what all models' processes hold together; yields a list that has the most of it."""
    most, watching = [0.0], True

    def watch() -> None:
        while watching:
            most[0] = max(most[0], sum(stubs_mib(server_pid).values()))
            time.sleep(0.1)

    watcher = asyncio.create_task(asyncio.to_thread(watch))
    try:
        yield most
    finally:
        watching = False
        await watcher


async def test_what_is_loaded_on_the_host_is_measured_and_within_its_budget(start_triton, tmp_path):
    """Nothing is declared. What the loads disturb is learned from them meanwhile."""
    root = tmp_path / "repository"
    for tag, (name, (mib, _, delay_s)) in enumerate(ON_HOST.items(), start=1):
        write_model(root, name, tag=tag, delay_s=delay_s, init_s=0.3, ballast_mib=mib)
    precompile(root)
    server = start_triton(root)
    policy = echo_policy(server.grpc, server.metrics_url, free_port())
    policy["memory"] = {"host_budget": f"{HOST_BUDGET_MIB}MiB", "reserve": "0MiB"}
    policy["models"]["chat"]["objective"]["latency"] = "200ms"
    every = {name: {"model": name, "quality": one[1]} for name, one in ON_HOST.items()}
    policy["models"]["chat"]["variants"] = {"fast": every["fast"]}
    daemon = GovernorProcess(tmp_path / "governor", policy)
    daemon.start()
    try:
        await daemon.until(lambda m: m["serving"] is not None, timeout_s=40.0)
        async with watched(server.pid) as most, Traffic(server.grpc, "chat", rate=40.0) as traffic:
            await asyncio.sleep(1.5)
            policy["models"]["chat"]["variants"] = every
            daemon.write_policy(policy)
            began_s = time.monotonic()
            status = None
            while not (
                status is not None
                and status["actions"]["learned_disturbance"].get("load")
                and not status["memory"]["variants"]["best"]["host_guessed"]
            ):
                await asyncio.sleep(0.25)
                status = await asyncio.to_thread(daemon.status)
                late = time.monotonic() - began_s > 25.0
                assert not late, (status and status["memory"], daemon.log.read_text())
    finally:
        daemon.stop()
    traffic.check(at_least=200)
    told = status["memory"]
    held = stubs_mib(server.pid)
    disturbs = status["actions"]["learned_disturbance"]["load"]
    print(f"{held}, at most {most[0]:.0f} MiB; {told['variants']}; {disturbs}")  # noqa: T201 - for the docs
    assert most[0] <= HOST_BUDGET_MIB
    assert told["host_unmeasured"] is None
    assert {"fast", "best"} <= set(told["held"])
    for name in ("fast", "best"):
        assert not told["variants"][name]["host_guessed"]
        measured = told["variants"][name]["host_bytes"] / MIB
        assert ON_HOST[name][0] <= measured <= ON_HOST[name][0] + STUB_MIB
        assert measured == pytest.approx(held[name], abs=APART_MIB)
    assert told["host"]["held_bytes"] <= told["host"]["limit_bytes"]
    assert math.isfinite(disturbs["share"])
    assert 0.0 <= disturbs["share"] <= 0.5
    assert disturbs["operations"] >= 1


async def test_what_others_load_and_what_would_not_unload_is_seen_to_be_there(
    start_triton, tmp_path, monkeypatch
):
    root = tmp_path / "repository"
    for tag, name in enumerate(("good", "fast"), start=1):
        write_model(root, name, tag=tag)
    precompile(root)
    server = start_triton(root)
    policy = make_policy(
        server.grpc, "good", "fast", memory=MemoryPolicy(0, host_budget_bytes=64 << 30)
    )
    async with governed(policy) as test:
        # Under a budget nothing is loaded that no plan names.
        await until(lambda: test.server.reachable)
        test.actuator.set_pool(PoolPlan(frozenset({"fast"}), ("fast",), None))
        await until(lambda: test.reading.ready and test.variant("fast").warm)
        assert not test.variant("good").ready
        # Somebody loads the other: it is there, it counts, and it can be switched to.
        await test.outside.load_model("good")
        await until(lambda: test.variant("good").ready and test.variant("good").proven)
        assert set(test.server.held()) == {"good", "fast"}
        await until(lambda: test.reading.unusable == frozenset())

        # An unload whose answer never came, and which did not happen.
        async def lost(*_, **__):
            raise TritonError(Fault.UNKNOWN, "unload good: no answer")

        with monkeypatch.context() as cut:
            cut.setattr(test.server.control, "unload", lost)
            record = await test.actuator.unload("good")
        assert record.outcome is Outcome.UNKNOWN
        assert "good" in test.server.held(), "until it is seen to be gone it may hold its memory"
        await until(lambda: test.variant("good").ready and test.variant("good").proven)
        assert not test.variant("good").leaving
        # And one that does happen.
        test.actuator.set_pool(PoolPlan(frozenset({"fast"}), (), "good"))
        await until(lambda: test.server.held() == ["fast"])
