"""Late binding beside an alias on a real Triton whose models take a GPU's time.

    python benchmarks/late_on_triton.py [--ladder bert-t4] [--trace azure-code ...]
                                        [--start 0] [--seconds 60] [--limit-ms 60] [--slower 1.0]
                                        [--rivals backlog,model-switching-tuned] [--seed 1]
                                        [--plot FILE]

The server, the governor and the dispatcher are the real ones. The models are not: each sleeps as
long as a recorded ladder says that its batch takes on a GPU, and holds a lock meanwhile, as one
batch at a time runs on a device. So the host's processors are as free as beside a GPU, which with
the demo's models, computed by these same processors, they are not. The same open-loop requests,
scaled as in a replay, go to every arm; in time is what the client saw. Rivals know the ladder, read
the metrics page at their own interval and move the alias with one call, nothing checked.

*told held*: the share of requests, by the client's clock, within the 99th percentile that the
governor's status told when they were sent (looked at twenty times a second); bound late, where each
is told of its own, as the dispatcher counts them itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import tritonclient.grpc.aio as triton
from arms_plot import Served, draw
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from rival_driver import Place, RivalDriver
from tritonclient.grpc import model_config_pb2

from controller.actuation import alias as shape
from controller.actuation.dispatcher_folder import write
from controller.demo.governed import Choice, Governor, policy_text
from controller.embedded.install import install
from controller.embedded.server import free_ports, start_server
from controller.policy.model import DispatcherPolicy, ModelPolicy, Objective, VariantPolicy
from controller.twin.contest import RIVALS
from controller.twin.ladder import TwinVariant, load_ladder
from controller.twin.plan import Plan
from controller.twin.rivals import Setting
from controller.twin.trace import load_trace

DATA = Path(__file__).with_name("data")
ALIAS, DISPATCHER = "service", "service_dispatcher"
WARMUP_S = 8.0
LOOK_S = 0.05
DEADLINE_S = 5.0
MOST_ROWS = 32
_MODEL = """
import fcntl, json, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        value = lambda name: json.loads(args["model_config"])["parameters"][name]["string_value"]
        self.tag, self.table_s = int(value("tag")), json.loads(value("table_s"))
        self.device = open(value("device"), "w")

    def execute(self, requests):
        rows = [len(pb_utils.get_input_tensor_by_name(one, "IN").as_numpy()) for one in requests]
        fcntl.flock(self.device, fcntl.LOCK_EX)
        time.sleep(self.table_s[min(sum(rows), len(self.table_s)) - 1])
        fcntl.flock(self.device, fcntl.LOCK_UN)
        tags = [pb_utils.Tensor("TAG", np.full((n, 1), self.tag, np.int32)) for n in rows]
        return [pb_utils.InferenceResponse([tag]) for tag in tags]
"""


@dataclass(frozen=True)
class Answers:
    """What became of the counted requests."""

    zero_s: float  # monotonic seconds, where `due_s` begins
    due_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]  # infinite: failed
    variant: NDArray[np.int64]
    late_sent_s: float  # 99th percentile of how late the client itself was


class Told:
    """Watches what the governor tells of the model's requests, from a thread."""

    def __init__(self, governor: Governor, *, late: bool) -> None:
        self._governor = governor
        self._late = late
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._told: list[tuple[float, float]] = []  # (monotonic seconds, latency in seconds)
        self._coverage: float | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S * (10.0 if self._late else 1.0)):
            model = self._governor.model()
            if model is None:
                continue
            self._coverage = model["calibration"]["coverage"]
            if model["predicted_p99_ms"] is not None:
                self._told.append((time.monotonic(), model["predicted_p99_ms"] / 1e3))

    def held(self, answers: Answers) -> float | None:
        """Return the share of requests within what was told of them; None: nothing was."""
        if self._late or not self._told:
            return self._coverage if self._late else None
        at_s, told_s = np.array(self._told).T
        last = np.searchsorted(at_s, answers.zero_s + answers.due_s, side="right") - 1
        known = last >= 0
        return float((answers.latency_s[known] <= told_s[last[known]]).mean())


