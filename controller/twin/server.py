"""A Triton in virtual time: dynamic batching, variants on GPUs, an alias, loads and resizes.

Owns the clock and the operations that take time; the event loop itself is compiled
(`controller.twin.engine`). It must not decide, and knows neither policies nor the governor's
observations (`controller.twin.port` translates).

Model. Each variant has a FIFO queue and some instances on each GPU; an idle instance takes waiting
requests of up to `max_batch` rows together at once, after `queue_delay_s` at the latest. Batches
that run at one time on a GPU share it equally (on a host, `parallel` of them do not slow each
other). A switch of the alias takes `switch_s`; from then on *new* requests go to the other
variant, and what waits stays where it is, as on the real server. Service times are the ladder's,
times a log-normal noise, times the slow-down of the moment, which nobody is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.twin import engine
from controller.twin.copies import forked, grown
from controller.twin.engine import State
from controller.twin.ladder import TwinVariant
from controller.twin.load import Load
from controller.twin.pool import Pool

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RANGES: Final = 64  # of requests that a queue holds before it grows
_SLOTS: Final = 16  # of batches in execution, more than that with many instances
_PROBES: Final = 64  # that wait on one variant; more are not sent
_LOG: Final = 4096  # batches


@dataclass(frozen=True, slots=True)
class Change:
    """What is different from a moment on."""

    from_s: float
    slowdown: float = 1.0  # of batches that begin: a throttling GPU; infinite: it is lost
    cotenants: float = 0.0  # batches of others that share each GPU
    gpu: int | None = None  # of which that is true; None: of all


@dataclass(frozen=True, slots=True)
class Physics:
    """How the simulated server differs from its ladder."""

    noise: float = 0.05  # spread of the logarithm of a batch's time
    straggler_ratio: float = 0.0  # of batches ...
    straggler_factor: float = 1.0  # ... that take so many times as long
    queue_delay_s: float = 0.0
    instances: int = 1  # of each variant on each GPU, at first
    most_instances: int = 1  # that there is room for
    gpus: int = 1
    # Batches that run at full speed together: 1 on a GPU that one fills, cores on a host.
    parallel: float = 1.0
    switch_s: float = 0.004
    load_s: float = 2.1  # of a variant that does not say, and of an instance more
    memory_bytes: float = math.inf  # of each GPU
    changes: tuple[Change, ...] = ()

    def changes_table(self) -> Floats:
        """Return the changes for the event loop, in their order. [changes, 4]."""
        gpus = (-1.0 if change.gpu is None else change.gpu for change in self.changes)
        told = zip(self.changes, gpus, strict=True)
        rows = sorted((c.from_s, c.slowdown, c.cotenants, gpu) for c, gpu in told)
        return np.array(rows, dtype=np.float64).reshape(-1, 4)

    def given(self) -> Floats:
        """Return the settings for the event loop."""
        straggling = (self.straggler_ratio, self.straggler_factor)
        return np.array([self.queue_delay_s, self.parallel, self.noise, *straggling])

    def slowdown_at(self, now_s: float, gpu: int | None = None) -> float:
        """Return how much slower batches are that begin at a moment, on a GPU or on all."""
        begun = [c for c in self.changes if c.from_s <= now_s and c.gpu in (None, gpu)]
        return max(begun, key=lambda change: change.from_s).slowdown if begun else 1.0


@dataclass(slots=True)
class Counters:
    """The running totals of one variant, as Triton's counters have them."""

    requests: int = 0
    rows: int = 0
    executions: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Executed:
    """One batch that ended."""

    variant: int
    rows: int
    took_s: float
    ended_s: float
    probe: bool


