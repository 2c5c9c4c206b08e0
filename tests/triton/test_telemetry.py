"""Telemetry on a real server: counts, traces, service times, restarts, restricted protocols."""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from repository import alias_config, fill_repository

from controller.embedded.server import RunningServer, free_ports
from controller.policy.model import (
    GpuPolicy,
    GpuSource,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry import sampling
from controller.telemetry.hub import Reading, Telemetry

ALIAS = "echo"
VARIANTS = ("echo_fast", "echo_mid", "echo_slow")
LOADED = (*VARIANTS, ALIAS)
TRACES_PER_S = 10.0
ANSWER_S = 10.0  # a server that was taken down leaves requests without an answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def as_on_a_sturdy_server(monkeypatch):
    """Few requests are traced here: too few for the race in this server's tracing to matter.

    With 40 a second it took the server down once (signal 11, on 2026-11-28).
    """
    monkeypatch.setattr(sampling, "FRAGILE_TARGET_PER_S", TRACES_PER_S)
    monkeypatch.setattr(sampling, "FRAGILE_LEAST_RATE", 1)


class Bench:
    """A server that posts its traces to a port of ours, and clients of its alias."""

    def __init__(self, server: RunningServer, traces_port: int) -> None:
        self.server = server
        self.traces_port = traces_port

    def policy(self, *, metrics: bool = True, traces: bool = True, **triton_settings) -> Policy:
        variants = tuple(
            VariantPolicy(name, name, 0.8 + 0.05 * rank) for rank, name in enumerate(VARIANTS)
        )
        return Policy(
            triton=TritonPolicy(
                self.server.grpc,
                self.server.metrics_url if metrics else None,
                f"127.0.0.1:{self.traces_port}" if traces else None,
                **triton_settings,
            ),
            models=(ModelPolicy(ALIAS, Objective(0.06, 99.0), variants, client_max_batch=8),),
            gpu=GpuPolicy(GpuSource.NONE),
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[triton.InferenceServerClient]:
        client = triton.InferenceServerClient(self.server.grpc)
        try:
            yield client
        finally:
            await client.close()


@asynccontextmanager
async def watching(policy: Policy) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry(policy)
    await telemetry.start()
    try:
        yield telemetry
    finally:
        await telemetry.stop()


async def read_until(
    telemetry: Telemetry, what: Callable[[Reading], bool], within_s: float = 20.0
) -> list[Reading]:
    readings = []
    async with asyncio.timeout(within_s):
        while True:
            readings.append(await telemetry.read(0.05))
            if what(readings[-1]):
                return readings
            await asyncio.sleep(0.02)


async def ask(client: triton.InferenceServerClient, model: str = ALIAS, rows: int = 1) -> float:
    """Send one request and return how long the answer took, in seconds."""
    tensor = triton.InferInput("IN", [rows, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 1), np.float32))
    began_s = time.monotonic()
    await client.infer(model, [tensor], client_timeout=ANSWER_S)
    return time.monotonic() - began_s


async def load(client: triton.InferenceServerClient, rate: float, seconds: float) -> int:
    """Send at a rate on a clock; return how many were answered."""
    began_s, tasks = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began_s + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(ask(client)))
    return len(await asyncio.gather(*tasks))


async def switch(client: triton.InferenceServerClient, variant: str) -> None:
    await client.load_model(ALIAS, config=json.dumps(alias_config(ALIAS, variant)))


async def batches_of(client: triton.InferenceServerClient, model: str) -> int:
    stats = await client.get_inference_statistics(model)
    return stats.model_stats[0].execution_count


async def settings_of(client: triton.InferenceServerClient, model: str | None) -> dict:
    return (await client.get_trace_settings(model, as_json=True))["settings"]


