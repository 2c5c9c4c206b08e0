"""Models of a real Triton that take a GPU's time, and a client of theirs.

Each sleeps as long as a ladder says that its batch takes on a GPU, and holds a lock meanwhile, as
one batch at a time runs on a device. So the host's processors are as free as beside a GPU.
"""

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from controller.actuation import alias as shape
from controller.twin.ladder import TwinVariant

ALIAS = "service"
WARMUP_S = 8.0
DEADLINE_S = 5.0
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


def write_model(root: Path, variant: TwinVariant, tag: int, device: Path) -> None:
    """Put a variant into a model repository; its answers say `tag`, one file is one device."""
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


async def point(grpc: str, variant: str) -> None:
    """Point the alias at a variant, as a person would."""
    async with triton.InferenceServerClient(grpc) as client:
        config = (await client.get_model_config(variant, as_json=True))["config"]
        alias = shape.build(ALIAS, [config], client_max_batch=1)
        await client.load_model(ALIAS, config=json.dumps(alias), files={"file:1/alias": b"x"})


async def ask(
    grpc: str, due_s: NDArray[np.float64], *, lead_s: float = WARMUP_S, counted_s: float = 0.0
) -> Answers:
    """Send every request when it is due, whatever the others do.

    Args:
        grpc: address of the server.
        due_s: ascending; the first ones may be negative: a warm-up.
        lead_s: from now to 0, about.
        counted_s: those due before are not counted.
    """
    latency_s = np.full(len(due_s), np.inf)
    served = np.full(len(due_s), -1)
    late_s = np.zeros(len(due_s))
    tensor = triton.InferInput("IN", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    async with _clients(grpc) as clients:
        for client in clients:
            await client.is_server_live()  # connects
        zero_s = time.monotonic() + lead_s + 0.5

        async def one(at: int) -> None:
            with contextlib.suppress(triton.InferenceServerException):
                client = clients[at % len(clients)]
                answer = await client.infer(ALIAS, [tensor], client_timeout=DEADLINE_S)
                latency_s[at] = time.monotonic() - zero_s - due_s[at]
                served[at] = answer.as_numpy("TAG")[0, 0]

        gc.disable()  # it holds the client up for 80 ms when there are thousands of tasks
        tasks = []
        for at, when_s in enumerate(due_s):
            wait_s = zero_s + when_s - time.monotonic()
            if wait_s > 0.0:
                await asyncio.sleep(wait_s)
            late_s[at] = time.monotonic() - zero_s - when_s
            tasks.append(asyncio.create_task(one(at)))
        await asyncio.gather(*tasks)
        gc.enable()
    counted = due_s >= counted_s
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
