"""Somebody who knows every arrival: a beam search over the switches of a whole run.

Owns the search. Unlike the fluid oracle it has the governor's hands: it switches at ticks, batches
form as they do, and what waits stays where it is. It is no strict bound either: a beam forgets.

At every tick each kept state tries every variant. States are ranked by what they earned (quality
of the answers in time) plus what their waiting requests may still earn, less what the work they
leave will cost; of several that serve the same variant with about the same work, one is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from controller.twin.server import SimulatedTriton

_WIDTH: Final = 12  # states that are kept
_SAME_S: Final = 0.002  # of work: states this close are one
_AHEAD_S: Final = 0.5  # over which the rate to come is taken
_LEAST_SPARE: Final = 0.05


@dataclass(slots=True)
class _State:
    server: SimulatedTriton
    worth: float
    path: _Path | None


@dataclass(frozen=True, slots=True)
class _Path:
    """A linked list: states share their past."""

    variant: int
    before: _Path | None


def best_schedule(server: SimulatedTriton, *, duration_s: float, tick_s: float) -> list[int]:
    """Return which variant to serve from each tick on. The server is not touched."""
    states = [_State(server.fork(), 0.0, None)]
    ticks = int(duration_s / tick_s) + 1
    for tick in range(1, ticks + 1):
        grown: dict[tuple[int, int], _State] = {}
        for state in states:
            for variant in range(len(server.variants)):
                fork = state.server.fork()
                if variant != fork.serving:
                    fork.switch(variant)
                fork.advance(tick * tick_s)
                one = _State(fork, _worth(fork), _Path(variant, state.path))
                key = (variant, round(fork.work_s() / _SAME_S))
                if key not in grown or grown[key].worth < one.worth:
                    grown[key] = one
        states = sorted(grown.values(), key=lambda s: -s.worth)[:_WIDTH]
    schedule: list[int] = []
    path = states[0].path
    while path is not None:
        schedule.append(path.variant)
        path = path.before
    return schedule[::-1]


def _worth(server: SimulatedTriton) -> float:
    """Return what a state has earned and is going to, on the assumption of a fair future."""
    now_s, limit_s = server.now_s, server.limit_s
    work_s = server.work_s()
    best = max(variant.quality for variant in server.variants)
    left_s = np.sort(server.waiting_s() + limit_s - now_s)
    left_s = left_s[left_s > 0.0]
    # In time is who comes before the work ahead outlasts his slack; roughly, in order.
    place = np.arange(1, len(left_s) + 1)
    saved = int((left_s >= work_s * place / max(len(left_s), 1)).sum())
    served = server.variants[server.serving].quality
    fastest = min(server.variants, key=lambda v: v.service_s(v.max_batch) / v.max_batch)
    # While the fastest works the queue off, what arrives gets its quality.
    rate_rps = server.arriving_rps(_AHEAD_S)
    busy = rate_rps * fastest.service_s(fastest.max_batch) / fastest.max_batch
    drain_s = work_s / max(1.0 - busy, _LEAST_SPARE)
    forgone = max(best - fastest.quality, 0.0)
    return server.earned + saved * served - forgone * rate_rps * drain_s
