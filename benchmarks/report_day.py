"""Writes a simulated day into a real journal, to look at `governor report` with.

    python benchmarks/report_day.py day.sqlite3 [--hours 24] [--tick 1.0]
    governor report --journal day.sqlite3 --since 24h -o report.html

The governor decides on a simulated Triton, the daemon's own recorder sums its minutes, and the
journal is the real one. Three models share a GPU: one busy by day, one with bursts, one without
traces. Loads, unloads, an hour of a slow GPU, a Triton that is gone for a while and a daemon that
is down are put into the day as a script: they are no measurement. Prints what a tick of the
recorder and a stored row come to.
"""

import argparse
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import controller.journal.journal as journal_module
from controller.daemon.actions import ActionLog
from controller.daemon.minutes import Minutes
from controller.journal import Journal
from controller.planning.core import GovernorCore
from controller.policy.model import GpuPolicy
from controller.ports import ActionRecord, Outcome
from controller.telemetry.observation import HostReading, Observation
from controller.twin.drive import profile_of
from controller.twin.ladder import TwinVariant
from controller.twin.load import Load
from controller.twin.many import Shared, policy_of
from controller.twin.port import TwinPort
from controller.twin.server import Change, Physics, SimulatedTriton

HOUR_S = 3600.0
DOWN_H = (3.2, 3.75)  # the daemon
GONE_H = (14.3, 14.42)  # Triton
SLOW_H = (10.5, 11.5)  # the GPU
NO_TRACES = "translation"


def ladder(prefix: str, rows: list[tuple[str, float, float, float]]) -> tuple[TwinVariant, ...]:
    """Return variants of (name, quality, ms of a batch of one, ms more of each row)."""
    return tuple(
        TwinVariant(f"{prefix}_{name}", quality, (one + each * np.arange(16)) / 1e3, 2e9)
        for name, quality, one, each in rows
    )


def arrivals(
    chance: np.random.Generator, hours: float, rate_rps: Callable[[float], float]
) -> np.ndarray:
    """Return the times of requests whose rate is a function of the hour."""
    seconds = np.arange(hours * HOUR_S)
    counts = chance.poisson(np.vectorize(rate_rps)(seconds / HOUR_S))
    return np.sort(np.repeat(seconds, counts) + chance.random(counts.sum()))


def day(hour: float, low: float, high: float) -> float:
    """Return a rate that is highest in the afternoon."""
    return low + (high - low) * max(np.sin(np.pi * ((hour - 6.0) % 24.0) / 15.0), 0.0) ** 1.5


def bursty(hour: float) -> float:
    """Return a rate with three minutes of three times as much in every 40."""
    return day(hour, 1.5, 7.0) * (3.0 if (hour * 60.0) % 40.0 < 3.0 else 1.0)


def models(hours: float, seed: int) -> list[Shared]:
    """Return the three models with their load."""
    chance = np.random.default_rng(seed)
    assistant = ladder(
        "assistant", [("full", 0.942, 38, 14), ("int8", 0.931, 20, 6), ("small", 0.884, 8, 2)]
    )
    vision = ladder(
        "vision",
        [
            ("large", 0.871, 26, 10),
            ("base", 0.842, 12, 4),
            ("small", 0.79, 6, 2),
            ("nano", 0.7, 3, 1),
        ],
    )
    translation = ladder("translation", [("big", 0.412, 60, 18), ("distilled", 0.388, 22, 6)])

    def load(
        variants: tuple[TwinVariant, ...], rate_rps: Callable[[float], float], limit_s: float
    ) -> Load:
        return Load(variants, arrivals(chance, hours, rate_rps), 0, limit_s)

    return [
        Shared("assistant", load(assistant, lambda h: day(h, 1.0, 14.0), 0.400), 1.0),
        Shared("vision", load(vision, bursty, 0.250), 1.0),
        Shared(NO_TRACES, load(translation, lambda h: day(h + 3.0, 0.3, 3.0), 0.600), 1.0),
    ]


def script(
    journal: Journal, actions: ActionLog, hour: float
) -> Iterator[tuple[float, Callable[[], None]]]:
    """Yield what else happens in the day, as (hour, what)."""
    done, failed, refused = Outcome.DONE, Outcome.FAILED, Outcome.REFUSED

    def act(
        kind: str,
        model: str,
        target: str,
        outcome: Outcome,
        took_s: float,
        error: str | None = None,
    ) -> Callable[[], None]:
        record = ActionRecord(
            kind, model, None, target, outcome, hour * HOUR_S, None, took_s, "warm pool", error
        )
        return lambda: actions.record(record)

    def tell(kind: str, model: str | None, message: str, **data: object) -> Callable[[], None]:
        return lambda: journal.event(kind, model, message, data or None)

    short = "not enough GPU memory: it takes 2.0 GiB, 1.4 GiB are free"
    yield 0.0, tell("start", None, "governor 0.1.0 started", pid=811)
    yield 0.4, act("load", "assistant", "assistant_full", done, 7.9)
    yield 2.1, act("unload", "vision", "vision_large", done, 0.6)
    yield DOWN_H[1], tell("start", None, "governor 0.1.0 started", pid=902)
    yield 6.6, act("load", "vision", "vision_large", refused, 0.0, short)
    yield 7.0, tell("schedule", None, "schedules in force: office-hours")
    yield 7.2, act("load", "vision", "vision_large", done, 5.1)
    yield 8.9, tell("policy", None, "a bad policy was refused", error="policy.yaml:12:5: objective")
    yield 9.1, tell("policy", None, "a new policy is in force", sha256="4f1c")
    yield 9.2, act("reload", "assistant", "assistant_int8", done, 4.4)
    yield 12.0, tell("pin", "assistant", "assistant is pinned to int8 for 30m", who="ada")
    yield 12.5, tell("pin ended", "assistant", "the pin ran out")
    yield 13.3, act("reload", "vision", "vision_base", failed, 31.0, "Triton: out of memory")
    yield GONE_H[0], tell("triton", None, "Triton is gone")
    yield GONE_H[1], tell("triton", None, "Triton is there", version="2.51.0")
    for at, name in enumerate(("assistant_small", "vision_nano", "assistant_int8", "vision_base")):
        yield GONE_H[1] + 0.01 * at, act("load", name.split("_")[0], name, done, 3.0 + at)
    yield 19.0, tell("schedule", None, "schedules in force: none")
    yield 19.1, act("unload", "assistant", "assistant_full", done, 0.7)
    yield 20.2, act("load", "assistant", "assistant_full", done, 8.3)


