"""Measures what the governor itself costs: processor, memory and ticks, on a real Triton.

    python benchmarks/cost.py [--intervals 100ms,20ms] [--rate 60] [--seconds 60]

One model with the five sample variants under a steady load; a fresh daemon for each interval,
children and fits included, after a warm-up. Ratios of one core.
"""

import argparse
import sys
from pathlib import Path

from controller.demo.arms import policy_for
from controller.demo.bench import Bench, open_bench
from controller.demo.governed import Governor
from controller.demo.live import Quiet
from controller.demo.load import LoadRun
from controller.demo.scenario import Schedule, steady
from controller.demo.session import prepare

_WARMUP_S = 8.0


def main() -> int:
    """Measure every interval and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intervals", default="100ms,20ms", metavar="100ms,20ms")
    parser.add_argument("--rate", type=float, default=60.0, metavar="RPS")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    schedule = steady(args.rate, seed=1, duration_s=args.seconds, warmup_s=_WARMUP_S)
    print("| interval | ticks a second | processor | memory | tick p50 / p99 |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with open_bench(*prepare(Quiet())) as bench:
        bench.point(bench.choices[0].name)
        for interval in args.intervals.split(","):
            print(_measure(bench, interval, schedule), flush=True)
    return 0


def _measure(bench: Bench, interval: str, schedule: Schedule) -> str:
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
    return (
        f"| {interval} | {rate:.1f} | {usage.cpu_ratio:.2%} | {usage.rss_bytes / 1e6:.0f} MB "
        f"| {tick['p50']:.2f} / {tick['p99']:.2f} ms |"
    )


def _ticks(governor: Governor) -> int:
    return int((governor.status() or {})["tick_ms"]["count"])


if __name__ == "__main__":
    sys.exit(main())
