"""Copies of the simulated server's arrays.

Owns what of them a fork takes along, and how queues grow. It must not change what is simulated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.twin import engine
from controller.twin.engine import State

Ints = NDArray[np.int64]


def forked(state: State) -> State:
    """Return a copy that goes its own way; what ended before is not in it."""
    return state._replace(
        clock=state.clock.copy(),
        tally=state.tally.copy(),
        alias=state.alias.copy(),
        alias_s=state.alias_s.copy(),
        limits=state.limits.copy(),
        free=state.free.copy(),
        busy=state.busy.copy(),
        queue=state.queue.copy(),
        queued=state.queued.copy(),
        probes=state.probes.copy(),
        totals=state.totals.copy(),
        batch=state.batch.copy(),
        batch_s=state.batch_s.copy(),
        batch_requests=state.batch_requests.copy(),
        done_s=state.done_s[:0],
        served_by=state.served_by[:0],
        log=state.log[:0],
    )


def grown(state: State) -> Ints:
    """Return the queues with twice the room, each from its first range on."""
    variants, size, _ = state.queue.shape
    grown = np.zeros((variants, 2 * size, 2), dtype=np.int64)
    for variant in range(variants):
        head = state.queued[variant, engine.HEAD]
        grown[variant, :size] = np.roll(state.queue[variant], -head, axis=0)
        state.queued[variant, engine.HEAD] = 0
    return grown
