"""Compares the simulated Triton with the real one: the same arrivals, their latencies.

    python benchmarks/twin_validation.py [--seconds 15] [--variants tiny,pruned,wide]
    python benchmarks/twin_validation.py --device bert-t4 [--slower 5] [--seconds 15]

Each variant at light, medium and heavy load, and through a switch, on the embedded server. The
simulation gets what the real server says of itself in the same run: the mean time of each batch
size. What lies between client and server (the mean of one less the mean of the other) is added to
the simulated latencies; nothing else is fitted.

Without `--device` these are the sample models, which compute on the processors that server and
client need, too. With it they are models that take a GPU's time (`device_models.py`), all of a
ladder, and the processors are as free as beside a GPU.
"""

import argparse
import asyncio
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from batches import Totals, difference, totals
from device_models import ask, point, write_model
from numpy.typing import NDArray

from controller.demo.bench import Bench, open_bench
from controller.demo.live import Quiet
from controller.demo.load import LoadRun
from controller.demo.scenario import Schedule, Shape, steady
from controller.demo.session import prepare
from controller.embedded.install import install
from controller.embedded.server import start_server
from controller.twin.ladder import TwinVariant, interpolate, load_ladder
from controller.twin.server import Physics, SimulatedTriton

DATA = Path(__file__).with_name("data")
MOST_ROWS = 32
_LOADS = {"light": 0.25, "medium": 0.5, "heavy": 0.75}  # of what goes through at most
_SAMPLES = ("tiny", "pruned", "wide")
_WARMUP_S = 2.0
# Of the time. Half way, the median would lie between the latencies of the one and of the other.
_SWITCH_AT = 0.35


@dataclass(frozen=True)
class Asked:
    """What clients saw of requests, those of the warm-up too. All [requests]."""

    due_s: NDArray[np.float64]  # those of the warm-up are before 0
    rows: NDArray[np.int64]
    client_ms: NDArray[np.float64]
    second: NDArray[np.bool_]  # whether the last variant answered


@dataclass(frozen=True)
class Compared:
    """Latencies of the same requests, at the client and in the simulation. All [requests]."""

    client_ms: NDArray[np.float64]
    simulated_ms: NDArray[np.float64]
    server_ms: float  # mean of what the real server took
    counted: NDArray[np.bool_]