class SimulatedTriton:
    """One server with one alias, or with several. Time only moves in `advance`.

    What is asked of "the" alias is asked of the first one. Variants have one number each, those of
    the first alias first.
    """

    def __init__(
        self,
        variants: Sequence[TwinVariant],
        arrivals_s: Floats,
        *,
        serving: int,
        rows: Ints | None = None,
        limit_s: float = math.inf,
        physics: Physics | None = None,
        seed: int = 0,
    ) -> None:
        """Take requests that arrive at some times, ascending, of so many rows (default: one)."""
        load = Load(tuple(variants), arrivals_s, serving, limit_s, rows)
        self._begin([load], physics or Physics(), seed)

    @classmethod
    def shared(
        cls, loads: Sequence[Load], *, physics: Physics | None = None, seed: int = 0
    ) -> SimulatedTriton:
        """Return a server with an alias for each load."""
        server = object.__new__(cls)
        server._begin(loads, physics or Physics(), seed)
        return server

    def _begin(self, loads: Sequence[Load], physics: Physics, seed: int) -> None:
        self.variants = tuple(variant for load in loads for variant in load.variants)
        self.limit_s = loads[0].limit_s
        self.physics = physics
        self._executed: list[Executed] = []
        self._state = _new_state(self.variants, loads, physics)
        self._state.tally[engine.SEED] = seed
        self.placed = [load.gpus for load in loads for _ in load.variants]  # at first
        self.pool = Pool(self._state, self.variants, physics)

    def fork(self) -> SimulatedTriton:
        """Return a server in the same state, to look ahead with: it keeps no records.

        It gets the same future arrivals and noise, so that two forks differ by what was decided.
        """
        return self._in(forked(self._state))

    def imagine(self, coming_s: Floats, seed: int) -> SimulatedTriton:
        """Return a fork to which other requests come from now on, with a noise of its own.

        For whoever looks ahead and may not know the future. For a server of one alias.

        Args:
            coming_s: when they arrive, ascending, from now on; of more than really come the first.
            seed: of the noise of batches that begin from now on.
        """
        at = self.arrived
        arrivals_s = np.full_like(self._state.arrivals_s, np.inf)
        arrivals_s[:at] = self._state.arrivals_s[:at]
        coming_s = coming_s[: len(arrivals_s) - at]
        arrivals_s[at : at + len(coming_s)] = coming_s
        state = forked(self._state)._replace(arrivals_s=arrivals_s)
        state.tally[engine.SEED] = seed
        return self._in(state)

    def _in(self, state: State) -> SimulatedTriton:
        other = object.__new__(SimulatedTriton)
        other.variants, other.limit_s, other.physics = self.variants, self.limit_s, self.physics
        other._executed = []
        other._state = state
        other.pool = self.pool.fork(state)
        return other

    @property
    def now_s(self) -> float:
        """Return the time."""
        return float(self._state.clock[engine.NOW])

    @property
    def serving(self) -> int:
        """Return the variant that the alias points at."""
        return self.serving_of(0)

    def serving_of(self, alias: int) -> int:
        """Return the variant that an alias points at."""
        return int(self._state.alias[alias, engine.SERVING])

    def since_s_of(self, alias: int) -> float:
        """Return since when an alias points there."""
        return float(self._state.alias_s[alias, engine.SINCE])

    def is_switching(self, alias: int) -> bool:
        """Return whether a switch of an alias is under way."""
        return bool(self._state.alias_s[alias, engine.SWITCH_AT] < math.inf)

    def requests_of(self, alias: int) -> slice:
        """Return which of all requests are an alias's."""
        ends = self._state.alias[:, engine.END]
        return slice(int(ends[alias - 1]) if alias else 0, int(ends[alias]))

    @property
    def switches(self) -> int:
        """Return how often aliases were switched."""
        return int(self._state.alias[:, engine.SWITCHES].sum())

    def switches_of(self, alias: int) -> int:
        """Return how often an alias was switched."""
        return int(self._state.alias[alias, engine.SWITCHES])

    @property
    def earned(self) -> float:
        """Return the quality of all answers in time."""
        return float(self._state.clock[engine.EARNED])

    @property
    def busy_s(self) -> float:
        """Return for how long GPUs had work."""
        return float(self._state.clock[engine.BUSY])

    @property
    def counters(self) -> list[Counters]:
        """Return the running totals of each variant."""
        return [
            Counters(int(requests), int(rows), int(executions), queue_s, compute_s)
            for requests, rows, executions, queue_s, compute_s in self._state.totals.tolist()
        ]

    @property
    def switching(self) -> bool:
        """Return whether a switch of the alias is under way."""
        return self.is_switching(0)

    @property
    def arrived(self) -> int:
        """Return how many requests of the alias have arrived."""
        return self.arrived_of(0)

    def arrived_of(self, alias: int) -> int:
        """Return the first of an alias's requests that has not arrived, counted over all."""
        return int(self._state.alias[alias, engine.NEXT])

    def take_executed(self) -> list[Executed]:
        """Return the batches that ended since this was asked last."""
        self._empty_log()
        taken, self._executed = self._executed, []
        return taken

    def arriving_rps(self, within_s: float) -> float:
        """Return the rate of the arrivals to come; for those who know the future."""
        until = int(self._state.arrivals_s.searchsorted(self.now_s + within_s))
        return max(until - self.arrived, 0) / within_s

    def work_s(self) -> float:
        """Return the seconds of work that wait or are in execution, in the largest batches."""
        return float(engine.work_s(self._state))

    def arrivals_s(self) -> Floats:
        """Return when every request arrives. [requests]."""
        return self._state.arrivals_s

    def latency_s(self) -> Floats:
        """Return every request's latency, infinite where it is not answered. [requests]."""
        return np.asarray(self._state.done_s - self._state.arrivals_s)

    def latency_between_s(self, from_s: float, to_s: float) -> Floats:
        """Return the latency of the requests that were answered in a span of time."""
        done_s = self._state.done_s
        within = (done_s > from_s) & (done_s <= to_s)
        return np.asarray(done_s[within] - self._state.arrivals_s[within])

    def served_by(self) -> Ints:
        """Return which variant answered each request; -1: none. [requests]."""
        return self._state.served_by

    def ended(self, requests: Sequence[int]) -> list[tuple[int, int, float, float]]:
        """Return (request, variant, arrival, end) of those of some requests that are answered."""
        s = self._state
        done = (
            (r, int(s.served_by[r]), float(s.arrivals_s[r]), float(s.done_s[r])) for r in requests
        )
        return [one for one in done if one[1] >= 0]

    def pending(self, variant: int) -> int:
        """Return how many requests wait for a variant, those in execution not counted."""
        return int(self._state.queued[variant, engine.WAITING])

    def switch(self, variant: int) -> bool:
        """Point its alias at a variant; False while another switch of it is under way."""
        alias = int(self._state.alias_of[variant])
        if self.is_switching(alias):
            return False
        self._state.alias[alias, engine.SWITCH_TO] = variant
        self._state.alias_s[alias, engine.SWITCH_AT] = self.now_s + self.physics.switch_s
        return True

    def probe(self, variant: int, rows: int) -> None:
        """Put a synthetic batch into a variant's queue."""
        own = self._state.queued[variant]
        if own[engine.PROBES] < _PROBES:
            largest = self._state.limits[variant]
            self._state.probes[variant, own[engine.PROBES]] = min(rows, largest)
            own[engine.PROBES] += 1
        engine.start(self._state)

    def advance(self, to_s: float) -> None:
        """Let time pass. Raises ValueError for a moment that has passed."""
        if to_s < self.now_s:
            raise ValueError(f"{to_s:g} s is before {self.now_s:g} s")
        while (at_s := self.pool.next_s()) <= to_s:
            self._pass(max(at_s, self.now_s))
            self.pool.finish(self.now_s)
            engine.start(self._state)
        self._pass(to_s)
        self.pool.release()

    def _pass(self, to_s: float) -> None:
        while (stopped := engine.advance(self._state, to_s)) != engine.ARRIVED:
            if stopped == engine.LOG_FULL:
                self._empty_log()
            else:
                self._state = self._state._replace(queue=grown(self._state))
                self.pool.state = self._state

    def _empty_log(self) -> None:
        logged = int(self._state.tally[engine.LOGGED])
        self._executed += [
            Executed(int(variant), int(rows), took_s, ended_s, probe > 0.0)
            for variant, rows, took_s, ended_s, probe in self._state.log[:logged].tolist()
        ]
        self._state.tally[engine.LOGGED] = 0


