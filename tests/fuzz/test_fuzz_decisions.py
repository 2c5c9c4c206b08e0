"""Hostile input and decisions: what is refused changes none, what is accepted breaks none.

Two cores see the same observations; one of them lives beside an interface that is fed mutations.
Whatever that interface refuses must leave the two deciding alike, to the last digit. What it
accepts (a mutation may still be a valid body) may teach something, never nonsense.
"""

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from test_fuzz_admin import mutants, send, statuses
from test_fuzz_otlp import mutation
from test_fuzz_policy import BASES, MUTATIONS

from controller.daemon.loop import Daemon, Options
from controller.interfaces.admin import AdminServer
from controller.planning.core import GovernorCore
from controller.planning.decision import Decision
from controller.policy.load import PolicyError, parse_policy, parse_raw
from controller.policy.model import Policy
from controller.telemetry.observation import (
    BatchSample,
    HostReading,
    ModelReading,
    Observation,
    VariantReading,
)
from controller.telemetry.otlp import TraceReceiver
from controller.telemetry.spans import MalformedTraceError, SpanJoiner, read_spans

COUNT = int(os.environ.get("TRITON_GOVERNOR_FUZZ", "1000"))
TICK_S = 0.02
SERVICE_S = {"a": 0.0005, "b": 0.002, "c": 0.004}
POLICY = """\
version: 1
triton: {grpc: 127.0.0.1:1}
models:
  NAME:
    objective: {latency: 60ms, percentile: 99}
    client_max_batch: 8
    variants:
      fast: {model: a, quality: 0.85}
      mid: {model: b, quality: 0.90}
      wide: {model: c, quality: 0.94}
"""


def policy(name: str, folder: Path) -> Policy:
    """Return the policy of a model with a name that mutated traces or commands use."""
    journal = json.dumps({"path": str(folder / "journal.sqlite3")})  # never opened
    return parse_policy(f"{POLICY.replace('NAME', name)}journal: {journal}\n", "fuzz.yaml")


def observations(name: str) -> Iterator[Observation]:
    """Yield a load that rises and falls, so that decisions do change by themselves."""
    tick = 0
    while True:
        waiting = 60 if tick % 400 > 300 else 0
        samples = tuple(
            BatchSample(model, rows, 1, service_s * (1 + 0.3 * rows), 0.1)
            for model, service_s in SERVICE_S.items()
            for rows in (1, 8)
        )
        yield Observation(
            now_s=1000.0 + tick * TICK_S,
            sequence=tick,
            models={name: ModelReading(name, "c", 0.0, ready=True)},
            variants={
                model: VariantReading(
                    model, ready=True, pending_requests=waiting if model == "c" else 0
                )
                for model in SERVICE_S
            },
            window_s=TICK_S,
            readings_age_s=0.001,
            host=HostReading(cpu_count=2),
            batch_samples=samples if tick % 10 == 0 else (),
        )
        tick += 1


def check_sound(decision: Decision) -> None:
    assert decision.target in {"fast", "mid", "wide"}
    for candidate in decision.candidates:
        assert math.isfinite(candidate.p99_s)
        assert candidate.p99_s > 0.0
        assert 0.0 <= candidate.miss_ratio <= 1.0


def is_refused(body: bytes) -> bool:
    try:
        read_spans(body)
    except MalformedTraceError:
        return True
    return False


@pytest.mark.timeout(900)
async def test_a_refused_trace_changes_no_decision(tmp_path: Path):
    wanted = policy("al", tmp_path)
    alone, beside = GovernorCore(wanted), GovernorCore(wanted)
    receiver = TraceReceiver("127.0.0.1:0", ["al"], clock=time.monotonic)
    await receiver.start()
    assert receiver.address is not None
    url = f"http://127.0.0.1:{receiver.address[1]}/v1/traces"
    headers = {"Content-Type": "application/json"}
    refused, targets = 0, set()
    try:
        async with aiohttp.ClientSession() as client:
            for number, observation in zip(range(COUNT), observations("al"), strict=False):
                body = mutation(number)
                if is_refused(body):
                    refused += 1
                    async with client.post(url, data=body, headers=headers) as answer:
                        assert answer.status == 400
                (one,) = alone.step(observation)
                told = replace(observation, request_samples=tuple(receiver.take()))
                assert beside.step(told) == (one,), number
                targets.add(one.target)
    finally:
        await receiver.stop()
    assert refused > COUNT // 20
    assert len(targets) > 1  # the load alone makes it change its mind


@pytest.mark.timeout(900)
def test_an_accepted_trace_breaks_no_decision(tmp_path: Path):
    core, joiner = GovernorCore(policy("al", tmp_path)), SpanJoiner(["al"])
    joined = 0
    for number, observation in zip(range(COUNT), observations("al"), strict=False):
        body = mutation(number)
        if is_refused(body):
            continue
        now_s = observation.now_s
        found = tuple(joiner.take(read_spans(body), now_s, 1_795_442_226.0 - now_s))
        joined += len(found)
        (decision,) = core.step(replace(observation, request_samples=found))
        check_sound(decision)
    assert joined > COUNT // 20


@pytest.mark.timeout(900)
async def test_a_refused_command_changes_no_decision(tmp_path: Path):
    wanted = policy("digits", tmp_path)
    alone = GovernorCore(wanted)
    daemon = Daemon(wanted, Options(tmp_path / "policy.yaml", tmp_path / "unused.sock"))
    server = AdminServer(daemon.control, tmp_path / "governor.sock")
    await server.start()
    refused = taken = 0
    try:
        for raw, observation in zip(mutants(8, COUNT), observations("digits"), strict=False):
            before = daemon.wishes.state()
            async with asyncio.timeout(10.0):
                codes = statuses(await send(tmp_path / "governor.sock", raw))
            if 200 in codes or not codes:  # done, or its answer was lost with the connection
                taken += daemon.wishes.state() != before
                daemon.wishes.pins.clear()
                daemon.wishes.pauses.clear()
            else:
                refused += 1
                assert daemon.wishes.state() == before, raw
            models = daemon.wishes.overlay(dict(observation.models))
            overlaid = replace(observation, models=models)
            assert daemon.core.step(overlaid) == alone.step(observation), raw
    finally:
        await server.stop()
    assert refused > COUNT / 3
    assert taken > COUNT / 200


@pytest.mark.timeout(900)
async def test_a_refused_policy_changes_no_decision(tmp_path: Path):
    wanted, file = policy("al", tmp_path), tmp_path / "policy.yaml"
    alone = GovernorCore(wanted)
    daemon = Daemon(wanted, Options(file, tmp_path / "unused.sock"))
    refused = 0
    for number, observation in zip(range(COUNT), observations("al"), strict=False):
        rng = random.Random(number)
        text = MUTATIONS[number % len(MUTATIONS)](rng, rng.choice(BASES))
        try:
            parse_raw(text, "fuzz.yaml")
        except PolicyError:
            refused += 1
            file.write_bytes(text)
            daemon.reload()
            assert daemon.policy_file.error is not None
            assert daemon.policy_file.error.startswith("refused: ")
        assert daemon.core.step(observation) == alone.step(observation), number
    assert refused > COUNT / 10
