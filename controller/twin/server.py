"""A Triton in virtual time: dynamic batching, variants on one GPU, an alias, nothing else.

Owns the event loop and its clock. It must not decide, and knows neither policies nor the
governor's observations (`controller.twin.port` translates).

Model. Each variant has a FIFO queue and some instances; an instance takes waiting requests of up
to `max_batch` rows together at once, after `queue_delay_s` at the latest. Batches that run at one
time on the GPU share it equally (on a host, `parallel` of them do not slow each other). A switch
of the alias takes `switch_s`; from then on *new* requests go to the other variant, and what waits
stays where it is, as on the real server. Service times are the ladder's, times a log-normal noise,
times the slow-down of the moment, which nobody is told.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.twin.ladder import TwinVariant

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NOISE_CHUNK: Final = 4096


@dataclass(frozen=True, slots=True)
class Physics:
    """How the simulated server differs from its ladder."""

    noise: float = 0.05  # spread of the logarithm of a batch's time
    queue_delay_s: float = 0.0
    instances: int = 1
    parallel: int = 1  # batches that run at full speed together: 1 on a GPU, cores on a host
    switch_s: float = 0.004
    slowdown: Callable[[float], float] = field(default=lambda _: 1.0)  # by time

    def draw_noise(self, seed: int, chunk: int) -> list[float]:
        """Draw factors of batches' times, of mean 1 whatever their spread."""
        rng = np.random.default_rng((seed, chunk))
        drawn = rng.normal(-0.5 * self.noise**2, self.noise, _NOISE_CHUNK)
        factors: list[float] = np.exp(drawn).tolist()
        return factors


@dataclass(slots=True)
class Counters:
    """The running totals of one variant, as Triton's counters have them."""

    requests: int = 0
    rows: int = 0
    executions: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(slots=True)
class Batch:
    """One batch in execution."""

    variant: int
    requests: list[int]  # empty: a probe
    rows: int
    began_s: float
    left_s: float  # of work, alone on the GPU


@dataclass(frozen=True, slots=True)
class Executed:
    """One batch that ended."""

    variant: int
    rows: int
    took_s: float
    ended_s: float
    probe: bool


