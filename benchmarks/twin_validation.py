"""Compares the simulated Triton with the real one: the same arrivals, their latencies.

    python benchmarks/twin_validation.py [--seconds 15] [--variants tiny,pruned,wide]

Each variant at light, medium and heavy load, and through a switch, on the embedded server. The
simulation gets what the real server says of itself in the same run: the mean time of each batch
size. What lies between client and server (the mean of one less the mean of the other) is added to
the simulated latencies; nothing else is fitted.
"""

import argparse
import os
import sys
import threading

import numpy as np
from batches import Totals, difference, totals
from numpy.typing import NDArray

from controller.demo.bench import Bench, open_bench
from controller.demo.live import Quiet
from controller.demo.load import LoadRun
from controller.demo.records import Records
from controller.demo.scenario import Schedule, Shape, steady
from controller.demo.session import prepare
from controller.twin.ladder import TwinVariant, interpolate
from controller.twin.server import Physics, SimulatedTriton

_LOADS = {"light": 0.25, "medium": 0.5, "heavy": 0.75}  # of what goes through at most
_WARMUP_S = 2.0


def main() -> int:
    """Measure every cell and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--variants", default="tiny,pruned,wide", metavar="A,B")
    args = parser.parse_args()
    print("| variant | load | requests | p50 real / simulated | off | p99 real / simulated | off |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with open_bench(*prepare(Quiet())) as bench:
        bench.calibrate(Shape(), lambda *_: None)
        capacity_rps = {served.name: served.requests_rps for served in bench.served}
        names = args.variants.split(",")
        for name in names:
            for word, share in _LOADS.items():
                schedule = _schedule(share * capacity_rps[name], args.seconds)
                print(_cell(bench, [name], word, schedule), flush=True)
        # From the slowest to the fastest in the middle of a load that only the latter bears well.
        slow, fast = names[-1], names[0]
        schedule = _schedule(0.75 * capacity_rps[slow], args.seconds)
        print(_cell(bench, [slow, fast], "switch", schedule), flush=True)
    return 0


def _schedule(rate_rps: float, duration_s: float) -> Schedule:
    return steady(rate_rps, seed=5, duration_s=duration_s, warmup_s=_WARMUP_S)


def _cell(bench: Bench, names: list[str], word: str, schedule: Schedule) -> str:
    models = {choice.name: choice.model for choice in bench.choices}
    bench.drain()
    bench.point(names[0])
    before = [totals(bench.server.grpc, models[name]) for name in names]
    switched_s: list[float] = []
    with LoadRun(bench.target(), schedule, bench.folder) as load:
        timer: threading.Timer | None = None
        for progress in load:
            bench.check()
            if len(names) > 1 and progress.time_s >= schedule.duration_s / 2 and timer is None:
                timer = threading.Timer(0.0, bench.point, [names[1]])
                timer.start()
        if timer is not None:
            timer.join()
        records = load.records()
    after = [totals(bench.server.grpc, models[name]) for name in names]
    spent = [difference(b, a) for b, a in zip(before, after, strict=True)]
    if len(names) > 1:
        # The first answer of the second variant tells when the switch took effect.
        number = [choice.name for choice in bench.choices].index(names[1])
        switched_s.append(float(records.due_s[records.variant == number].min()))
    simulated_ms = _simulated_ms(bench, names, spent, records, switched_s)
    keep = records.due_s >= 0.0
    real_ms = records.latency_ms[keep]
    simulated_ms = simulated_ms[keep]
    server_ms = sum(s.total_s for s in spent) / sum(s.requests for s in spent) * 1e3
    simulated_ms += float(np.nanmean(records.latency_ms)) - server_ms
    cells = [f"| {' to '.join(names)} | {word} | {len(real_ms)} "]
    for percentile in (50, 99):
        real, twin = np.nanpercentile(real_ms, percentile), np.percentile(simulated_ms, percentile)
        cells.append(f"| {real:.1f} / {twin:.1f} ms | {twin / real - 1:+.0%} ")
    return "".join(cells) + "|"


def _simulated_ms(
    bench: Bench,
    names: list[str],
    spent: list[Totals],
    records: Records,
    switched_s: list[float],
) -> NDArray[np.float64]:
    variants = []
    for name, own in zip(names, spent, strict=True):
        means_ms = own.means_ms
        largest = bench.models.max_rows
        means_ms.setdefault(largest, max(means_ms.values()))
        variants.append(TwinVariant(name, 1.0, interpolate(means_ms)))
    start_s = float(records.due_s[0])
    server = SimulatedTriton(
        variants,
        records.due_s - start_s,
        serving=0,
        rows=records.rows,
        physics=Physics(switch_s=0.0, parallel=os.cpu_count() or 1),
        seed=1,
    )
    for at_s in switched_s:
        server.advance(at_s - start_s)
        server.switch(1)
    server.advance(float(records.due_s[-1]) - start_s + 60.0)
    return server.latency_s() * 1e3


if __name__ == "__main__":
    sys.exit(main())
