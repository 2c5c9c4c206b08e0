"""Measures what the governor itself costs: processor, memory and ticks, on a real Triton.

    python benchmarks/cost.py [--intervals 100ms,20ms] [--rate 60] [--seconds 60] [--json FILE]

One model with the five sample variants under a steady load; a fresh daemon for each interval,
children and fits included, after a warm-up. Ratios of one core.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.demo.arms import policy_for
from controller.demo.bench import Bench, open_bench
from controller.demo.governed import Governor
from controller.demo.live import Quiet
from controller.demo.load import LoadRun
from controller.demo.scenario import Schedule, steady
from controller.demo.session import prepare

_WARMUP_S = 8.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a daemon took at one interval."""

    interval: str
    ticks_s: float
    cpu_ratio: float  # of one core
    rss_bytes: int
    tick_p50_ms: float
    tick_p99_ms: float

    def row(self) -> str:
        """Return a row of the table."""
        return (
            f"| {self.interval} | {self.ticks_s:.1f} | {self.cpu_ratio:.2%} "
            f"| {self.rss_bytes / 1e6:.0f} MB "
            f"| {self.tick_p50_ms:.2f} / {self.tick_p99_ms:.2f} ms |"
        )


def main() -> int:
    """Measure every interval and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intervals", default="100ms,20ms", metavar="100ms,20ms")
    parser.add_argument("--rate", type=float, default=60.0, metavar="RPS")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, too")
    args = parser.parse_args()
    schedule = steady(args.rate, seed=1, duration_s=args.seconds, warmup_s=_WARMUP_S)
    print("| interval | ticks a second | processor | memory | tick p50 / p99 |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with open_bench(*prepare(Quiet())) as bench:
        bench.point(bench.choices[0].name)
        costs = []
        for interval in args.intervals.split(","):
            costs.append(_measure(bench, interval, schedule))
            print(costs[-1].row(), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(cost) for cost in costs]), encoding="utf-8")
    return 0


def _measure(bench: Bench, interval: str, schedule: Schedule) -> Cost:
    folder: Path = bench.folder / interval
    folder.mkdir()
    with Governor(policy_for(bench, interval), folder) as governor:
        governor.wait_until_serving()
        with LoadRun(bench.target(), schedule, folder) as load:
            first, count = 0, 0
            for progress in load:
                governor.check()
                if progress.time_s >= 0.0 and not count:
                    governor.meter.restart()
                    first = _ticks(governor)
                count += progress.time_s >= 0.0
                governor.meter.sample()
        usage = governor.meter.usage()
        tick = (governor.status() or {})["tick_ms"]
        rate = (tick["count"] - first) / schedule.duration_s
    return Cost(interval, rate, usage.cpu_ratio, usage.rss_bytes, tick["p50"], tick["p99"])


def _ticks(governor: Governor) -> int:
    return int((governor.status() or {})["tick_ms"]["count"])


if __name__ == "__main__":
    sys.exit(main())
