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
