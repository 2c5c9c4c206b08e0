"""The regression that service times are shrunk towards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from controller.prediction.pooling import between, pooled

PENALTY = 0.05


def _features(points):
    log_n = np.log(np.arange(1.0, points + 1.0))
    bend = np.maximum(log_n - np.log(4.0), 0.0)
    return np.stack([log_n, bend], axis=1), np.stack([np.ones(points), 0.5 * log_n], axis=1)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 6),
    st.integers(2, 24),
    st.floats(0.02, 1.0),
    st.integers(0, 10_000),
)
def test_it_is_the_ridge_regression_over_all_variants(variants, points, share, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(-5.0, 1.0, (variants, points))
    weights = rng.uniform(0.1, 50.0, (variants, points)) * (rng.random(values.shape) < share)
    weights.flat[rng.integers(weights.size)] = 1.0
    shared, own = _features(points)
    design = np.zeros((variants, points, 2 + 2 * variants))
    design[:, :, :2] = shared
    for v in range(variants):
        design[v, :, 2 + 2 * v : 4 + 2 * v] = own
    seen = weights > 0.0
    ridge = Ridge(alpha=PENALTY).fit(design[seen], values[seen], sample_weight=weights[seen])
    expected = ridge.predict(design.reshape(-1, design.shape[2])).reshape(values.shape)
    found = pooled(values, weights, shared=shared, own=own, penalty=PENALTY)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_what_was_not_measured_may_be_anything():
    shared, own = _features(8)
    values, weights = np.full((2, 8), np.nan), np.zeros((2, 8))
    values[0, 3], weights[0, 3] = -4.0, 2.0
    assert np.isfinite(pooled(values, weights, shared=shared, own=own, penalty=PENALTY)).all()


def test_a_size_is_known_by_two_around_it_that_take_the_same_and_by_no_others():
    values = np.array([[0.0, 0.02, 0.05, 0.08, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    trust = np.array([[0.6, 0.0, 0.0, 0.5, 0.0, 0.9], [0.0, 0.2, 0.0, 0.7, 0.0, 0.0]])
    found = between(values, trust, trusted=0.4, flat=0.1)
    # From the first to the fourth it rises by less than that; from there to the last by more.
    assert found[0].tolist() == [0.6, 0.5, 0.5, 0.5, 0.0, 0.9]
    # One alone has nobody on its other side.
    assert found[1].tolist() == [0.0, 0.0, 0.0, 0.7, 0.0, 0.0]