def main() -> int:
    """Run every arm and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ladder", default="bert-t4")
    parser.add_argument("--trace", nargs="+", default=["azure-code"])
    parser.add_argument("--limit-ms", type=float, default=60.0)
    parser.add_argument("--start", type=float, default=0.0, help="second of the trace")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slower", type=float, default=1.0, help="every time of the ladder, times")
    parser.add_argument("--rivals", default="backlog,model-switching-tuned")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    rivals = args.rivals.split(",")
    drawn: dict[str, dict[str, Served]] = {}
    for name in args.trace:
        variants, due_s = _load(args, name)
        print(f"\n{args.ladder}, {name} from {args.start:g} s, {args.limit_ms:g} ms:\n")
        head = "arm | effective quality | in time | failed | mean quality | p50 | p99 | client"
        print(f"| {head} | told held |\n| --- |{' ---: |' * 8}", flush=True)
        with tempfile.TemporaryDirectory(prefix="tg-late-", dir="/tmp") as folder:
            found = asyncio.run(_arms(Path(folder), variants, due_s, args.limit_ms, rivals))
        drawn[name] = found
    if args.plot is not None:
        draw(args.plot, drawn, args.seconds, args.limit_ms)
    return 0


def _load(args: argparse.Namespace, name: str) -> tuple[list[TwinVariant], NDArray[np.float64]]:
    """Return the variants, and when requests are due; those of the warm-up before 0."""
    ladder = load_ladder(DATA / f"{args.ladder}.yaml")
    trace = load_trace(DATA / f"{name}.csv").window(args.start, args.start + args.seconds)
    plan = Plan(trace, ladder, args.limit_ms / args.slower / 1e3, max_batch=MOST_ROWS)
    due_s = plan.load().arrivals_s(args.seed) * args.slower
    warm = np.sort(np.random.default_rng(args.seed).random(100)) * WARMUP_S - WARMUP_S
    variants = [TwinVariant(v.name, v.quality, v.table_s * args.slower) for v in plan.variants]
    return variants, np.concatenate([warm, due_s[due_s < args.seconds]])


async def _arms(
    folder: Path,
    variants: list[TwinVariant],
    due_s: NDArray[np.float64],
    limit_ms: float,
    rivals: Sequence[str],
) -> dict[str, Served]:
    """Let everybody serve the same requests, and tell of each."""
    found: dict[str, Served] = {}
    root = folder / "models"
    for tag, variant in enumerate(variants):
        _write_model(root, variant, tag, folder / "device")
    choices = [Choice(v.name, v.name, v.quality) for v in variants]
    key_file = folder / "key"
    model = ModelPolicy(
        ALIAS,
        Objective(limit_ms / 1e3, 99.0),
        tuple(VariantPolicy(v.name, v.name, v.quality) for v in variants),
        client_max_batch=1,
        dispatcher=DispatcherPolicy(DISPATCHER, str(key_file)),
    )
    list(write([model], root))
    traces = f"127.0.0.1:{free_ports().http}"
    with start_server(
        install(lambda *_: None),
        root,
        log_file=folder / "triton.log",
        otlp_url=f"http://{traces}/v1/traces",
        trace_rate=None,
        load_models=[v.name for v in variants],
    ) as server:
        told = {
            "grpc": server.grpc,
            "metrics_url": server.metrics_url,
            "traces": traces,
            "model": ALIAS,
            "objective_ms": limit_ms,
            "percentile": 99.0,
            "client_max_batch": 1,
            "choices": choices,
        }
        fastest = min(variants, key=lambda v: v.table_s[-1] / len(v.table_s))
        for variant in (max(variants, key=lambda v: v.quality), fastest):
            await _point(server.grpc, variant.name)
            arm = f"fixed:{variant.name}"
            found[arm] = _tell(arm, await _ask(server.grpc, due_s), variants, limit_ms)
        setting = Setting(tuple(variants), limit_ms / 1e3, 0.01)
        place = Place(server.grpc, server.metrics_url, ALIAS, [v.name for v in variants], 1)
        for name in filter(None, rivals):
            await _point(server.grpc, variants[setting.fastest].name)
            with RivalDriver(place, RIVALS[name](setting), setting.fastest):
                found[name] = _tell(name, await _ask(server.grpc, due_s), variants, limit_ms)
        for arm, dispatcher in (("governor", None), ("governor:late", (DISPATCHER, key_file))):
            own = folder / arm.replace(":", "-")
            with Governor(policy_text(**told, dispatcher=dispatcher), own) as governor:
                await asyncio.to_thread(governor.wait_until_serving, late=dispatcher is not None)
                with Told(governor, late=dispatcher is not None) as told_then:
                    answers = await _ask(server.grpc, due_s)
                    held = told_then.held(answers)
                found[arm] = _tell(arm, answers, variants, limit_ms, held)
    return found


def _write_model(root: Path, variant: TwinVariant, tag: int, device: Path) -> None:
    version = root / variant.name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_MODEL)
    (version / "__pycache__").write_text("")  # Python compiles nothing beside it: no reload
    config = {
        "name": variant.name,
        "backend": "python",
        "max_batch_size": len(variant.table_s),
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "TAG", "data_type": "TYPE_INT32", "dims": [1]}],
        "dynamic_batching": {},
        "parameters": {
            "tag": {"string_value": str(tag)},
            "table_s": {"string_value": json.dumps(variant.table_s.tolist())},
            "device": {"string_value": str(device)},
        },
    }
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    (root / variant.name / "config.pbtxt").write_text(text_format.MessageToString(message))


async def _point(grpc: str, variant: str) -> None:
    """Point the alias at a variant, as a person would."""
    async with triton.InferenceServerClient(grpc) as client:
        config = (await client.get_model_config(variant, as_json=True))["config"]
        alias = shape.build(ALIAS, [config], client_max_batch=1)
        await client.load_model(ALIAS, config=json.dumps(alias), files={"file:1/alias": b"x"})


async def _ask(grpc: str, due_s: NDArray[np.float64]) -> Answers:
    """Send every request when it is due, whatever the others do."""
    latency_s = np.full(len(due_s), np.inf)
    served = np.full(len(due_s), -1)
    late_s = np.zeros(len(due_s))
    tensor = triton.InferInput("IN", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    async with _clients(grpc) as clients:
        zero_s = time.monotonic() + WARMUP_S + 0.5

        async def one(at: int) -> None:
            with contextlib.suppress(triton.InferenceServerException):
                client = clients[at % len(clients)]
                answer = await client.infer(ALIAS, [tensor], client_timeout=DEADLINE_S)
                latency_s[at] = time.monotonic() - zero_s - due_s[at]
                served[at] = answer.as_numpy("TAG")[0, 0]

        tasks = []
        for at, when_s in enumerate(due_s):
            wait_s = zero_s + when_s - time.monotonic()
            if wait_s > 0.0:
                await asyncio.sleep(wait_s)
            late_s[at] = time.monotonic() - zero_s - when_s
            tasks.append(asyncio.create_task(one(at)))
        await asyncio.gather(*tasks)
    counted = due_s >= 0.0
    return Answers(
        zero_s,
        due_s[counted],
        latency_s[counted],
        served[counted],
        float(np.quantile(late_s[counted], 0.99)),
    )


@contextlib.asynccontextmanager
async def _clients(grpc: str, count: int = 2) -> AsyncIterator[list[triton.InferenceServerClient]]:
    found = [triton.InferenceServerClient(grpc) for _ in range(count)]
    try:
        yield found
    finally:
        for client in found:
            await client.close()


def _tell(
    arm: str,
    answers: Answers,
    variants: list[TwinVariant],
    limit_ms: float,
    held: float | None = None,
) -> Served:
    """Print a line of an arm; return what is drawn of it."""
    quality = np.array([v.quality for v in variants])
    answered = np.isfinite(answers.latency_s)
    met = answered & (answers.latency_s <= limit_ms / 1e3)
    got = np.where(answered, quality[answers.variant], 0.0)
    p50, p99 = np.quantile(np.minimum(answers.latency_s, DEADLINE_S), [0.5, 0.99]) * 1e3
    print(
        f"| {arm} | {(got * met).mean():.4f} | {met.mean():.2%} "
        f"| {int((~answered).sum())} of {len(met)} | {got[answered].mean():.4f} "
        f"| {p50:.0f} ms | {p99:.0f} ms | {answers.late_sent_s * 1e3:.1f} ms "
        f"| {'' if held is None else f'{held:.2%}'} |",
        flush=True,
    )
    return Served(answers.due_s, answers.latency_s * 1e3, got * met)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
