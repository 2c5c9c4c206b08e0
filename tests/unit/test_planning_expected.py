"""What each variant is expected to be asked."""

import numpy as np
import pytest

from controller.planning.expected import expected_work
from controller.planning.pool import Wish


def test_at_each_moment_the_best_of_what_is_there_is_counted_for_the_requests():
    wish = Wish(("fast", "best"), np.array([30.0, 70.0]), np.array([[0.7, 0.9], [0.7, 0.0]]))
    work = {w.name: w for w in expected_work([wish], [2.0], [[0.001, 0.004]], {"fast", "best"})}
    assert work["best"].rate_rps == pytest.approx(2.0 * (30.0 + 2.0))  # and 2 % of all, at any time
    assert work["fast"].rate_rps == pytest.approx(2.0 * (70.0 + 2.0))
    assert work["best"].busy == pytest.approx(32.0 * 0.004)
    alone = {w.name: w for w in expected_work([wish], [1.0], [[0.001, 0.004]], {"fast"})}
    assert alone["fast"].rate_rps == pytest.approx(102.0)


def test_of_a_model_of_which_nothing_is_there_all_count():
    wish = Wish(("fast", "best"), np.array([10.0]), np.array([[0.7, 0.9]]))
    work = {w.name: w.rate_rps for w in expected_work([wish], [1.0], [[0.1, 0.1]], set())}
    assert work["best"] > work["fast"] > 0.0


def test_one_that_two_models_share_is_one():
    wishes = [Wish(("shared",), np.array([10.0]), np.array([[0.9]]))] * 2
    (work,) = expected_work(wishes, [1.0, 3.0], [[0.01], [0.01]], {"shared"})
    assert (work.model, work.rate_rps) == (0, pytest.approx(1.02 * 40.0))


def test_who_met_nothing_yet_is_expected_to_be_asked_nothing():
    wish = Wish(("a",), np.zeros(0), np.zeros((0, 1)))
    assert [w.busy for w in expected_work([wish], [1.0], [[0.1]], {"a"})] == [0.0]