def main() -> None:
    """Write the day."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal", type=Path)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--tick", type=float, default=1.0, help="seconds; the daemon's are shorter")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    shared = models(args.hours, args.seed)
    slow = (Change(SLOW_H[0] * HOUR_S, 1.7), Change(SLOW_H[1] * HOUR_S, 1.0))
    policy = replace(policy_of(shared), interval_s=args.tick, gpu=GpuPolicy())
    server = SimulatedTriton.shared(
        [one.load for one in shared], physics=Physics(changes=slow), seed=args.seed
    )
    core, port = GovernorCore(policy), TwinPort(server, *policy.models)
    core.restore(profile_of(server, policy))
    began_unix_s = time.time() - args.hours * HOUR_S
    clock = SimpleNamespace(time=lambda: began_unix_s + server.now_s, monotonic=time.monotonic)
    journal_module.time = clock  # the journal stamps what it is given
    journal = Journal(args.journal, 64 * 1024 * 1024)
    journal.open()
    actions = ActionLog(journal, SimpleNamespace(note_action=lambda *_: None))
    minutes = Minutes(core, actions, journal, clock.time)
    due = list(script(journal, actions, 0.0))
    took_s, told_s = [], 0.0
    for tick in range(1, int(args.hours * HOUR_S / args.tick)):
        hour = tick * args.tick / HOUR_S
        server.advance(tick * args.tick)
        while due and due[0][0] <= hour:
            due.pop(0)[1]()
        if DOWN_H[0] <= hour < DOWN_H[1]:
            minutes.close()
            port.read()
            continue
        observation = seen(port.read(), hour)
        gone = GONE_H[0] <= hour < GONE_H[1]
        decisions = core.step(observation)
        began_s = time.perf_counter()
        minutes.tick(observation, decisions, policy, took_s=0.003, triton_up=not gone)
        took_s.append(time.perf_counter() - began_s)
        for decision in decisions:
            if decision.changes and not gone:
                record = port.act(decision)
                spread = float(np.random.default_rng(tick).lognormal(0.0, 0.4))
                actions.record(
                    replace(record, switch_s=0.0034 * spread, transaction_s=0.019 * spread)
                )
            if decision.changes or hour - told_s >= 1.0 / 60.0:
                journal.decision(decision)
        if hour - told_s >= 1.0 / 60.0:
            told_s = hour
            while journal.health()["queued"] > 500:
                time.sleep(0.01)
    minutes.close()
    journal.close(60.0)
    report(args.journal, took_s, len(shared))


def seen(observation: Observation, hour: float) -> Observation:
    """Return what the governor sees: traces of two models, nothing of a Triton that is gone."""
    busy = 0.2 + 0.1 * abs(np.sin(hour))
    gpu = replace(
        observation.gpus[0],
        temperature_celsius=52.0 + 25.0 * (observation.gpus[0].utilization_ratio or 0.0),
        memory_used_bytes=int(17e9),
        throttle_reasons=("sw_thermal",) if SLOW_H[0] <= hour < SLOW_H[1] else (),
    )
    observation = replace(
        observation,
        gpus=(gpu,),
        host=HostReading(cpu_ratio=busy),
        request_samples=tuple(s for s in observation.request_samples if s.alias != NO_TRACES),
    )
    if GONE_H[0] <= hour < GONE_H[1]:
        return replace(observation, variants={}, request_samples=(), readings_age_s=60.0)
    return observation


def report(path: Path, took_s: list[float], models_: int) -> None:
    """Print what it cost."""
    connection = sqlite3.connect(path)
    rows, body = connection.execute(
        "SELECT count(*), avg(length(body)) FROM minutes WHERE model IS NOT NULL"
    ).fetchone()
    connection.close()
    took = sorted(took_s)
    print(f"{rows} minutes of models, {body:.0f} bytes each (and 40 of columns and index)")
    print(
        f"the recorder, {models_} models: {statistics.median(took) * 1e6:.0f} us a tick in the"
        f" middle, {statistics.fmean(took) * 1e6:.0f} on average,"
        f" {took[int(0.99 * len(took))] * 1e6:.0f} at the 99th percentile"
    )


if __name__ == "__main__":
    main()
