"""The rolled-forward latencies against a simulation of the same queue, event by event."""

import numpy as np
import pytest

from controller.prediction.arrivals import RateForecast
from controller.prediction.latency import POINT_WEIGHTS, Rollout, Situation, roll_forward

WINDOWS = 600


def _simulated_s(table_s, rate_rps, horizon_s, waiting_rows):
    """Return the latencies of what arrives in many windows, each served to its end."""
    random = np.random.default_rng(7)
    limit, found = len(table_s), []
    for _ in range(WINDOWS):
        until_s = horizon_s + 6.0 * table_s[-1]  # what comes later fills the last batches
        arrivals = np.sort(random.uniform(0.0, until_s, random.poisson(rate_rps * until_s)))
        times = np.concatenate([np.full(waiting_rows, -1.0), arrivals])
        # Where rows wait, a batch is in execution.
        free_s = random.uniform() * table_s[-1] if waiting_rows else 0.0
        at = 0
        while at < len(times) and times[at] < horizon_s:
            start_s = max(free_s, times[at])
            taken = min(int(np.searchsorted(times, start_s, side="right")) - at, limit)
            free_s = start_s + table_s[taken - 1]
            batch = times[at : at + taken]
            found.extend(free_s - batch[(batch >= 0.0) & (batch < horizon_s)])
            at += taken
    return np.array(found)


def _rolled(table_s, rate_rps, horizon_s, waiting_rows) -> Rollout:
    situation = Situation(
        table_s=np.array([table_s]),
        limits=np.array([len(table_s)]),
        waiting_rows=np.array([float(waiting_rows)]),
        running_rows=np.zeros(1),
        other_work_s=np.zeros(1),
        forecast=RateForecast(np.full(6, rate_rps), np.full(6, 1 / 6), 1.0, 1.0),
    )
    return roll_forward([situation], horizon_s=horizon_s, contention=1.0)


@pytest.mark.parametrize("waiting", ["nothing waits", "a batch waits"])
@pytest.mark.parametrize("utilisation", [0.8, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("horizon_s", [0.02, 0.06])
@pytest.mark.parametrize(
    ("fixed_s", "row_s", "limit"),
    [(0.0005, 0.0004, 8), (0.002, 0.002, 8), (0.005, 0.005, 16), (0.01, 0.01, 32)],
)
def test_latencies_are_those_of_a_batching_queue(
    fixed_s, row_s, limit, horizon_s, utilisation, waiting
):
    table_s = fixed_s + row_s * np.arange(1, limit + 1)
    rate_rps = utilisation * limit / table_s[-1]
    waiting_rows = limit if waiting == "a batch waits" else 0
    seen_s = _simulated_s(table_s, rate_rps, horizon_s, waiting_rows)
    rolled = _rolled(table_s, rate_rps, horizon_s, waiting_rows)
    mean_s = rolled.latency_s[0] @ POINT_WEIGHTS
    # Before calibration.
    assert 0.8 < mean_s / seen_s.mean() < 1.4
    assert 0.6 < rolled.quantiles_s(0.99)[0][0] / np.quantile(seen_s, 0.99) < 1.35


def test_more_waiting_is_never_better():
    table_s = 0.002 + 0.002 * np.arange(1, 9)
    tails = [_rolled(table_s, 300.0, 0.02, n).quantiles_s(0.99)[0][0] for n in range(0, 65, 8)]
    assert tails == sorted(tails)
    assert tails[-1] > tails[0]
