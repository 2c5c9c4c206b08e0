"""Somebody who knows every arrival, against all that could be done on small cases."""

from itertools import product

import numpy as np
import pytest

from controller.twin.clairvoyant import best_schedule
from controller.twin.ladder import TwinVariant
from controller.twin.server import Physics, SimulatedTriton

ROWS = np.arange(1, 9)
VARIANTS = (
    TwinVariant("large", 0.95, 0.004 + 0.008 * ROWS),
    TwinVariant("middle", 0.90, 0.002 + 0.004 * ROWS),
    TwinVariant("little", 0.80, 0.001 + 0.001 * ROWS),
)
TICK_S, TICKS = 0.050, 7
PHYSICS = Physics(noise=0.0, switch_s=0.002)


def _earned(server, schedule):
    fork = server.fork()
    for tick, variant in enumerate(schedule):
        fork.advance(tick * TICK_S)
        if variant != fork.serving:
            fork.switch(variant)
    fork.advance(TICKS * TICK_S + 1.0)
    return fork.earned


@pytest.mark.parametrize("rate_rps", [60.0, 150.0, 300.0, 700.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_beam_finds_what_all_schedules_of_a_small_case_hold(rate_rps, seed):
    rng = np.random.default_rng(seed)
    arrivals_s = np.sort(rng.random(rng.poisson(rate_rps * TICKS * TICK_S)) * TICKS * TICK_S)
    server = SimulatedTriton(VARIANTS, arrivals_s, serving=2, limit_s=0.060, physics=PHYSICS)
    every = [_earned(server, schedule) for schedule in product(range(3), repeat=TICKS)]
    found = best_schedule(server, duration_s=(TICKS - 1) * TICK_S, tick_s=TICK_S)
    assert _earned(server, found) >= 0.97 * max(every)
    # It is a search: the best beats every fixed choice, or is one.
    assert _earned(server, found) >= max(_earned(server, [v] * TICKS) for v in range(3)) - 1e-9


def test_what_is_imagined_has_the_same_past_and_leaves_what_is_as_it_was():
    arrivals_s = np.array([0.01, 0.02, 0.20, 0.21, 0.22])
    server = SimulatedTriton(VARIANTS, arrivals_s, serving=0, limit_s=0.060, physics=PHYSICS)
    server.advance(0.021)  # the second waits for the first
    other = server.imagine(np.array([0.022, 0.5]), seed=7)
    assert other.pending(0) == server.pending(0) == 1
    other.advance(0.1)
    assert other.arrived == 3
    assert other.earned == pytest.approx(3 * 0.95)
    # One alone, then the second and what is imagined in a batch, beside each other nothing.
    assert other.busy_s == pytest.approx(VARIANTS[0].service_s(1) + VARIANTS[0].service_s(2))
    other.advance(1.0)
    assert other.earned == pytest.approx(4 * 0.95)
    many = server.imagine(np.linspace(0.03, 0.04, 9), seed=7)
    many.advance(1.0)
    assert many.arrived == 5, "no more than really come"
    server.advance(1.0)
    assert np.isfinite(server.latency_s()).all()
    assert server.arrivals_s().tolist() == arrivals_s.tolist()


def test_noise_that_is_imagined_is_another():
    physics = Physics(noise=0.3, switch_s=0.002)
    server = SimulatedTriton(
        VARIANTS, np.array([0.01, 0.02]), serving=0, limit_s=0.060, physics=physics
    )
    busy_s = set()
    for seed in (1, 2, 3):
        other = server.imagine(np.array([0.01, 0.02]), seed=seed)
        other.advance(1.0)
        busy_s.add(other.busy_s)
    assert len(busy_s) == 3
