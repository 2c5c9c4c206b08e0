"""Compares predictors of service times, prequentially: each value is predicted, then learned.

    python benchmarks/predictors.py [--streams real,drift,outliers,newcomer]

A stream is what Triton's statistics tell twice a second: (variant, rows, how many batches, their
mean time). `real` was recorded from the demo's server (data/batches/demo_batches.csv); the
others are drawn: `drift` slows everything by 1.3 half way, `outliers` has one batch in a hundred
take five times as long, `newcomer` shows one variant only after half of the time, ten batches of
it a poll at most. Columns: pinball loss of the logarithm of the time (times 1000; mean of the
quantiles 50, 90 and 99 %), share of values under the stated 90 and 99 %, sharpness (the stated
99 % over the median), and the median milliseconds of learning a poll and of predicting the whole
table. Who predicts a mean only gets quantiles from his own last residuals, the same way for all.
Values of a variant that was never measured before are learned and not counted, as nobody decides
on it. Drawn streams are drawn three times; columns are means.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from contestants import PREDICTORS, QUANTILES, Predictor, Stream, Value, WithResiduals
from field_predictors import Bucketed, Linear, Longest
from threadpoolctl import threadpool_limits

_RECORDED = Path(__file__).parent / "data" / "batches" / "demo_batches.csv"
_POLL_S = 0.5
_SEEDS = (1, 2, 3)
_ALL: dict[str, Callable[[Stream], Predictor]] = {
    **PREDICTORS,
    "linear in rows, 50 batches (Clipper, BentoML)": lambda s: WithResiduals(Linear(s)),
    "linear over buckets, 64 samples (Dynamo)": lambda s: WithResiduals(Bucketed(s)),
    "longest of ten (Clockwork)": lambda s: WithResiduals(Longest(s)),
}


def recorded() -> Stream:
    """Return what the demo's server told."""
    polls: dict[str, list[Value]] = {}
    names: dict[str, int] = {}
    with _RECORDED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            variant = names.setdefault(row["variant"], len(names))
            value = Value(variant, int(row["rows"]), int(row["batches"]), float(row["mean_s"]))
            polls.setdefault(row["time_s"], []).append(value)
    largest = max(value.rows for poll in polls.values() for value in poll)
    return Stream(len(names), largest, list(polls.values()))


def drawn(kind: str, seed: int) -> Stream:
    """Return two minutes of batches of four variants whose load moves from one to the other."""
    rng = np.random.default_rng(seed)
    fixed_s, row_s = np.array([0.4, 0.6, 1.0, 2.0]) * 1e-3, np.array([0.1, 0.35, 0.8, 2.4]) * 1e-3
    polls, count = [], 240
    for poll in range(count):
        late = poll >= count // 2
        slow = 1.3 if kind == "drift" and late else 1.0
        serving = [(poll // 7) % 4, (poll // 7 + 1) % 4]
        if kind == "newcomer" and not late:
            serving = [min(one, 2) for one in serving]
        cells: dict[tuple[int, int], list[float]] = {}
        for _ in range(int(rng.integers(5, 60))):
            variant, rows = int(rng.choice(serving)), int(rng.integers(1, 9))
            if kind == "newcomer" and variant == 3 and sum(k[0] == 3 for k in cells) >= 10:
                continue
            took_s = (fixed_s[variant] + row_s[variant] * rows) * slow
            took_s *= math.exp(rng.normal(0.0, 0.08))
            if kind == "outliers" and rng.random() < 0.01:
                took_s *= 5.0
            cells.setdefault((variant, rows), []).append(took_s)
        polls.append(
            [Value(v, n, len(took), sum(took) / len(took)) for (v, n), took in cells.items()]
        )
    return Stream(4, 8, polls)


# --- the comparison


@dataclass(frozen=True, slots=True)
class Score:
    """How one predictor did on one stream."""

    pinball: float
    under_90: float
    under_99: float
    sharpness: float
    learn_ms: float
    predict_ms: float


def prequential(stream: Stream, make: Callable[[Stream], Predictor]) -> Score:
    """Predict each poll before it is learned."""
    predictor = make(stream)
    losses, under, ratios, learned_s, predicted_s = [], [], [], [], []
    measured: set[int] = set()
    for index, poll in enumerate(stream.polls):
        began_s = time.perf_counter()
        table = predictor.table()
        predicted_s.append(time.perf_counter() - began_s)
        for value in poll:
            if value.variant not in measured:
                continue
            said = table[value.variant, value.rows - 1]
            off = math.log(value.mean_s) - said
            losses.append(np.maximum(QUANTILES * off, (QUANTILES - 1.0) * off).mean())
            under.append(off <= 0.0)
            ratios.append(said[2] - said[0])
        measured |= {value.variant for value in poll}
        began_s = time.perf_counter()
        predictor.learn(poll, index * _POLL_S)
        learned_s.append(time.perf_counter() - began_s)
    covered = np.mean(under, axis=0)
    return Score(
        float(np.mean(losses)) * 1e3,
        float(covered[1]),
        float(covered[2]),
        float(np.exp(np.mean(ratios))),
        float(np.mean(learned_s)) * 1e3,
        float(np.median(predicted_s)) * 1e3,
    )


def _table(streams: list[Stream], name: str) -> Iterator[str]:
    values = sum(len(poll) for stream in streams for poll in stream.polls)
    yield f"\n**{name}**: {sum(len(stream.polls) for stream in streams)} polls, {values} values\n"
    yield "| predictor | pinball | under 90 % | under 99 % | 99 % / median | learn | predict |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    scores = {
        who: np.mean([astuple(prequential(stream, make)) for stream in streams], axis=0)
        for who, make in _ALL.items()
    }
    for who, row in sorted(scores.items(), key=lambda item: item[1][0]):
        score = Score(*row)
        yield (
            f"| {who} | {score.pinball:.1f} | {score.under_90:.1%} | {score.under_99:.1%} "
            f"| {score.sharpness:.2f} | {score.learn_ms:.2f} ms | {score.predict_ms:.2f} ms |"
        )


def main() -> int:
    """Compare everybody on every stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default="real,drift,outliers,newcomer", metavar="A,B")
    args = parser.parse_args()
    for name in args.streams.split(","):
        streams = [recorded()] if name == "real" else [drawn(name, seed) for seed in _SEEDS]
        # Threads that wait for each other make a fit of milliseconds one of seconds.
        with threadpool_limits(1):
            for line in _table(streams, name):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
