"""The forecast of arrivals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.prediction.arrivals import ArrivalForecaster


def _feed(forecaster: ArrivalForecaster, rate: float, seconds: float, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(int(seconds / 0.02)):
        forecaster.observe(float(rng.poisson(rate * 0.02)), 0.02)


def test_a_steady_rate_is_found_and_its_band_is_narrow():
    forecaster = ArrivalForecaster()
    _feed(forecaster, 100.0, 20.0)
    forecast = forecaster.forecast()
    assert forecast.mean_rps == pytest.approx(100.0, rel=0.15)
    assert forecast.quantile(0.05) > 60.0
    assert forecast.quantile(0.95) < 150.0


def test_a_step_in_load_is_seen_within_a_tenth_of_a_second():
    forecaster = ArrivalForecaster()
    _feed(forecaster, 50.0, 20.0)
    _feed(forecaster, 600.0, 0.1, seed=2)
    assert forecaster.forecast().mean_rps > 300.0


def test_counts_that_were_seen_too_early_are_taken_off_later_ones():
    forecaster = ArrivalForecaster()
    for _ in range(500):
        forecaster.observe(4.0, 0.02)
        forecaster.observe(-2.0, 0.02)
    assert forecaster.forecast().mean_rps == pytest.approx(50.0, rel=0.1)


def test_the_spread_of_request_sizes_is_seen_through_sums():
    forecaster = ArrivalForecaster()
    rng = np.random.default_rng(3)
    sizes = rng.choice([1, 2, 4, 8], size=4000, p=[0.6, 0.2, 0.15, 0.05])
    for pair in sizes.reshape(-1, 2):
        forecaster.observe_rows(2.0, float(pair.sum()))
    forecast = forecaster.forecast()
    assert forecast.rows_per_request == pytest.approx(sizes.mean(), rel=0.1)
    assert forecast.rows_squared_per_request == pytest.approx((sizes**2).mean(), rel=0.3)


@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6) | st.just(float("nan")) | st.just(float("inf")),
            st.floats(-1.0, 1e5),
        ),
        max_size=60,
    )
)
def test_no_sequence_of_counts_breaks_the_forecast(sequence):
    forecaster = ArrivalForecaster()
    for arrivals, window_s in sequence:
        forecaster.observe(arrivals, window_s)
    forecast = forecaster.forecast()
    assert np.isfinite(forecast.rates_rps).all()
    assert (forecast.rates_rps >= 0.0).all()
    assert (np.diff(forecast.rates_rps) >= 0.0).all()
    assert forecast.weights.sum() == pytest.approx(1.0)


def test_what_was_learned_survives_a_restart():
    before = ArrivalForecaster()
    for _ in range(100):
        before.observe_rows(3.0, 9.0)
    after = ArrivalForecaster()
    after.restore(before.state())
    assert after.rows_per_request == pytest.approx(before.rows_per_request)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"rows": "x", "rows_squared": 1, "rows_weight": 1},
        {"rows": 0.1, "rows_squared": 1.0, "rows_weight": 1.0},
    ],
)
def test_a_broken_state_is_refused(state):
    with pytest.raises((KeyError, ValueError, TypeError)):
        ArrivalForecaster().restore(state)
