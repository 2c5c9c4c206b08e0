"""A simulated day at the daemon's own pace: what is learned, kept and recorded stays in bounds.

`TRITON_GOVERNOR_DAY_H` is how many hours, 24 by default: 864,000 ticks of a tenth of a second, half
an hour of computing. The core, the recorder of minutes and the journal are the daemon's; the server
is the twin. The journal's limit is so small that it is reached in the first hours. At the end the
report of the day is written.
"""

import gc
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import controller.journal.journal as journal_module
from controller.cli.main import main
from controller.daemon.actions import ActionLog
from controller.daemon.log import AUDIT
from controller.daemon.minutes import Minutes
from controller.journal.journal import Journal
from controller.planning.core import GovernorCore
from controller.twin.drive import profile_of
from controller.twin.ladder import TwinVariant
from controller.twin.load import Load
from controller.twin.many import Shared, policy_of
from controller.twin.port import TwinPort
from controller.twin.server import Physics, SimulatedTriton

HOURS = float(os.environ.get("TRITON_GOVERNOR_DAY_H", "24"))
HOUR_S = 3600.0
TICK_S = 0.1
QUARTER_TICKS = round(HOUR_S / TICK_S / 4.0)  # of an hour
JOURNAL_BYTES = 8 * 1024 * 1024
LADDER = (("best", 0.95, 24), ("good", 0.90, 12), ("fast", 0.82, 5))  # name, quality, ms
LIMIT_S = 0.2
MOST_GROWTH_MB = 10.0


def arrivals() -> np.ndarray:
    """A day whose afternoon is busy, with a burst of two minutes in every half an hour."""
    chance = np.random.default_rng(1)
    seconds = np.arange(HOURS * HOUR_S)
    rate = 2.0 + 16.0 * np.maximum(np.sin(np.pi * (seconds / HOUR_S - 6.0) / 15.0), 0.0)
    rate = np.where(seconds % 1800.0 < 120.0, 3.0 * rate, rate)
    counts = chance.poisson(rate)
    return np.sort(np.repeat(seconds, counts) + chance.random(counts.sum()))


def live_a_day(
    server: SimulatedTriton, model: Shared, journal: Journal, clock: SimpleNamespace
) -> np.ndarray:
    """Return samples of (hour, resident MB, kB of what is learned, MiB of the journal)."""
    policy = replace(policy_of([model]), interval_s=TICK_S)
    core, port = GovernorCore(policy), TwinPort(server, *policy.models)
    core.restore(profile_of(server, policy))
    actions = ActionLog(journal, SimpleNamespace(note_action=lambda *_: None))
    minutes = Minutes(core, actions, journal, clock.time)
    process, samples = psutil.Process(), []
    for tick in range(1, round(HOURS * HOUR_S / TICK_S)):
        server.advance(tick * TICK_S)
        observation = port.read()
        decisions = core.step(observation)
        minutes.tick(observation, decisions, policy, took_s=0.001, triton_up=True)
        for decision in decisions:
            journal.decision(decision)
            if decision.changes:
                actions.record(replace(port.act(decision), switch_s=0.003, transaction_s=0.02))
        if tick % QUARTER_TICKS == 0:
            journal.save_learned("core", core.state())
            drained(journal, 0)
            gc.collect()
            samples.append(
                (
                    tick * TICK_S / HOUR_S,
                    process.memory_info().rss / 1e6,
                    len(json.dumps(core.state())) / 1e3,
                    journal.health()["size_bytes"] / 2**20,
                )
            )
        elif tick % 512 == 0:
            drained(journal, 1000)
    minutes.close()
    return np.array(samples)


def drained(journal: Journal, most: int) -> None:
    """Wait for the journal's thread: a simulated day is faster than a disk."""
    while journal.health()["queued"] > most:
        time.sleep(0.005)


@pytest.mark.soak
def test_a_simulated_day_leaves_nothing_behind_but_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(AUDIT, "disabled", True)  # pytest would keep every line
    variants = tuple(
        TwinVariant(name, quality, each_ms / 1e3 * np.arange(1, 17) ** 0.8)
        for name, quality, each_ms in LADDER
    )
    model = Shared("assistant", Load(variants, arrivals(), 2, LIMIT_S))
    server = SimulatedTriton.shared([model.load], physics=Physics(noise=0.05))
    begins_unix_s = time.time() - HOURS * HOUR_S
    clock = SimpleNamespace(time=lambda: begins_unix_s + server.now_s, monotonic=time.monotonic)
    monkeypatch.setattr(journal_module, "time", clock)
    path = tmp_path / "journal.sqlite3"
    journal = Journal(path, JOURNAL_BYTES)
    journal.open()
    hour, rss_mb, state_kb, journal_mib = live_a_day(server, model, journal, clock).T
    assert journal.close(60.0)
    late = hour >= hour[-1] / 3.0
    slope = np.polyfit(hour[late], rss_mb[late], 1)[0]
    growth_mb = slope * (hour[late][-1] - hour[late][0])
    in_time = server.latency_s() <= LIMIT_S
    with capsys.disabled():
        print()
        for name, column in (("resident MB", rss_mb), ("learned kB", state_kb)):
            print(f"{name}: {column[0]:.1f} at first, {column[late][0]:.1f}, {column[-1]:.1f}")
        print(f"journal: {journal_mib.max():.2f} MiB at most; {growth_mb:+.1f} MB in the last part")
        print(f"{len(in_time)} requests, {in_time.mean():.4f} in time, {server.switches} switches")
    assert growth_mb < MOST_GROWTH_MB
    assert state_kb[late].max() < 1.5 * state_kb[late][0] + 10.0
    assert journal_mib.max() <= JOURNAL_BYTES / 2**20
    assert journal.health()["dropped"] == 0
    assert in_time.mean() > 0.98
    page = Path(os.environ.get("TRITON_GOVERNOR_DAY_KEEP") or tmp_path / "report.html")
    since = f"{HOURS:g}h"
    assert main(["report", "--journal", str(path), "--since", since, "-o", str(page)]) == 0
    assert "assistant" in page.read_text(encoding="utf-8")
