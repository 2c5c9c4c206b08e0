"""Small model repositories for tests: Python-backend models that echo who they are.

A model answers every row with its input (`OUT` = `IN`), with its `TAG`, and sleeps
`delay_s * rows ** exponent` per batch, so that tests know which variant served and how long it
took. The behaviour stands in `parameters` of its config, so that a config override can change
it (`parameters` of `model_config()`), and a touch of files can be told from an override.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODEL = """
import json, os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        value = lambda name: self.config["parameters"][name]["string_value"]
        self.delay_s = float(value("delay_s"))
        self.exponent = float(value("exponent"))
        self.tag = int(value("tag"))
        self.batched = self.config.get("max_batch_size", 0) > 0
        self.decoupled = value("decoupled") == "1"
        self.responses = int(value("responses"))
        self.fail_execute = value("fail_execute") == "1"
        self.gpu_bytes = int(value("gpu_mib")) << 20
        self.gpu_folder = value("gpu_folder")
        self.held = os.path.join(self.gpu_folder, f"{args['model_name']}.{os.getpid()}")
        self.hold(self.gpu_bytes)
        self.ballast = bytearray(b"x") * (int(value("ballast_mib")) << 20)
        if value("restless") == "1":  # its folder changes at every load
            folder = os.path.join(args["model_repository"], args["model_version"])
            with open(os.path.join(folder, "loads"), "a") as file:
                file.write("x")
        self.names = [item["name"] for item in self.config["input"]]
        time.sleep(float(value("init_s")))
        if value("fail_load") == "1":
            self.hold(-self.gpu_bytes)
            raise pb_utils.TritonModelException("told to fail its load")

    def hold(self, size):
        if not self.gpu_folder:
            return
        if size > 0:  # as a whole: it is read meanwhile
            fresh = os.path.join(self.gpu_folder, "." + os.path.basename(self.held))
            with open(fresh, "w") as file:
                file.write(str(size))
            os.replace(fresh, self.held)
        elif os.path.exists(self.held):
            os.remove(self.held)
        with open(os.path.join(self.gpu_folder, ".log"), "a") as log:
            log.write(f"{size} {self.tag}\\n")

    def finalize(self):
        self.hold(-self.gpu_bytes)

    def answer(self, request, rows):
        first = pb_utils.get_input_tensor_by_name(request, self.names[0]).as_numpy()
        tag = np.full((rows, 1) if self.batched else (1,), self.tag, dtype=np.int32)
        outputs = [pb_utils.Tensor("OUT", first), pb_utils.Tensor("TAG", tag)]
        return pb_utils.InferenceResponse(outputs)

    def rows(self, request):
        first = pb_utils.get_input_tensor_by_name(request, self.names[0])
        return int(first.shape()[0]) if self.batched else 1

    def execute(self, requests):
        rows = [self.rows(request) for request in requests]
        if self.fail_execute:
            error = pb_utils.TritonError("told to fail its requests")
            failed = [pb_utils.InferenceResponse(error=error) for _ in requests]
            if not self.decoupled:
                return failed
            for request, response in zip(requests, failed):
                final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                request.get_response_sender().send(response, flags=final)
            return None
        if self.decoupled:
            for request, count in zip(requests, rows):
                sender = request.get_response_sender()
                for _ in range(self.responses):
                    time.sleep(self.delay_s)
                    sender.send(self.answer(request, count))
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return None
        time.sleep(self.delay_s * sum(rows) ** self.exponent)
        return [self.answer(request, count) for request, count in zip(requests, rows)]
