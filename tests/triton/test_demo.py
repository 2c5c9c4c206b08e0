"""The demo on a real Triton: its client, its records, its end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from repository import Tensor, write_model
from tritonclient import grpc as triton_grpc
from tritonclient.grpc import service_pb2

from controller.demo import load
from controller.demo.channel import Channel
from controller.demo.records import LOST
from controller.demo.scenario import Scale, bursty
from controller.demo.wire import METHOD, Tensors

INPUTS = (Tensor("page", "TYPE_UINT8", (64, 64)),)
OUTPUTS = (Tensor("scores", "TYPE_UINT8", (64, 64)), Tensor("variant", "TYPE_INT32", (1,)))


def pages(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def echo(start_triton, tmp_path_factory):
    """A server whose models answer pages with pages; `slow` sleeps 30 ms a batch."""
    root = tmp_path_factory.mktemp("echo") / "repository"
    for name, tag, delay_s in (("quick", 1, 0.0), ("slow", 2, 0.030)):
        write_model(root, name, tag=tag, delay_s=delay_s, exponent=0.0, inputs=INPUTS)
    return start_triton(root, load_models=("quick", "slow"))


def channel_to(server):
    return Channel("127.0.0.1", server.ports.grpc)


def ask(model, rows, seed=0):
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = "page", "UINT8"
    tensor.shape.extend([rows, 64, 64])
    request.raw_input_contents.append(pages(rows, seed).tobytes())
    return request.SerializeToString()


def collect(channel, count, within_s=20.0):
    answers, deadline = [], time.monotonic() + within_s
    while len(answers) < count:
        assert time.monotonic() < deadline, f"{len(answers)} of {count} answers"
        answers += channel.poll(0.1)
    return answers


def test_the_cheap_client_gets_what_grpcio_gets(echo):
    channel = channel_to(echo)
    with triton_grpc.InferenceServerClient(echo.grpc) as client:
        for rows in (1, 2, 8):
            data = pages(rows, rows)
            tensor = triton_grpc.InferInput("page", list(data.shape), "UINT8")
            tensor.set_data_from_numpy(data)
            expected = client.infer("quick", [tensor])
            channel.send(channel.prepare(METHOD, ask("quick", rows, rows), 5.0))
            (answer,) = collect(channel, 1)
            response = service_pb2.ModelInferResponse.FromString(answer.message)
            raw = dict(
                zip([o.name for o in response.outputs], response.raw_output_contents, strict=True)
            )
            assert raw["OUT"] == expected.as_numpy("OUT").tobytes() == data.tobytes()
    channel.close()


def test_a_thousand_calls_at_once_are_all_answered_with_their_own_pages(echo):
    # 32 MB in flight: both directions' flow control has to work.
    channel = channel_to(echo)
    requests = [channel.prepare(METHOD, ask("quick", 8, seed), 60.0) for seed in range(10)]
    calls = {channel.send(requests[k % 10]): k % 10 for k in range(1000)}
    answers = collect(channel, 1000, within_s=60.0)
    assert channel.in_flight == 0
    for answer in answers:
        assert answer.error is None
        assert pages(8, calls[answer.call]).tobytes() in answer.message
    channel.close()


def test_errors_come_with_the_servers_words(echo):
    channel = channel_to(echo)
    channel.send(channel.prepare(METHOD, ask("nobody", 1), 5.0))
    channel.send(channel.prepare("/inference.GRPCInferenceService/Nothing", b"", 5.0))
    channel.send(channel.prepare(METHOD, b"\xff\xff", 5.0))
    answers = {answer.call: answer for answer in collect(channel, 3)}
    assert all(answer.message is None for answer in answers.values())
    assert "status 5" in answers[1].error
    assert "nobody" in answers[1].error
    assert "status 12" in answers[3].error
    channel.send(channel.prepare(METHOD, ask("quick", 1), 5.0))
    assert collect(channel, 1)[0].error is None
    channel.close()


def test_the_server_gives_up_at_the_deadline_and_a_cancelled_call_stays_silent(echo):
    channel = channel_to(echo)
    short = channel.prepare(METHOD, ask("slow", 8), 0.1)
    for _ in range(20):  # 30 ms each, none batched with another: eight rows are a full batch
        channel.send(short)
    late = [answer for answer in collect(channel, 20) if answer.message is None]
    assert late
    assert all("status 4" in answer.error for answer in late)
    cancelled = [channel.send(channel.prepare(METHOD, ask("slow", 8), 5.0)) for _ in range(20)]
    for call in cancelled:
        channel.cancel(call)
    assert channel.in_flight == 0
    last = channel.send(channel.prepare(METHOD, ask("quick", 1), 5.0))
    assert [answer.call for answer in collect(channel, 1)] == [last]
    channel.close()


def test_a_server_that_is_not_there_is_an_error(unused_tcp_port):
    with pytest.raises(OSError, match="refused"):
        Channel("127.0.0.1", unused_tcp_port)


def target(server, model, folder):
    path = folder / "pages.npz"
    load.write_pages(path, pages(64), np.zeros(64, np.int64))
    # The echo's answer stands in for scores: any bytes that make whole float32 rows.
    return load.Target(server.grpc, model, Tensors("page", "OUT", "TAG"), path, 60.0)


def test_every_request_is_sent_and_recorded_with_who_served_it(echo, tmp_path):
    schedule = bursty(Scale(100.0, 400.0), seed=1, duration_s=4.0, warmup_s=0.5)
    with load.LoadRun(target(echo, "quick", tmp_path), schedule, tmp_path) as run:
        seen = list(run)
        records = run.records()
    assert np.array_equal(records.due_s, schedule.due_s)
    assert np.array_equal(records.rows, schedule.rows)
    assert records.answered.all()
    assert set(records.variant) == {1}
    assert np.all(records.latency_ms > 0)
    assert np.all(records.late_ms >= 0)
    assert len(seen) >= 10
    assert seen[-1].sent == len(schedule.due_s)


def test_latency_counts_from_the_intended_time_so_that_queueing_shows(echo, tmp_path):
    # 30 ms a batch of at most 8 rows, twice the load that it can take: the queue must show.
    schedule = bursty(Scale(200.0, 200.0), seed=2, duration_s=2.0)
    with load.LoadRun(target(echo, "slow", tmp_path), schedule, tmp_path) as run:
        list(run)
        records = run.records()
    answered = records.latency_ms[records.answered]
    assert answered.min() >= 30.0
    assert np.percentile(answered, 90) > 200.0
    assert records.late_ms.max() < answered.max()


def test_the_throughput_of_a_slow_model_is_measured_right(echo, tmp_path):
    found = load.measure(
        target(echo, "slow", tmp_path),
        duration_s=1.5,
        shape=load.Shape(rows=(8,), row_weights=(1.0,)),
    )
    assert 20.0 < found.requests_rps <= 1 / 0.030 * 1.15
    assert found.rows_rps == pytest.approx(8 * found.requests_rps)


def test_a_model_that_is_not_there_is_said(echo, tmp_path):
    with pytest.raises(load.LoadError, match="nobody"):
        load.measure(target(echo, "nobody", tmp_path), duration_s=0.5, shape=load.Shape())


def test_a_restart_of_triton_loses_what_was_in_flight_and_no_more(start_triton, tmp_path):
    root = tmp_path / "repository"
    write_model(root, "quick", tag=1, inputs=INPUTS)
    server = start_triton(root, load_models=("quick",))
    schedule = bursty(Scale(100.0, 100.0), seed=3, duration_s=8.0)
    restarted = False
    with load.LoadRun(target(server, "quick", tmp_path), schedule, tmp_path) as run:
        for progress in run:
            if progress.time_s > 1.0 and not restarted:
                server.restart()
                restarted = True
        records = run.records()
    assert (records.status == LOST).any()
    assert records.answered[records.due_s < 0.5].all()
    assert records.answered[records.due_s > 7.0].all()


@pytest.fixture
def folder():
    """A folder with a short name, as a temporary folder has."""
    with tempfile.TemporaryDirectory(prefix="demo") as name:
        yield Path(name)


def start_demo(folder, *arguments):
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "controller.cli.main", "demo", "--no-plot", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=folder,
    )


def family_until(process, word, more_s):
    """Watch the demo until a command with a word is among its processes, and a little longer.

    Returns every process that it had at any time until then, with its command.
    """
    family: dict[psutil.Process, str] = {}
    root = psutil.Process(process.pid)
    deadline = time.monotonic() + 60.0
    seen = False
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        for child in root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                family[child] = " ".join(child.cmdline())
        if not seen and any(word in command for command in family.values()):
            seen, deadline = True, time.monotonic() + more_s
        time.sleep(0.02)
    assert seen, f"nothing with {word} was started: {family}"
    return family


def shared_memory_of(family):
    """Return what is left of the shared memory of a family's servers."""
    prefixes = {
        word.rpartition("=")[2]
        for command in family.values()
        for word in command.split()
        if "shm-region-prefix-name=" in word
    }
    regions = Path("/dev/shm").iterdir()  # noqa: S108 - only looked at
    return [path for path in regions if any(path.name.startswith(name) for name in prefixes)]


