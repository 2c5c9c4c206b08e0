"""A neighbour's process: keeps one processor busy at the times that it is told, in short bursts.

Owns nothing but its loop. It runs alone (``python -m controller.demo.busy``): where and when is
one line of JSON on standard input, what it got of the processor is one on standard output.
"""

import json
import os
import sys
import time

BUSY_S = 0.001
"""A burst, by the clock on the wall: short beside a batch, so that each batch loses the same."""
EVERY_S = 0.0045


def main() -> int:
    """Do the job on standard input. Times are of CLOCK_MONOTONIC, the same for all processes."""
    line = sys.stdin.readline()
    if not line:
        return 0  # it is not needed
    job = json.loads(line)
    os.sched_setaffinity(0, {int(job["core"])})
    rises_s = max(float(job["rises_s"]), BUSY_S)  # until it is as busy as it gets
    took_s = []
    for start_s, end_s in job["spans_s"]:
        time.sleep(max(start_s - time.monotonic(), 0.0))
        before_s = time.process_time()
        burst_s = start_s + float(job["phase_s"])
        while burst_s < end_s:
            time.sleep(max(burst_s - time.monotonic(), 0.0))
            now_s = time.monotonic()
            until_s = now_s + BUSY_S * min((now_s - start_s) / rises_s, 1.0)
            while time.monotonic() < until_s:
                pass
            # Not what it missed: a neighbour that catches up is one that is always busy.
            burst_s = max(burst_s + EVERY_S, time.monotonic())
        took_s.append(time.process_time() - before_s)
    sys.stdout.write(json.dumps({"took_s": took_s}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