class SimulatedTriton:
    """One server with one alias. Time only moves in `advance`."""

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
        """Take requests that arrive at some times, ascending, of so many rows (default: one).

        Raises ValueError where a request is larger than a variant's largest batch.
        """
        self.variants = tuple(variants)
        self.limit_s = limit_s
        self.physics = physics or Physics()
        self.now_s = 0.0
        self.serving = serving
        self.since_s = 0.0
        self.switches = 0
        self.earned = 0.0  # quality of the answers within `limit_s`
        self.counters = [Counters() for _ in self.variants]
        self.executed: list[Executed] = []  # to be taken by who reads them
        count = len(arrivals_s)
        self._records = True
        self._done_s = [math.inf] * count
        self._served_by = [-1] * count
        self.busy_s = 0.0  # of the GPU
        self._arrivals: list[float] = arrivals_s.tolist()
        self._rows: list[int] = [1] * count if rows is None else rows.tolist()
        smallest = min(variant.max_batch for variant in self.variants)
        if len(self._rows) != count or not all(1 <= own <= smallest for own in self._rows):
            raise ValueError(f"rows of {count} requests, 1 to {smallest} each, are needed")
        self._next = 0
        self._tables = [variant.table_s.tolist() for variant in self.variants]
        self._queues: list[deque[int]] = [deque() for _ in self.variants]
        self._probes: list[deque[int]] = [deque() for _ in self.variants]
        self._free = [self.physics.instances] * len(self.variants)
        self._running: list[Batch] = []
        self._switch: tuple[float, int] | None = None
        self._seed = seed
        self._chunks = 0  # of noise that were drawn
        self._noise: list[float] = []

    def fork(self) -> SimulatedTriton:
        """Return a server in the same state, to look ahead with: it keeps no records.

        It gets the same future arrivals and noise, so that two forks differ by what was decided.
        """
        other = copy(self)
        other._detach()  # noqa: SLF001 - of this class
        return other

    def _detach(self) -> None:
        self._records = False
        self.executed = []
        self.counters = [copy(counters) for counters in self.counters]
        self._queues = [queue.copy() for queue in self._queues]
        self._probes = [probes.copy() for probes in self._probes]
        self._free = self._free.copy()
        self._running = [copy(batch) for batch in self._running]
        self._noise = self._noise.copy()

    def arriving_rps(self, within_s: float) -> float:
        """Return the rate of the arrivals to come; for those who know the future."""
        until = bisect_left(self._arrivals, self.now_s + within_s, lo=self._next)
        return (until - self._next) / within_s

    def waiting_s(self) -> list[float]:
        """Return when each request arrived that waits or is in execution."""
        waiting = [request for queue in self._queues for request in queue]
        waiting += [request for batch in self._running for request in batch.requests]
        return [self._arrivals[request] for request in waiting]

    def work_s(self) -> float:
        """Return the seconds of work that wait or are in execution, in the largest batches."""
        total_s = sum(batch.left_s for batch in self._running)
        for variant, queue in enumerate(self._queues):
            table = self._tables[variant]
            full, rest = divmod(sum(self._rows[request] for request in queue), len(table))
            total_s += full * table[-1] + (table[rest - 1] if rest else 0.0)
        return total_s

    @property
    def switching(self) -> bool:
        """Return whether a switch is under way."""
        return self._switch is not None

    @property
    def arrived(self) -> int:
        """Return how many requests have arrived."""
        return self._next

    def arrivals_s(self) -> Floats:
        """Return when every request arrives. [requests]."""
        return np.array(self._arrivals)

    def latency_s(self) -> Floats:
        """Return every request's latency, infinite where it is not answered. [requests]."""
        return np.asarray(np.array(self._done_s) - np.array(self._arrivals))

    def served_by(self) -> Ints:
        """Return which variant answered each request; -1: none. [requests]."""
        return np.array(self._served_by, dtype=np.int64)

    def ended(self, requests: Sequence[int]) -> list[tuple[int, int, float, float]]:
        """Return (request, variant, arrival, end) of those of some requests that are answered."""
        done = ((r, self._served_by[r], self._arrivals[r], self._done_s[r]) for r in requests)
        return [one for one in done if one[1] >= 0]

    def pending(self, variant: int) -> int:
        """Return how many requests wait for a variant, those in execution not counted."""
        return len(self._queues[variant])

    def switch(self, variant: int) -> bool:
        """Point the alias at a variant; False while another switch is under way."""
        if self._switch is not None:
            return False
        self._switch = (self.now_s + self.physics.switch_s, variant)
        return True

    def probe(self, variant: int, rows: int) -> None:
        """Put a synthetic batch into a variant's queue."""
        self._probes[variant].append(min(rows, self.variants[variant].max_batch))
        self._start(variant)

    def advance(self, to_s: float) -> None:
        """Let time pass. Raises ValueError for a moment that has passed."""
        if to_s < self.now_s:
            raise ValueError(f"{to_s:g} s is before {self.now_s:g} s")
        while True:
            next_s = self._next_event_s(to_s)
            self._pass(next_s)
            self._admit()
            if self._switch is not None and self._switch[0] <= self.now_s:
                self.serving, self.since_s = self._switch[1], self.now_s
                self.switches += 1
                self._switch = None
            self._end_batches()
            for variant in range(len(self.variants)):
                self._start(variant)
            if next_s >= to_s:
                return

    def _next_event_s(self, to_s: float) -> float:
        next_s = to_s
        running = self._running
        if running:
            sharing = max(len(running) / self.physics.parallel, 1.0)
            for batch in running:
                next_s = min(next_s, self.now_s + batch.left_s * sharing)
        if self._switch is not None:
            next_s = min(next_s, self._switch[0])
        # While no instance of the serving variant is free, arrivals need not be looked at.
        if self._free[self.serving] > 0 and self._next < len(self._arrivals):
            next_s = min(next_s, self._arrivals[self._next])
        delay_s = self.physics.queue_delay_s
        if delay_s > 0.0:
            for variant, queue in enumerate(self._queues):
                if queue and self._free[variant] > 0:
                    next_s = min(next_s, self._arrivals[queue[0]] + delay_s)
        return max(next_s, self.now_s)

    def _pass(self, to_s: float) -> None:
        running = self._running
        if running:
            elapsed_s = to_s - self.now_s
            share_s = elapsed_s / max(len(running) / self.physics.parallel, 1.0)
            for batch in running:
                batch.left_s -= share_s
            self.busy_s += elapsed_s
        self.now_s = to_s

    def _admit(self) -> None:
        """Queue what has arrived by now; a switch takes effect after what arrived before it."""
        arrivals, at = self._arrivals, self._next
        queue = self._queues[self.serving]
        count = len(arrivals)
        while at < count and arrivals[at] <= self.now_s:
            queue.append(at)
            at += 1
        self._next = at

    def _end_batches(self) -> None:
        ended = [batch for batch in self._running if batch.left_s <= 1e-12]
        if not ended:
            return
        self._running = [batch for batch in self._running if batch.left_s > 1e-12]
        now_s = self.now_s
        for batch in ended:
            variant = batch.variant
            self._free[variant] += 1
            took_s = now_s - batch.began_s
            count = len(batch.requests) or 1
            counters = self.counters[variant]
            counters.executions += 1
            counters.requests += count
            counters.rows += batch.rows
            counters.compute_s += took_s * count
            quality = self.variants[variant].quality
            oldest_s = now_s - self.limit_s
            for request in batch.requests:
                arrived_s = self._arrivals[request]
                counters.queue_s += batch.began_s - arrived_s
                if arrived_s >= oldest_s:
                    self.earned += quality
                if self._records:
                    self._done_s[request] = now_s
                    self._served_by[request] = variant
            if self._records:
                probe = not batch.requests
                self.executed.append(Executed(variant, batch.rows, took_s, now_s, probe))

    def _start(self, variant: int) -> None:
        queue, probes = self._queues[variant], self._probes[variant]
        most = self.variants[variant].max_batch
        delay_s = self.physics.queue_delay_s
        while self._free[variant] > 0 and (queue or probes):
            requests: list[int] = []
            if queue:
                rows = self._fill(queue, most, requests)
                waits = delay_s > 0.0 and rows < most and not queue
                if waits and self._arrivals[requests[0]] + delay_s > self.now_s + 1e-12:
                    queue.extend(requests)
                    return
            else:
                rows = probes.popleft()
            self._free[variant] -= 1
            work_s = self._tables[variant][rows - 1] * self._factor()
            self._running.append(Batch(variant, requests, rows, self.now_s, work_s))

    def _fill(self, queue: deque[int], most: int, requests: list[int]) -> int:
        """Take requests off a queue, in order, as many as fit; return their rows."""
        rows = 0
        while queue and rows + self._rows[queue[0]] <= most:
            request = queue.popleft()
            rows += self._rows[request]
            requests.append(request)
        return rows

    def _factor(self) -> float:
        if not self._noise:
            self._noise = self.physics.draw_noise(self._seed, self._chunks)
            self._chunks += 1
        return self._noise.pop() * self.physics.slowdown(self.now_s)
