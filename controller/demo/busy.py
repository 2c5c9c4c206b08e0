"""A neighbour's process: keeps one processor busy at the times that it is told.

Owns nothing but its loop. It runs alone (``python -m controller.demo.busy``): where and when is
one line of JSON on standard input, what it got of the processor is one on standard output.
"""

import json
import os
import sys
import time


def main() -> int:
    """Do the job on standard input. Times are of CLOCK_MONOTONIC, the same for all processes."""
    line = sys.stdin.readline()
    if not line:
        return 0  # it is not needed
    job = json.loads(line)
    os.sched_setaffinity(0, {int(job["core"])})
    took_s = []
    for start_s, end_s in job["spans_s"]:
        time.sleep(max(start_s - time.monotonic(), 0.0))
        before_s = time.process_time()
        while time.monotonic() < end_s:
            pass
        took_s.append(time.process_time() - before_s)
    sys.stdout.write(json.dumps({"took_s": took_s}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
