"""What a planner gets that knows all but the arrivals to come, beside the governor.

    python benchmarks/foresight.py [--ladders bert-t4] [--limit-ms 60] [--tick-ms 20]
                                   [--seconds 30] [--samples 120] [--jobs N]

It looks ahead in the twin itself: the true state of every queue, the true service times, and the
true rate of the present second. At each tick it draws arrivals from that rate (a Poisson process)
and a noise, tries every variant for one tick and each one after it for an objective's time, and
takes the one whose answers in time are worth the most in the mean (a rollout: Bertsekas and
Castanon 1999). What it lacks is the future alone. It is no bound, as it looks one tick ahead and
then holds still, but tells where the gap to `clairvoyant` comes from. `ramsis` knows no future
either, but keeps one queue and binds a request to a variant when its batch begins, not when it
comes, which no alias can. Slow (a minute takes ten), so short windows of slow ladders only.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from controller.twin.contest import CLAIRVOYANT, GOVERNOR
from controller.twin.drive import Outcome
from controller.twin.ladder import load_ladder
from controller.twin.plan import Plan
from controller.twin.replay import oracle_quality, run_one
from controller.twin.scoring import Score, score
from controller.twin.server import SimulatedTriton
from controller.twin.trace import load_trace

DATA = Path(__file__).with_name("data")
FASTEST = "fixed:fastest"
BY_BATCH = "ramsis"
PRESENT = "knows the present"
SEED = 1
_OBJECTIVES = 1.0  # for which one variant serves after the tick
_ENDS = 1.5  # objectives more, in which what arrived is answered or late
_MORE = 1.6  # arrivals that are drawn, of those expected: enough for nearly every draw
_LEAST = 12
_DRAIN = 20.0  # objectives after the last request


@dataclass(frozen=True)
class Look:
    """How it looks ahead."""

    tick_s: float
    samples: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ladders", nargs="+", default=["bert-t4"])
    parser.add_argument("--limit-ms", type=float, default=60.0)
    parser.add_argument("--tick-ms", type=float, nargs="+", default=[20.0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=-1)
    args = parser.parse_args()
    looks = [Look(ms / 1e3, args.samples) for ms in args.tick_ms]
    cells = [(trace, name) for name in args.ladders for trace in sorted(DATA.glob("*.csv"))]
    print("| trace | ladder | who | quality | in time | headroom | switches |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    found = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(play)(trace, ladder, args.limit_ms / 1e3, args.seconds, looks)
        for trace, ladder in cells
    )
    for (trace, ladder), (oracle, scores) in zip(cells, found, strict=True):
        fastest = scores.pop(FASTEST).effective_quality
        for who, own in scores.items():
            captured = (own.effective_quality - fastest) / (oracle - fastest)
            print(
                f"| {trace.stem} | {ladder} | {who} | {own.effective_quality:.4f} "
                f"| {own.slo_attainment:.2%} | {captured:.1%} | {own.switches} |",
                flush=True,
            )


def play(
    trace: Path, ladder: str, limit_s: float, seconds: float, looks: list[Look]
) -> tuple[float, dict[str, Score]]:
    """Return the fluid oracle's quality and everybody's score on a cell."""
    window = load_trace(trace).window(0.0, seconds)
    plan = Plan(window, load_ladder(DATA / f"{ladder}.yaml"), limit_s)
    load = plan.load()
    scores = {who: run_one(plan, load, who, SEED).score for who in (FASTEST, GOVERNOR)}
    for look in looks:
        scores[f"{PRESENT}, {look.tick_s * 1e3:.0f} ms"] = present(plan, look)
    for who in (CLAIRVOYANT, BY_BATCH):
        scores[who] = run_one(plan, load, who, SEED).score
    return oracle_quality(plan, load), scores


def present(plan: Plan, look: Look) -> Score:
    """Let the one who knows the present serve."""
    load = plan.load()
    server = SimulatedTriton(
        plan.variants,
        load.arrivals_s(SEED),
        serving=plan.setting().fastest,
        limit_s=plan.limit_s,
        physics=plan.physics(load),
        seed=SEED,
    )
    rng = np.random.default_rng(SEED)
    for tick in range(int(load.duration_s / look.tick_s)):
        server.advance(tick * look.tick_s)
        second = min(int(server.now_s / load.step_s), len(load.rate_rps) - 1)
        best = choose(server, float(load.rate_rps[second]), look, rng)
        if best != server.serving:
            server.switch(best)
    server.advance(load.duration_s + _DRAIN * plan.limit_s)
    outcome = Outcome(server.latency_s(), server.served_by(), server.switches, np.empty(0))
    return score(outcome, np.array([v.quality for v in plan.variants]), plan.limit_s)


def choose(server: SimulatedTriton, rate_rps: float, look: Look, rng: np.random.Generator) -> int:
    """Return the variant for the next tick."""
    variants = range(len(server.variants))
    next_s = server.now_s + look.tick_s
    until_s = next_s + _OBJECTIVES * server.limit_s
    earned = np.zeros((len(variants), len(variants)))  # first, then
    for _ in range(look.samples):
        seed = int(rng.integers(2**31))
        coming_s = _arrivals_s(server.now_s, until_s, rate_rps, rng)
        for first in variants:
            ahead = server.imagine(coming_s, seed)
            _point(ahead, first)
            ahead.advance(next_s)
            for then in variants:
                after = ahead.fork()
                _point(after, then)
                after.advance(until_s + _ENDS * server.limit_s)
                earned[first, then] += after.earned
    return int(earned.max(axis=1).argmax())


def _arrivals_s(
    from_s: float, to_s: float, rate_rps: float, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if rate_rps <= 0.0:
        return np.empty(0)
    count = int(_MORE * rate_rps * (to_s - from_s)) + _LEAST
    drawn_s = from_s + rng.exponential(1.0 / rate_rps, count).cumsum()
    return np.asarray(drawn_s[drawn_s <= to_s])


def _point(server: SimulatedTriton, variant: int) -> None:
    if variant != server.serving or server.switching:
        server.switch(variant)


if __name__ == "__main__":
    main()
