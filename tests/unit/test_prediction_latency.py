"""The rolled-forward latencies against a simulation of the same queue, event by event."""

import numpy as np
import pytest

from controller.prediction.arrivals import RateForecast
from controller.prediction.latency import Situation, roll_forward
from controller.prediction.rollout import Rollout

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


def _simulated_together_s(table_s, rate_rps, horizon_s, instances, overlap):
    """Return the same of several instances that are at work, where nothing waits at first.

    A batch is slowed by those that it begins beside.
    """
    random = np.random.default_rng(7)
    limit, found = len(table_s), []
    warm_s = 20.0 * table_s[-1]
    until_s = warm_s + horizon_s + 6.0 * table_s[-1]
    for _ in range(WINDOWS // 2):
        times = np.sort(random.uniform(0.0, until_s, random.poisson(rate_rps * until_s)))
        free_s, at, seen, waits = np.zeros(instances), 0, [], False
        while at < len(times) and times[at] < warm_s + horizon_s and not waits:
            one = int(free_s.argmin())
            start_s = max(free_s[one], times[at])
            taken = min(int(np.searchsorted(times, start_s, side="right")) - at, limit)
            beside = (np.delete(free_s, one) > start_s).sum()
            free_s[one] = start_s + table_s[taken - 1] * (1.0 + beside * overlap)
            batch = times[at : at + taken]
            waits = batch[0] < warm_s <= start_s
            seen.extend(free_s[one] - batch[(batch >= warm_s) & (batch < warm_s + horizon_s)])
            at += taken
        found.extend([] if waits else seen)
    return np.array(found)


def _rolled(table_s, rate_rps, horizon_s, waiting_rows, instances=None, overlap=0.0) -> Rollout:
    situation = Situation(
        table_s=np.array([table_s]),
        limits=np.array([len(table_s)]),
        waiting_rows=np.array([float(waiting_rows)]),
        running_rows=np.zeros(1),
        other_work_s=np.zeros(1),
        forecast=RateForecast.of(np.full(6, rate_rps), np.full(6, 1 / 6), 1.0, 1.0),
        instances=None if instances is None else np.array([float(instances)]),
        overlap=np.array([overlap]),
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
    mean_s = rolled.latency_s[0] @ rolled.weights
    # Before calibration.
    assert 0.8 < mean_s / seen_s.mean() < 1.4
    assert 0.6 < rolled.quantiles_s(0.99)[0][0] / np.quantile(seen_s, 0.99) < 1.35


def test_more_waiting_is_never_better():
    table_s = 0.002 + 0.002 * np.arange(1, 9)
    tails = [_rolled(table_s, 300.0, 0.02, n).quantiles_s(0.99)[0][0] for n in range(0, 65, 8)]
    assert tails == sorted(tails)
    assert tails[-1] > tails[0]


@pytest.mark.parametrize("instances", [2, 3])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("utilisation", [0.8])
@pytest.mark.parametrize(("fixed_s", "row_s", "limit"), [(0.002, 0.002, 8), (0.005, 0.005, 16)])
def test_latencies_are_those_of_a_batching_queue_with_several_instances(
    fixed_s, row_s, limit, utilisation, overlap, instances
):
    table_s = fixed_s + row_s * np.arange(1, limit + 1)
    together = instances / (1.0 + (instances - 1) * overlap)
    rate_rps = utilisation * together * limit / table_s[-1]
    seen_s = _simulated_together_s(table_s, rate_rps, 0.06, instances, overlap)
    rolled = _rolled(table_s, rate_rps, 0.06, 0, instances, overlap)
    mean_s = rolled.latency_s[0] @ rolled.weights
    assert rolled.utilization_ratio[0] == pytest.approx(utilisation, rel=0.01)
    # Means as for one; the tail, in which all instances are found with full batches, is too short,
    # which is calibration's to learn.
    assert 0.7 < mean_s / seen_s.mean() < 1.25
    assert 0.4 < rolled.quantiles_s(0.99)[0][0] / np.quantile(seen_s, 0.99) < 1.35


def test_one_instance_is_what_is_taken_where_nothing_is_known():
    table_s = 0.002 + 0.002 * np.arange(1, 9)
    one, unknown = (_rolled(table_s, 300.0, 0.02, 4, instances) for instances in (1, None))
    assert one.latency_s == pytest.approx(unknown.latency_s, rel=1e-5)
    assert one.leftover_s == pytest.approx(unknown.leftover_s, rel=1e-5)


def _of(seed, rows=1.0, squared=1.0):
    """Return one of many situations, with requests of so many rows and their second moment."""
    random = np.random.default_rng(seed)
    weights = random.random(36) ** 4
    return Situation(
        table_s=0.002 * random.uniform(1.0, 3.0, (3, 1)) * (4.0 + np.arange(1.0, 9.0)),
        limits=np.array([8, 4, 8]),
        waiting_rows=random.integers(0, 6, 3).astype(float),
        running_rows=random.integers(0, 4, 3).astype(float),
        other_work_s=np.zeros(3),
        forecast=RateForecast.of(
            np.sort(random.gamma(2.0, 40.0, 36)), weights / weights.sum(), rows, squared
        ),
    )


@pytest.mark.parametrize(("rows", "squared"), [(1.0, 1.0), (2.0, 6.0)])
def test_models_beside_each_other_are_foreseen_as_each_alone(rows, squared):
    situations = [_of(seed, rows, squared) for seed in range(5)]
    together = roll_forward(situations, horizon_s=0.02, contention=1.0)
    alone = [roll_forward([one], horizon_s=0.02, contention=1.0) for one in situations]
    for name in ("latency_s", "utilization_ratio", "leftover_s", "throughput_rows_s", "single_s"):
        expected = np.concatenate([getattr(one, name) for one in alone])
        assert getattr(together, name) == pytest.approx(expected, rel=1e-5, abs=1e-9), name


def test_requests_that_are_all_alike_are_the_limit_of_nearly_alike_ones():
    alike = roll_forward([_of(3)], horizon_s=0.02, contention=1.0)
    nearly = roll_forward([_of(3, squared=1.0 + 1e-12)], horizon_s=0.02, contention=1.0)
    assert len(alike.weights) * 4 == len(nearly.weights)
    assert alike.weights.sum() == pytest.approx(1.0)
    for one, other in zip(
        alike.quantiles_s(0.5, 0.9, 0.99), nearly.quantiles_s(0.5, 0.9, 0.99), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-4)
    limit_s, noise = np.full(3, 0.03), np.full(3, 0.1)
    assert alike.miss_ratio(limit_s, noise) == pytest.approx(
        nearly.miss_ratio(limit_s, noise), rel=1e-4, abs=1e-9
    )