def _new_state(variants: Sequence[TwinVariant], loads: Sequence[Load], own: Physics) -> State:
    arrivals_s = np.concatenate([load.arrivals_s for load in loads], dtype=np.float64)
    ends = np.cumsum([len(load.arrivals_s) for load in loads])
    firsts = np.cumsum([0, *(len(load.variants) for load in loads)])
    requests, count = len(arrivals_s), len(variants)
    largest = max(variant.max_batch for variant in variants)
    tables_s = np.full((count, largest), math.inf)
    for variant, row in zip(variants, tables_s, strict=True):
        row[: variant.max_batch] = variant.table_s
    slots = _SLOTS + 2 * count * own.gpus * max(own.instances, own.most_instances)
    return State(
        arrivals_s=arrivals_s,
        rows=np.concatenate([load.all_rows for load in loads]),
        tables_s=tables_s,
        quality=np.array([variant.quality for variant in variants], dtype=np.float64),
        changes=own.changes_table(),
        alias_of=np.repeat(np.arange(len(loads)), [len(load.variants) for load in loads]),
        given=own.given(),
        clock=np.zeros(3),
        tally=np.zeros(5, dtype=np.int64),
        alias=np.array(
            [
                (first + load.serving, 0, 0, end - len(load.arrivals_s), end)
                for first, load, end in zip(firsts[:-1], loads, ends, strict=True)
            ],
            dtype=np.int64,
        ),
        alias_s=np.array([(0.0, math.inf, load.limit_s) for load in loads]),
        limits=np.array([variant.max_batch for variant in variants], dtype=np.int64),
        free=np.concatenate([_instances(load, own) for load in loads]),
        busy=np.zeros(own.gpus, dtype=np.int64),
        queue=np.zeros((count, _RANGES, 2), dtype=np.int64),
        queued=np.zeros((count, 4), dtype=np.int64),
        probes=np.zeros((count, _PROBES), dtype=np.int64),
        totals=np.zeros((count, 5)),
        batch=np.zeros((slots, 4), dtype=np.int64),
        batch_s=np.zeros((slots, 2)),
        batch_requests=np.zeros((slots, largest), dtype=np.int64),
        done_s=np.full(requests, math.inf),
        served_by=np.full(requests, -1, dtype=np.int64),
        log=np.zeros((_LOG + slots, engine.LOG_COLUMNS)),
    )


def _instances(load: Load, own: Physics) -> Ints:
    """Return the instances of each of a load's variants on each GPU. [variants, gpus]."""
    there = np.full(own.gpus, own.instances, dtype=np.int64)
    if load.gpus is not None:
        there[[gpu for gpu in range(own.gpus) if gpu not in load.gpus]] = 0
    return np.tile(there, (len(load.variants), 1))