@pytest.fixture(scope="module")
def bench(start_triton, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    port = free_port()
    server = start_triton(
        fill_repository(tmp_path_factory.mktemp("telemetry") / "repository"),
        load_models=LOADED,
        otlp_url=f"http://127.0.0.1:{port}/v1/traces",
        trace_rate=1000,
    )
    return Bench(server, port)


async def test_every_request_is_counted_once_and_to_the_variant_that_served(bench):
    async with bench.client() as client, watching(bench.policy()) as telemetry:
        await switch(client, "echo_fast")
        await read_until(telemetry, lambda r: r.triton_up and r.readings_age_s is not None)
        done = dict.fromkeys(VARIANTS, 0)
        work = asyncio.create_task(load(client, 100.0, 1.0))
        while not work.done():
            for name, variant in (await telemetry.read(0.02)).variants.items():
                done[name] += variant.completed_requests
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        for name, variant in (await telemetry.read(1.0)).variants.items():
            done[name] += variant.completed_requests
        assert done == {"echo_fast": work.result(), "echo_mid": 0, "echo_slow": 0}


async def test_traces_tell_the_latency_the_queue_and_who_served_across_switches(bench):
    async with bench.client() as client, watching(bench.policy()) as telemetry:
        await read_until(telemetry, lambda r: detail(r, "sampling") == "echo 1/1")
        for variant, compute_s in (("echo_slow", 0.010), ("echo_fast", 0.001)):
            await switch(client, variant)
            seen_s = [await ask(client) for _ in range(5)]
            samples: list = []
            arrived_s = []
            async with asyncio.timeout(5.0):
                while len(samples) < 5:
                    reading = await telemetry.read(0.02)
                    samples += reading.request_samples
                    arrived_s += [
                        reading.now_s - sample.start_s - sample.latency_s
                        for sample in reading.request_samples
                    ]
                    await asyncio.sleep(0.01)
            assert {(s.alias, s.model) for s in samples} == {(ALIAS, variant)}
            for sample, client_s in zip(samples, seen_s, strict=True):
                assert compute_s <= sample.compute_s < sample.latency_s < client_s + 0.005
                assert sample.queue_s is not None
                assert sample.batch_requests == 1
            assert max(arrived_s) < 0.5
            assert min(arrived_s) > -0.05


async def test_requests_that_shared_a_batch_say_so(bench):
    async with bench.client() as client, watching(bench.policy()) as telemetry:
        await switch(client, "echo_slow")
        await read_until(telemetry, lambda r: detail(r, "sampling") == "echo 1/1")
        before = await batches_of(client, "echo_slow")
        await asyncio.gather(*(ask(client) for _ in range(6)))
        readings = await read_until(telemetry, lambda r: bool(r.request_samples))
        await asyncio.sleep(0.4)
        readings.append(await telemetry.read(0.1))
        # A batch is counted after its responses have gone out: asked at once, the server can
        # still lack the last one.
        ran = await batches_of(client, "echo_slow") - before
        samples = [sample for reading in readings for sample in reading.request_samples]
        assert len(samples) == 6
        # Which of them share a batch is the scheduler's to say; that it is said must be exact.
        told = Counter(sample.batch_requests for sample in samples)
        assert all(count % size == 0 for size, count in told.items())
        assert sum(count // size for size, count in told.items()) == ran < 6


async def test_batch_statistics_are_exact_and_their_age_is_known(bench):
    async with bench.client() as client, watching(bench.policy()) as telemetry:
        await switch(client, "echo_mid")
        await ask(client)
        await read_until(telemetry, lambda r: r.triton_up)
        await asyncio.sleep(1.0)
        await telemetry.read(0.1)
        for rows in (1, 1, 1, 4):
            await ask(client, rows=rows)
        samples: list = []
        async with asyncio.timeout(5.0):
            while sum(sample.executions for sample in samples) < 4:
                samples += (await telemetry.read(0.05)).batch_samples
                await asyncio.sleep(0.05)
        runs = {1: 0, 4: 0}
        for sample in samples:
            runs[sample.rows] += sample.executions
            assert sample.model == "echo_mid"
            assert not sample.after_action
            assert 0.0 <= sample.age_s < 2.0
            assert 0.004 * sample.rows <= sample.mean_service_s < 0.004 * sample.rows + 0.02
        assert runs == {1: 3, 4: 1}


async def test_the_first_runs_after_a_load_are_marked(bench):
    async with bench.client() as client, watching(bench.policy()) as telemetry:
        await switch(client, "echo_fast")
        await read_until(telemetry, lambda r: r.triton_up)
        await client.unload_model("echo_slow")
        await read_until(telemetry, lambda r: r.variants["echo_slow"].ready is False)
        telemetry.note_action("echo_slow", time.monotonic())
        await client.load_model("echo_slow")
        telemetry.note_action("echo_slow", time.monotonic())
        await ask(client, "echo_slow")
        readings = await read_until(telemetry, lambda r: bool(r.batch_samples))
        assert readings[-1].variants["echo_slow"].ready is True
        assert [(s.model, s.after_action) for s in readings[-1].batch_samples] == [
            ("echo_slow", True)
        ]


async def test_sampling_follows_the_load_for_the_alias_alone_and_is_undone_at_stop(bench):
    async with bench.client() as client:
        before = await settings_of(client, ALIAS)
        async with watching(bench.policy()) as telemetry:
            await switch(client, "echo_fast")
            await read_until(telemetry, lambda r: detail(r, "sampling") == "echo 1/1")
            work = asyncio.create_task(load(client, 5.0 * TRACES_PER_S, 5.0))
            counted = []
            while not work.done():
                counted += [s.start_s for s in (await telemetry.read(0.02)).request_samples]
                await asyncio.sleep(0.03)
            rate = int((await settings_of(client, ALIAS))["trace_rate"]["value"][0])
            assert 3 <= rate <= 8
            settled = [s for s in counted if s > counted[-1] - 2.0]
            assert TRACES_PER_S / 2.0 <= len(settled) / 2.0 <= TRACES_PER_S * 2.0
            others = await settings_of(client, "echo_fast")
            assert others["trace_rate"]["value"] == ["1000"]
        assert await settings_of(client, ALIAS) == before


async def test_traces_are_off_while_nobody_can_receive_them(bench):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", bench.traces_port))
        other.listen()
        async with bench.client() as client:
            before = await settings_of(client, ALIAS)
            async with watching(bench.policy()) as telemetry:
                await read_until(telemetry, lambda r: detail(r, "sampling") == "off")
                assert (await settings_of(client, ALIAS))["trace_level"]["value"] == ["OFF"]
                reading = await telemetry.read(0.1)
                assert reading.triton_up
                assert "cannot listen" in (health(reading, "traces").error or "")
            assert await settings_of(client, ALIAS) == before


async def test_the_rate_of_traces_that_go_to_somebody_else_is_left_alone(bench):
    async with bench.client() as client:
        before = await settings_of(client, ALIAS)
        elsewhere = Bench(bench.server, free_port())
        async with watching(elsewhere.policy()) as telemetry:
            (*_, reading) = await read_until(
                telemetry, lambda r: health(r, "sampling").error is not None
            )
            assert f"127.0.0.1:{elsewhere.traces_port}" in health(reading, "sampling").error
            assert await settings_of(client, ALIAS) == before


async def test_without_a_metrics_page_the_statistics_count(bench):
    policy = bench.policy(metrics=False, traces=False)
    async with bench.client() as client, watching(policy) as telemetry:
        await switch(client, "echo_fast")
        await read_until(telemetry, lambda r: r.readings_age_s is not None)
        for _ in range(5):
            await ask(client)
        done = 0
        async with asyncio.timeout(5.0):
            while done < 5:
                fast = (await telemetry.read(0.02)).variants["echo_fast"]
                done += fast.completed_requests
                assert fast.pending_requests is None
                await asyncio.sleep(0.02)
        assert done == 5


async def test_a_server_that_comes_late_dies_and_returns_is_followed(
    bench, start_triton, tmp_path: Path
):
    ports, traces_port = free_ports(), free_port()
    root = fill_repository(tmp_path / "repository")
    later = Bench(bench.server, traces_port)
    policy = later.policy()
    policy = Policy(
        triton=TritonPolicy(
            f"127.0.0.1:{ports.grpc}",
            f"http://127.0.0.1:{ports.metrics}/metrics",
            f"127.0.0.1:{traces_port}",
        ),
        models=policy.models,
        gpu=policy.gpu,
    )
    async with watching(policy) as telemetry:
        (*_, reading) = await read_until(telemetry, lambda r: health(r, "triton").failures > 0)
        assert not reading.triton_up
        later.server = await asyncio.to_thread(
            start_triton,
            root,
            load_models=LOADED,
            ports=ports,
            otlp_url=f"http://127.0.0.1:{traces_port}/v1/traces",
        )
        (*_, reading) = await read_until(telemetry, lambda r: r.triton_up)
        assert reading.triton_version == "2.51.0"
        assert reading.triton_restarts == 0
        async with later.client() as client:
            for _ in range(20):
                await ask(client)
        await asyncio.to_thread(later.server.stop)
        began_s = time.monotonic()
        (*_, reading) = await read_until(telemetry, lambda r: not r.triton_up)
        assert time.monotonic() - began_s < 2.0
        assert reading.variants["echo_fast"].ready is False
        await asyncio.to_thread(later.server.start)
        readings = await read_until(
            telemetry, lambda r: r.triton_up and r.variants["echo_fast"].ready is True
        )
        assert readings[-1].triton_restarts == 1
        # Traces and counts work again, and no count ever went below zero.
        await read_until(telemetry, lambda r: detail(r, "sampling") == "echo 1/1")
        async with later.client() as client:
            for _ in range(3):
                await ask(client)
        readings = await read_until(telemetry, lambda r: bool(r.request_samples))
        assert sum(r.variants["echo_fast"].completed_requests for r in readings) == 3
    await asyncio.to_thread(later.server.stop)


async def test_restricted_protocols_are_opened_by_the_key_and_explained_without(
    start_triton, tmp_path: Path
):
    port = free_port()
    server = start_triton(
        fill_repository(tmp_path / "repository"),
        load_models=LOADED,
        otlp_url=f"http://127.0.0.1:{port}/v1/traces",
        extra_args=(
            "--grpc-restricted-protocol=statistics,trace,model-repository:admin-key=s3cret",
        ),
    )
    bench = Bench(server, port)
    key = tmp_path / "key"
    key.write_text("wrong\n")
    policy = bench.policy(restricted_key_file=str(key))
    async with watching(policy) as telemetry:
        (*_, reading) = await read_until(telemetry, lambda r: health(r, "triton").failures > 0)
        assert not reading.triton_up
        error = health(reading, "triton").error or ""
        assert "restricted_key_file" in error, error
        assert reading.readings_age_s is not None  # the metrics page needs no key
        key.write_text("s3cret\n")
        (*_, reading) = await read_until(telemetry, lambda r: r.triton_up)
        await read_until(telemetry, lambda r: detail(r, "sampling") == "echo 1/1")
    server.stop()


def health(reading: Reading, name: str):
    return next(source for source in reading.sources if source.name == name)


def detail(reading: Reading, name: str) -> str | None:
    return health(reading, name).detail
