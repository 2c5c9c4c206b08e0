"""Lulls in the load: seen, timed, and what comes back after one."""

import numpy as np
import pytest

from controller.prediction.lulls import Lulls

TICK_S = 0.02


def run(lulls: Lulls, rate_rps: float, seconds: float, rng: np.random.Generator) -> float:
    """Return the share of the time that was taken for a lull."""
    ticks = round(seconds / TICK_S)
    found = 0
    for _ in range(ticks):
        lulls.observe(float(rng.poisson(rate_rps * TICK_S)), TICK_S)
        found += lulls.is_in_one
    return found / ticks


def test_a_steady_load_has_none():
    lulls = Lulls()
    assert run(lulls, 400.0, 60.0, np.random.default_rng(1)) < 0.01
    assert lulls.usual_rps == pytest.approx(400.0, rel=0.1)


def test_a_pause_is_one_until_the_load_is_back():
    rng, lulls = np.random.default_rng(1), Lulls()
    run(lulls, 400.0, 10.0, rng)
    assert run(lulls, 20.0, 2.0, rng) > 0.85
    assert lulls.usual_rps == pytest.approx(400.0, rel=0.15), "few came in the pause"
    run(lulls, 400.0, 0.3, rng)
    assert not lulls.is_in_one


@pytest.mark.parametrize("pause_s", [0.5, 2.0, 8.0])
def test_how_soon_they_end_is_learned(pause_s):
    rng, lulls = np.random.default_rng(1), Lulls()
    for _ in range(30):
        run(lulls, 300.0, 1.0, rng)
        run(lulls, 10.0, pause_s, rng)
    assert lulls.ends_per_s == pytest.approx(1.0 / pause_s, rel=0.35)


def test_a_load_that_stays_low_is_the_usual_one_in_the_end():
    rng, lulls = np.random.default_rng(1), Lulls()
    run(lulls, 400.0, 20.0, rng)
    run(lulls, 40.0, 120.0, rng)
    assert not lulls.is_in_one
    assert lulls.usual_rps == pytest.approx(40.0, rel=0.5)


@pytest.mark.parametrize(
    ("arrived", "window_s"), [(5.0, 0.0), (float("nan"), 0.02), (-3.0, 0.02), (1e9, 5.0)]
)
def test_odd_counts_do_no_harm(arrived, window_s):
    lulls = Lulls()
    run(lulls, 100.0, 1.0, np.random.default_rng(1))
    lulls.observe(arrived, window_s)
    assert np.isfinite([lulls.usual_rps, lulls.ends_per_s]).all()
    assert lulls.ends_per_s > 0.0
