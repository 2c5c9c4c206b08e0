"""Asks the GPU source from a process whose loader finds the fake NVML.

Reads one word per line: `sample` (one reading), `health` (of the thread that runs since
`watch`), and answers each with one line of JSON.
"""

import dataclasses
import json
import os
import sys
import time

from controller.policy.model import GpuPolicy, GpuSource
from controller.telemetry.gpu import GpuAbsentError, GpuError, GpuWatch, NvmlSampler


def main() -> None:
    devices = json.loads(os.environ.get("PROBE_DEVICES", "null"))
    policy = GpuPolicy(GpuSource.NVML, None if devices is None else tuple(devices))
    tritons = {os.getppid()}
    sampler = NvmlSampler(policy, is_tritons=tritons.__contains__)
    watch = GpuWatch(policy, clock=time.monotonic, is_tritons=tritons.__contains__)
    for line in sys.stdin:
        answer: dict = {}
        match line.strip():
            case "sample":
                try:
                    answer["readings"] = [dataclasses.asdict(r) for r in sampler.sample()]
                except (GpuAbsentError, GpuError) as error:
                    answer[type(error).__name__] = str(error)
            case "watch":
                watch.start()
            case "health":
                began_s = time.monotonic()
                answer["health"] = dataclasses.asdict(watch.health(began_s))
                answer["readings"] = [dataclasses.asdict(r) for r in watch.readings(began_s, 1.0)]
                answer["took_s"] = time.monotonic() - began_s
            case "stop":
                began_s = time.monotonic()
                watch.stop()
                answer["took_s"] = time.monotonic() - began_s
        print(json.dumps(answer), flush=True)  # noqa: T201 - this is its answer


if __name__ == "__main__":
    main()
