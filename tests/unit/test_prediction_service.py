"""The learned table of service times."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.prediction.service import ServiceTimes
from controller.telemetry.observation import BatchSample

MODELS = ("small", "middle", "large")
ROW_S = {"small": 0.0004, "middle": 0.0012, "large": 0.003}


def _sample(model: str, rows: int, factor: float = 1.0, **kwargs: bool) -> BatchSample:
    return BatchSample(model, rows, 1, factor * (0.0002 + ROW_S[model] * rows), 0.1, **kwargs)


def _learn(
    service: ServiceTimes,
    models: tuple[str, ...],
    seconds: float,
    factor: float = 1.0,
    start_s: float = 0.0,
) -> float:
    rng = np.random.default_rng(7)
    now_s = start_s
    while now_s < start_s + seconds:
        now_s += 0.1
        noisy = factor * float(np.exp(rng.normal(0.0, 0.05)))
        samples = [_sample(m, int(rng.integers(1, 9)), noisy) for m in models]
        service.observe(samples, now_s)
    return now_s


def test_it_learns_every_variant_within_ten_percent():
    service = ServiceTimes(MODELS, 8)
    _learn(service, MODELS, 20.0)
    table_s = service.table_s()
    for i, model in enumerate(MODELS):
        for rows in (1, 4, 8):
            truth_s = 0.0002 + ROW_S[model] * rows
            assert table_s[i, rows - 1] == pytest.approx(truth_s, rel=0.10)


def test_a_variant_with_three_samples_borrows_the_curve_of_its_siblings():
    service = ServiceTimes(MODELS, 8)
    now_s = _learn(service, ("small", "middle"), 20.0)
    for rows in (1, 1, 1):
        now_s += 1.1
        service.observe([_sample("large", rows)], now_s)
    now_s += 1.1
    service.observe([_sample("large", 1)], now_s)
    full_s = service.table_s()[2, 7]
    assert full_s == pytest.approx(0.0002 + ROW_S["large"] * 8, rel=0.35)


def test_small_batches_that_take_the_same_do_not_make_large_ones_cheap():
    service = ServiceTimes(("flat",), 64, usual_rows=64)
    for rows in (1, 2, 4, 8):  # launch-bound, as a ConvNet's are up to 16 rows
        service.observe([BatchSample("flat", rows, 5, 0.013, 0.1)], float(rows))
    table_s = service.table_s()[0]
    assert table_s[7] == pytest.approx(0.013, rel=0.1)
    # Nobody knows what 64 rows take: more, though not in proportion to one row.
    assert 1.5 * 0.013 < table_s[63] < 64 * 0.013


def test_a_machine_that_slows_down_is_seen_in_a_second_also_for_idle_variants():
    service = ServiceTimes(MODELS, 8)
    now_s = _learn(service, MODELS, 20.0)
    before_s = service.table_s()[2, 3]
    _learn(service, ("small",), 1.5, factor=1.5, start_s=now_s)
    assert service.drift_ratio > 1.3
    assert service.table_s()[2, 3] > 1.25 * before_s


def test_first_runs_after_an_action_do_not_poison_the_fit():
    service = ServiceTimes(MODELS, 8)
    now_s = _learn(service, MODELS, 10.0)
    before_s = service.table_s()
    for _ in range(20):
        now_s += 0.1
        service.observe([_sample("large", 4, 30.0, after_action=True)], now_s)
    assert service.table_s() == pytest.approx(before_s, rel=0.02)


def test_one_straggler_does_not_move_a_known_cell_much():
    service = ServiceTimes(MODELS, 8)
    now_s = _learn(service, MODELS, 20.0)
    before_s = service.table_s()[1, 3]
    service.observe([_sample("middle", 4, 100.0)], now_s + 0.1)
    service.observe([_sample("middle", 4)], now_s + 1.5)
    assert service.table_s()[1, 3] < 1.6 * before_s


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*MODELS, "stranger"]),
            st.integers(-3, 200),
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(-2, 10**9),
        ),
        max_size=80,
    )
)
def test_no_samples_break_the_table_and_it_is_monotone_in_the_batch(raw):
    service = ServiceTimes(MODELS, 16)
    for i, (model, rows, seconds, executions) in enumerate(raw):
        service.observe([BatchSample(model, rows, executions, seconds, 0.0)], float(i))
    table_s = service.table_s()
    assert np.isfinite(table_s).all()
    assert (table_s > 0.0).all()
    assert (np.diff(table_s, axis=1) >= -1e-12).all()


def test_what_was_learned_survives_as_json():
    before = ServiceTimes(MODELS, 8)
    _learn(before, MODELS, 10.0)
    after = ServiceTimes((*MODELS, "new"), 8)
    after.restore(json.loads(json.dumps(before.state())))
    assert after.table_s()[:3] == pytest.approx(before.table_s(), rel=0.2)
    assert after.known().tolist() == [True, True, True, False]


def test_a_broken_state_is_refused_and_changes_nothing():
    service = ServiceTimes(MODELS, 8)
    _learn(service, MODELS, 5.0)
    before_s = service.table_s()
    broken = service.state()
    broken["models"]["large"]["mean"][0] = float("nan")
    with pytest.raises(ValueError, match="large"):
        service.restore(broken)
    assert (service.table_s() == before_s).all()


def test_frozen_learns_nothing():
    service = ServiceTimes(MODELS, 8, frozen=True)
    before_s = service.table_s()
    _learn(service, MODELS, 5.0)
    assert (service.table_s() == before_s).all()
    assert not service.known().any()


def test_first_runs_that_nobody_marked_are_forgotten_when_a_warm_one_is_seen():
    service = ServiceTimes(MODELS, 8)
    service.observe([_sample("small", 1, 12.0)], 0.0)
    for now_s in (1.2, 2.4, 3.6):
        service.observe([_sample("small", 1)], now_s)
    assert service.table_s()[0, 0] < 2.0 * (0.0002 + ROW_S["small"])


def test_first_runs_alone_do_not_end_the_probing_and_give_way_to_what_follows():
    service = ServiceTimes(("fast", "slow"), 8)
    first = BatchSample("fast", 1, 3, 0.020, 0.0, after_action=True)
    service.observe([first], 0.0)
    assert service.samples()[0, 0] < 3
    assert not service.known()[0]
    service.observe([BatchSample("fast", 1, 2, 0.002, 0.0)], 0.5)
    service.observe([BatchSample("fast", 1, 1, 0.002, 0.0)], 1.0)
    assert service.table_s()[0, 0] < 0.004


def test_what_hardly_changes_anything_is_not_fitted_again_and_what_does_is(monkeypatch):
    fits = []
    fit = ServiceTimes._refit
    monkeypatch.setattr(ServiceTimes, "_refit", lambda self: (fits.append(1), fit(self)))
    service = ServiceTimes(MODELS, 8)
    now_s = _learn(service, MODELS, 120.0)
    fits.clear()
    now_s = _learn(service, MODELS, 60.0, start_s=now_s)
    assert len(fits) <= 6  # one in two seconds would be 30
    before_s = service.table_s()[2].copy()
    for _ in range(60):  # from now on one size of one variant takes half as long again
        now_s += 0.1
        service.observe([_sample("large", 8, 1.5), _sample("large", 1), _sample("small", 4)], now_s)
    assert service.table_s()[2, 7] > 1.1 * before_s[7]
    assert service.table_s()[2, 0] == pytest.approx(before_s[0], rel=0.2)


def test_statistics_of_very_many_variants_are_learned_over_several_ticks():
    names = tuple(f"m{i}" for i in range(1600))
    service = ServiceTimes(names, 8, usual_rows=8)
    service.observe([BatchSample(name, 1, 5, 0.004, 0.1) for name in names], 0.0)
    learned = [int(service.known().sum())]
    for tick in range(1, 8):
        service.observe([], 0.02 * tick)
        learned.append(int(service.known().sum()))
    assert 0 < learned[0] <= 400  # a tick is not held up
    assert learned == sorted(learned)
    assert learned[-1] == 1600  # and nothing is lost
