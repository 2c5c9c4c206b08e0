"""The golden decision trace: what the whole core decides on a fixed load, tick by tick.

A change of this file is a change of behaviour. When it is meant:
`GOVERNOR_GOLDEN=write .venv/bin/pytest tests/unit/test_planning_golden.py`, and read the diff.
"""

import os
from pathlib import Path

from bench_server import bursts, run
from test_planning_core import POLICY, SERVERS

from controller.planning.core import GovernorCore

GOLDEN = Path(__file__).parent / "golden" / "decisions.txt"


def _trace() -> list[str]:
    load = bursts(25.0, 60.0, 900.0, seed=5)
    decisions = run(POLICY, SERVERS, load, core=GovernorCore(POLICY), serving="m_tiny").decisions
    lines, before = [], None
    for decision in decisions:
        now = (decision.serving, decision.desired, decision.target, decision.reason.value)
        if now != before:
            words = " ".join(str(word) for word in now)
            lines.append(f"{decision.now_s:7.3f} {words} backlog={decision.backlog_requests}")
        before = now
    return lines


def test_the_core_decides_as_it_did():
    trace = _trace()
    if os.environ.get("GOVERNOR_GOLDEN") == "write":
        GOLDEN.write_text("\n".join(trace) + "\n")
    assert trace == GOLDEN.read_text().splitlines()


def test_the_trace_holds_what_a_governor_does():
    reasons = {line.split()[4] for line in GOLDEN.read_text().splitlines()}
    assert {"steady", "best_feasible", "escape", "dwell", "lull"} <= reasons