"""


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    data_type: str = "TYPE_FP32"
    dims: tuple[int, ...] = (1,)


DEFAULT_INPUTS = (Tensor("IN"),)


def model_config(
    name: str,
    *,
    delay_s: float = 0.0,
    exponent: float = 1.0,
    init_s: float = 0.0,
    tag: int = 0,
    max_batch_size: int = 8,
    inputs: Sequence[Tensor] = DEFAULT_INPUTS,
    outputs: Sequence[Tensor] | None = None,
    ballast_mib: int = 0,
    gpu_mib: int = 0,
    gpu_folder: Path | None = None,
    restless: bool = False,
    fail_load: bool = False,
    fail_execute: bool = False,
    decoupled: bool = False,
    responses: int = 4,
    instances: int = 1,
    queue_delay_us: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a model's config as JSON for files and overrides alike.

    `delay_s` is the time of a batch of one; a batch of n takes `delay_s * n ** exponent`
    (exponent 0: a constant). A decoupled model sends `responses` answers, `delay_s` apart. It
    pretends to hold `gpu_mib` of a GPU: a file says so in `gpu_folder`, as its `.log` does.
    """
    behaviour = {
        "delay_s": delay_s,
        "exponent": exponent,
        "init_s": init_s,
        "tag": tag,
        "ballast_mib": ballast_mib,
        "gpu_mib": gpu_mib,
        "gpu_folder": gpu_folder or "",
        "restless": int(restless),
        "fail_load": int(fail_load),
        "fail_execute": int(fail_execute),
        "decoupled": int(decoupled),
        "responses": responses,
    }
    first = inputs[0]
    outputs = outputs or (
        Tensor("OUT", first.data_type, first.dims),
        Tensor("TAG", "TYPE_INT32", (1,)),
    )
    config: dict[str, Any] = {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch_size,
        "input": [_tensor(item) for item in inputs],
        "output": [_tensor(item) for item in outputs],
        "instance_group": [{"kind": "KIND_CPU", "count": instances}],
        "parameters": {key: {"string_value": str(value)} for key, value in behaviour.items()},
    }
    if max_batch_size > 0 and not decoupled:
        delay = {} if queue_delay_us is None else {"max_queue_delay_microseconds": queue_delay_us}
        config["dynamic_batching"] = delay
    if decoupled:
        config["model_transaction_policy"] = {"decoupled": True}
    return {**config, **(extra or {})}


def write_model(root: Path, name: str, **settings: Any) -> Path:
    """Write a model into a repository and return its folder; settings as `model_config`."""
    folder = root / name
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(_MODEL, encoding="utf-8")
    config = model_config(name, **settings)
    (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
    return folder


def alias_config(
    name: str,
    variant: str,
    *,
    max_batch_size: int = 8,
    inputs: Sequence[Tensor] = DEFAULT_INPUTS,
    outputs: Sequence[Tensor] | None = None,
    decoupled: bool = False,
) -> dict[str, Any]:
    """Return the config of an alias: an ensemble of one step."""
    first = inputs[0]
    outputs = outputs or (
        Tensor("OUT", first.data_type, first.dims),
        Tensor("TAG", "TYPE_INT32", (1,)),
    )
    config: dict[str, Any] = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch_size,
        "input": [_tensor(item) for item in inputs],
        "output": [_tensor(item) for item in outputs],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": variant,
                    "model_version": -1,
                    "input_map": {item.name: item.name for item in inputs},
                    "output_map": {item.name: item.name for item in outputs},
                }
            ]
        },
    }
    if decoupled:
        config["model_transaction_policy"] = {"decoupled": True}
    return config


def write_alias(root: Path, name: str, variant: str, **settings: Any) -> Path:
    """Write a repository alias; settings as `alias_config`."""
    folder = root / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    config = alias_config(name, variant, **settings)
    (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
    return folder


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": tensor.data_type, "dims": list(tensor.dims)}


_MAPS = frozenset({"parameters", "input_map", "output_map"})
_ENUMS = frozenset({"data_type", "kind"})


def to_pbtxt(config: Mapping[str, Any]) -> str:
    """Write a config in protobuf's text format, so far as these configs need it."""
    return "\n".join(_fields(config)) + "\n"


def _fields(message: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, value in message.items():
        if key in _MAPS:
            for entry, content in value.items():
                lines += [f"{key} {{", *_fields({"key": entry, "value": content}), "}"]
        elif isinstance(value, Mapping):
            lines += [f"{key} {{", *_fields(value), "}"]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for item in value:
                lines += [f"{key} {{", *_fields(item), "}"]
        elif isinstance(value, list | tuple):
            lines.append(f"{key}: [{', '.join(map(str, value))}]")
        elif isinstance(value, str) and key not in _ENUMS:
            lines.append(f"{key}: {json.dumps(value)}")
        else:
            lines.append(f"{key}: {json.dumps(value) if isinstance(value, bool) else value}")
    return lines


def fill_repository(root: Path) -> Path:
    """Write three echo variants (tags 1 to 3, fast to slow) and a repository alias `echo`."""
    for tag, (name, delay_s) in enumerate(
        (("echo_fast", 0.001), ("echo_mid", 0.004), ("echo_slow", 0.010)), start=1
    ):
        write_model(root, name, tag=tag, delay_s=delay_s)
    write_alias(root, "echo", "echo_fast")
    return root
