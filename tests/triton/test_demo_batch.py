"""The demo's batch scenario on a real Triton: engines, days and nights, the neighbour."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import InferenceServerClient

from controller.demo import arms, batch, plot, report, report_batch
from controller.demo.arms import Arm
from controller.demo.bench import open_bench
from controller.demo.live import Quiet
from controller.demo.neighbour import device
from controller.demo.nightly import nightly
from controller.embedded.ladder import (
    CLASSES,
    INPUT,
    OUTPUT,
    VARIANT_OUTPUT,
    ensure_engines,
    sample_requests,
)

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it needs two processor cores"),
]
SECONDS = 8.0
SEED = 1


@pytest.fixture(scope="module")
def engines(installation):
    """The engines, made once per machine."""
    return ensure_engines(installation, lambda *_: None)


@pytest.fixture(scope="module")
def scene(installation, engines):
    """A server with the engines on one core, calibrated in a few seconds, and the plan."""
    with pytest.MonkeyPatch.context() as patch, device() as core:
        for name, value in (("_DAY_S", 0.5), ("_DAY_TIMES", 1), ("_NIGHT_S", 1.0)):
            patch.setattr(batch, name, value)
        patch.setattr(batch, "_NIGHT_TIMES", 1)
        with open_bench(installation, batch.engine_models(engines), core=core) as found:
            yield found, batch.calibrate(found, lambda *_: None)


@pytest.fixture(scope="module")
def bench(scene):
    return scene[0]


def test_engines_of_one_variant_share_their_weights_and_quality(engines):
    large = engines.variants
    assert [v.name for v in large if v.profile_of is None] == ["large"]
    files = {(engines.repository / v.model / "1/model.onnx").stat().st_ino for v in large}
    assert len(files) == 1
    assert len({v.quality for v in large}) == 1
    assert len({v.max_batch for v in large}) == len(large) >= 3
    assert large[0].quality - 4 * large[0].quality_error > 0.85
    samples = sample_requests(engines)
    assert samples.correct.mean(axis=1) == pytest.approx(
        [v.quality for v in engines.variants], abs=1e-4
    )
    times_ms = [v.batch_ms[v.max_batch] for v in large]
    assert times_ms == sorted(times_ms, reverse=True)


def test_an_engine_takes_as_long_for_one_row_and_answers_as_when_quality_was_measured(
    bench, engines
):
    samples = sample_requests(engines)
    numbers = dict(zip((c.name for c in bench.choices), bench.models.numbers, strict=True))
    choice = next(c for c in bench.choices if c.profile_of is not None)
    with contextlib.closing(InferenceServerClient(bench.server.grpc)) as client:

        def ask(rows):
            tensor = grpcclient.InferInput(INPUT, [rows, 8, 8], "UINT8")
            tensor.set_data_from_numpy(samples.pages[:rows])
            answer = client.infer(choice.model, [tensor], client_timeout=20)
            return answer.as_numpy(OUTPUT), answer.as_numpy(VARIANT_OUTPUT)

        times_s: dict[int, list[float]] = {1: [], choice.max_batch: []}
        for rows in (1, choice.max_batch) * 8:
            start_s = time.monotonic()
            scores, number = ask(rows)
            times_s[rows].append(time.monotonic() - start_s)
            assert scores.shape == (rows, CLASSES)
            assert set(number.ravel().tolist()) == {numbers[choice.name]}
            right = (scores.argmax(axis=1) == samples.labels[:rows]).tolist()
            assert right == samples.correct[numbers[choice.name], :rows].tolist()
    shortest = {rows: min(of) for rows, of in times_s.items()}
    assert shortest[1] > 0.6 * shortest[choice.max_batch]


def test_engines_are_on_the_device_and_nothing_else_is(bench):
    server = psutil.Process(bench.server.pid)
    stubs = [p for p in server.children(recursive=True) if "python_backend_stub" in p.name()]
    assert len(stubs) == len(bench.choices)
    assert all(stub.cpu_affinity() == [bench.core] for stub in stubs)
    assert bench.core not in server.cpu_affinity()
    assert bench.core not in psutil.Process().cpu_affinity()


def test_a_governed_arm_has_its_nights_its_neighbour_and_its_words(scene, tmp_path):
    bench, plan = scene
    # Not the plan's load: a second of measuring says little where other work shares the machine.
    schedule = nightly(120.0, 20.0, 1, seed=SEED, duration_s=SECONDS, warmup_s=2.0)
    result = arms.run(bench, Arm(), schedule, Quiet())
    assert len(result.neighbour) == len(schedule.nights_s) == 1
    assert 0.1 < result.neighbour[0] < 1.0
    outcome = report.Outcome(
        (result,), schedule, bench.served, bench.objective_ms, "2.51", SEED, plan
    )
    told = json.loads(json.dumps({**report.summary(outcome), **report_batch.summary(outcome)}))
    phases = told["phases"]["governor"]
    assert phases["day"]["requests"] + phases["night"]["requests"] == result.score.requests
    assert phases["day"]["requests"] > 2 * phases["night"]["requests"] > 0
    assert result.score.failed == 0
    assert told["neighbour"]["governor"] == [round(result.neighbour[0], 3)]
    # Whoever answered is one of those that are served, by its place among them.
    answered = np.unique(result.records.variant[result.records.answered])
    assert set(answered.tolist()) <= set(range(len(bench.choices)))
    text = "\n".join(report_batch.findings(outcome))
    assert f"{plan.objective_ms:.0f} ms" in text
    assert "By night answered for the governor" in text
    # It can say why it switched, unless nothing was late where it began.
    assert result.governed.explained or min(p["in_time"] for p in phases.values()) > 0.99
    assert all(one.text.startswith("digits: ") for one in result.governed.explained)
    picture = tmp_path / "p.png"
    plot.draw(picture, outcome.results, schedule, bench.served, bench.objective_ms)
    assert picture.stat().st_size > 10_000


def test_one_core_is_refused_with_a_sentence_before_anything_starts(tmp_path):
    command = ["controller.cli.main", "demo", "--scenario", "batch", "--no-plot"]
    done = subprocess.run(
        ["taskset", "-c", "0", sys.executable, "-m", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode != 0
    assert "two processor cores" in done.stderr
    assert "Traceback" not in done.stderr