def main() -> int:
    """Measure every cell and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--variants", type=lambda text: text.split(","), metavar="A,B")
    parser.add_argument("--device", metavar="LADDER", help="of benchmarks/data")
    parser.add_argument("--slower", type=float, default=5.0, help="every time of the ladder, times")
    args = parser.parse_args()
    print("| variant | load | requests | p50 real / simulated | off | p99 real / simulated | off |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    if args.device is None:
        with open_bench(*prepare(Quiet())) as bench:
            bench.calibrate(Shape(), lambda *_: None)
            capacity_rps = {served.name: served.requests_rps for served in bench.served}
            names = args.variants or _SAMPLES
            _table(names, capacity_rps, args.seconds, partial(_on_host, bench))
        return 0
    ladder = load_ladder(DATA / f"{args.device}.yaml")
    variants = [replace(v, table_s=v.table_s[:MOST_ROWS] * args.slower) for v in ladder.variants]
    if args.variants:
        variants = [variant for variant in variants if variant.name in args.variants]
    variants.sort(key=lambda variant: variant.table_s[-1])
    capacity_rps = {v.name: v.max_batch / float(v.table_s[-1]) for v in variants}
    with tempfile.TemporaryDirectory(prefix="tg-twin-", dir="/tmp") as folder:
        root = Path(folder) / "models"
        for tag, variant in enumerate(variants):
            write_model(root, variant, tag, Path(folder) / "device")
        with start_server(
            install(lambda *_: None),
            root,
            log_file=Path(folder) / "triton.log",
            load_models=[v.name for v in variants],
        ) as server:
            run = partial(_on_device, server.grpc, variants)
            _table([v.name for v in variants], capacity_rps, args.seconds, run)
    return 0


def _table(
    names: Sequence[str],
    capacity_rps: Mapping[str, float],
    seconds: float,
    run: Callable[[Sequence[str], Schedule], Compared],
) -> None:
    for name in names:
        for word, share in _LOADS.items():
            schedule = _schedule(share * capacity_rps[name], seconds)
            print(_cell([name], word, run([name], schedule)), flush=True)
    # To the fastest, amid a load that leaves the other one little room.
    for slow in reversed(names[1:]):
        both = [slow, names[0]]
        schedule = _schedule(0.75 * capacity_rps[slow], seconds)
        print(_cell(both, "switch", run(both, schedule)), flush=True)


def _schedule(rate_rps: float, duration_s: float) -> Schedule:
    return steady(rate_rps, seed=5, duration_s=duration_s, warmup_s=_WARMUP_S)


def _cell(names: Sequence[str], word: str, found: Compared) -> str:
    simulated_ms = found.simulated_ms + float(np.nanmean(found.client_ms)) - found.server_ms
    real_ms, simulated_ms = found.client_ms[found.counted], simulated_ms[found.counted]
    cells = [f"| {' to '.join(names)} | {word} | {len(real_ms)} "]
    for percentile in (50, 99):
        real, twin = np.nanpercentile(real_ms, percentile), np.percentile(simulated_ms, percentile)
        cells.append(f"| {real:.1f} / {twin:.1f} ms | {twin / real - 1:+.1%} ")
    return "".join(cells) + "|"


def _on_host(bench: Bench, names: Sequence[str], schedule: Schedule) -> Compared:
    """Ask the sample models; the second of two from the switch on."""
    models = {choice.name: choice.model for choice in bench.choices}
    bench.drain()
    bench.point(names[0])
    before = [totals(bench.server.grpc, models[name]) for name in names]
    with LoadRun(bench.target(), schedule, bench.folder) as load:
        timer: threading.Timer | None = None
        for progress in load:
            bench.check()
            is_due = progress.time_s >= _SWITCH_AT * schedule.duration_s
            if len(names) > 1 and is_due and timer is None:
                timer = threading.Timer(0.0, bench.point, [names[1]])
                timer.start()
        if timer is not None:
            timer.join()
        records = load.records()
    after = [totals(bench.server.grpc, models[name]) for name in names]
    second = records.variant == [choice.name for choice in bench.choices].index(names[-1])
    asked = Asked(records.due_s, records.rows, records.latency_ms, second)
    physics = Physics(switch_s=0.0, parallel=os.cpu_count() or 1)
    return _compared(asked, list(map(difference, before, after)), bench.models.max_rows, physics)


def _on_device(
    grpc: str, variants: Sequence[TwinVariant], names: Sequence[str], schedule: Schedule
) -> Compared:
    """Ask models that take a GPU's time; the second of two from the switch on."""

    async def asked() -> Asked:
        await point(grpc, names[0])
        due_s = schedule.due_s
        asking = asyncio.create_task(ask(grpc, due_s, lead_s=_WARMUP_S, counted_s=-math.inf))
        if len(names) > 1:
            await asyncio.sleep(_WARMUP_S + _SWITCH_AT * schedule.duration_s)
            await point(grpc, names[1])
        answers = await asking
        second = answers.variant == [variant.name for variant in variants].index(names[-1])
        rows = np.ones(len(answers.due_s), dtype=np.int64)
        client_ms = np.where(np.isfinite(answers.latency_s), answers.latency_s * 1e3, np.nan)
        return Asked(answers.due_s, rows, client_ms, second)

    before = [totals(grpc, name) for name in names]
    found = asyncio.run(asked())
    after = [totals(grpc, name) for name in names]
    largest = max(variant.max_batch for variant in variants)
    # A sleep is punctual, unlike a GPU.
    physics = Physics(switch_s=0.0, noise=0.01)
    return _compared(found, list(map(difference, before, after)), largest, physics)


def _compared(asked: Asked, spent: Sequence[Totals], largest: int, physics: Physics) -> Compared:
    """Send the same requests to a simulation."""
    variants = []
    for number, own in enumerate(spent):
        means_ms = own.means_ms
        means_ms.setdefault(largest, max(means_ms.values()))
        variants.append(TwinVariant(str(number), 1.0, interpolate(means_ms)))
    start_s = float(asked.due_s[0])
    server = SimulatedTriton(
        variants, asked.due_s - start_s, serving=0, rows=asked.rows, physics=physics, seed=1
    )
    if len(variants) > 1:
        # The first answer of the second variant tells when the switch took effect.
        server.advance(float(asked.due_s[asked.second].min()) - start_s)
        server.switch(1)
    server.advance(float(asked.due_s[-1]) - start_s + 60.0)
    server_s = sum(s.total_s for s in spent) / sum(s.requests for s in spent)
    return Compared(asked.client_ms, server.latency_s() * 1e3, server_s * 1e3, asked.due_s >= 0.0)


if __name__ == "__main__":
    sys.exit(main())