def still_running(family):
    _, alive = psutil.wait_procs(list(family), timeout=15.0)
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.usefixtures("ladder")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("word", "more_s", "number"),
    [
        ("tritonserver", 0.0, signal.SIGINT),  # starting
        ("controller.demo.generator", 0.5, signal.SIGTERM),  # measuring
        # the daemon is starting, and in the governor's arm
        pytest.param("policy.yaml", 0.1, signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("policy.yaml", 8.0, signal.SIGINT, marks=pytest.mark.soak),
    ],
)
def test_a_signal_at_any_moment_leaves_no_process_and_no_file(folder, word, more_s, number):
    process = start_demo(folder, "--seconds", "20", "--arms", "governor,fixed")
    family = family_until(process, word, more_s)
    process.send_signal(number)
    output, _ = process.communicate(timeout=40.0)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert still_running(family) == []
    assert [path.name for path in folder.iterdir() if "demo" in path.name] == []
    assert shared_memory_of(family) == []


@pytest.mark.soak
@pytest.mark.usefixtures("ladder")
@pytest.mark.timeout(120)
def test_a_demo_that_is_killed_leaves_no_process(folder):
    process = start_demo(folder, "--seconds", "20", "--arms", "governor")
    family = family_until(process, "policy.yaml", 6.0)
    process.kill()
    process.communicate(timeout=10.0)
    assert still_running(family) == []
    assert shared_memory_of(family) == []


@pytest.mark.usefixtures("ladder")
@pytest.mark.timeout(180)
def test_the_demo_writes_its_numbers_and_no_request_of_the_governors_arm_fails(tmp_path):
    out = tmp_path / "out.json"
    process = start_demo(
        tmp_path, "--seconds", "12", "--arms", "governor", "--json", str(out), "--quiet"
    )
    output, _ = process.communicate(timeout=150.0)
    assert process.returncode == 0, output
    document = json.loads(out.read_text())
    (arm,) = document["arms"]
    assert arm["name"] == "governor"
    assert arm["requests"] > 100
    assert arm["failed"] == 0
    assert 0 < arm["effective_quality"] <= arm["mean_quality"] < 1
    # The targets of the soak, with room for what runs beside this.
    assert arm["slo_attainment"] >= 0.8, out.read_text()
    relief_ms = document["relief_ms"]["p95"]  # None: whoever served bore every burst
    assert relief_ms is None or relief_ms <= 1000.0
    assert 0.0 < document["tick_ms"]["p99"] <= 60.0
    assert 0.0 < document["governor"]["cpu_ratio"] <= 0.5
    assert 1e7 < document["governor"]["rss_bytes"] <= 250e6
