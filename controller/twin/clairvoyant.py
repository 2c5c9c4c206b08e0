"""Somebody who knows every arrival: a beam search over the switches of a whole run.

Owns the search. Unlike the fluid oracle it has the governor's hands: it switches at ticks, batches
form as they do, and what waits stays where it is. It is no strict bound either: a beam forgets.

At every tick each kept state tries every variant. States are ranked by what they will have earned
(quality of the answers in time) when the fastest variant has served for a while from there on, less
a price for the work they leave; of several that serve the same variant with about the same work,
one is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controller.twin.server import SimulatedTriton

_WIDTH: Final = 12  # states that are kept
_SAME_S: Final = 0.002  # of work: states this close are one
_AHEAD_S: Final = 0.5  # over which the rate to come is taken
_LEAST_SPARE: Final = 0.05
_OBJECTIVES: Final = 1.0  # for which the fastest serves, to tell what a state is worth
# Of what could at most be forgone while the queue is worked off: a mix of variants loses less.
_PRICE: Final = 0.3


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
    fastest = _fastest(server)
    ticks = int(duration_s / tick_s) + 1
    for tick in range(1, ticks + 1):
        grown: dict[tuple[int, int], _State] = {}
        for state in states:
            for variant in range(len(server.variants)):
                fork = state.server.fork()
                if variant != fork.serving:
                    fork.switch(variant)
                fork.advance(tick * tick_s)
                one = _State(fork, _worth(fork, fastest), _Path(variant, state.path))
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


def _worth(server: SimulatedTriton, quickest: int) -> float:
    """Return what a state is going to have earned if the fastest serves from now on."""
    after = server.fork()
    fastest = server.variants[quickest]
    if after.serving != quickest or after.switching:
        after.switch(quickest)
    after.advance(server.now_s + _OBJECTIVES * server.limit_s)
    # While the fastest works the queue off, what arrives gets no better quality.
    best = max(variant.quality for variant in server.variants)
    rate_rps = server.arriving_rps(_AHEAD_S)
    busy = rate_rps * fastest.service_s(fastest.max_batch) / fastest.max_batch
    drain_s = server.work_s() / max(1.0 - busy, _LEAST_SPARE)
    return after.earned - _PRICE * max(best - fastest.quality, 0.0) * rate_rps * drain_s


def _fastest(server: SimulatedTriton) -> int:
    """Return the variant that gets most through."""
    rates = [v.max_batch / v.service_s(v.max_batch) for v in server.variants]
    return rates.index(max(rates))
