"""The event loop of the simulated Triton, compiled.

Owns time, queues, batches and what they earn, in arrays that compiled code can hold. It must not
know policies, names or operations that take time (`controller.twin.server` is its only user).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What `advance` returns: it got there; or it stopped before, and what the caller must do first.
ARRIVED: Final = 0
LOG_FULL: Final = 1
QUEUE_FULL: Final = 2

# Places in `State.given`.
QUEUE_DELAY_S, PARALLEL, NOISE, STRAGGLER_RATIO, STRAGGLER_FACTOR = range(5)
# Places in `State.clock`.
NOW, BUSY, EARNED = range(3)
# Places in `State.tally`.
RUNNING, BATCHES, LOGGED, CHANGES, SEED = range(5)
# Columns of `State.alias`: the variant that serves, how often it was switched, where a switch under
# way leads, its next request and the first of the next alias.
SERVING, SWITCHES, SWITCH_TO, NEXT, END = range(5)
# Columns of `State.alias_s`.
SINCE, SWITCH_AT, LIMIT_S = range(3)
# Columns of `State.totals`, as Triton's counters have them.
REQUESTS, ROWS, EXECUTIONS, QUEUE_S, COMPUTE_S = range(5)
# Columns of `State.queued`: the first range, how many ranges, requests and probes wait.
HEAD, RANGES, WAITING, PROBES = range(4)
# Columns of `State.batch` and of `State.batch_s`.
VARIANT, GPU, BATCH_ROWS, BATCH_REQUESTS = range(4)
BEGAN, LEFT = range(2)
# Columns of `State.log`.
LOG_VARIANT, LOG_ROWS, LOG_TOOK, LOG_ENDED, LOG_PROBE = range(5)
LOG_COLUMNS: Final = 5
# Columns of `State.changes`; a GPU of -1: of all.
CHANGE_AT, SLOWDOWN, COTENANTS, CHANGED_GPU = range(4)

# Nothing here allocates, and the caller holds every array, so they need not be counted: with 24 of
# them in a state that took two thirds of the time. Code that allocates does not compile so.
_compiled: Final = njit(cache=True, _nrt=False)  # type: ignore[call-overload]  # not in its stubs

_DONE_S: Final = 1e-9  # work as little as this is none: the clock's own steps after days are finer
_SHORT_S: Final = 1e-12


class State(NamedTuple):
    """Everything of one simulated server."""

    # What never changes, shared by forks.
    arrivals_s: Floats  # [requests], of one alias after the other, ascending in each
    rows: Ints  # [requests]
    tables_s: Floats  # [variants, rows 1..largest]
    quality: Floats  # [variants]
    alias_of: Ints  # [variants], whose requests each answers
    changes: Floats  # [changes, 4], ascending in time
    given: Floats  # [5]
    # What changes, copied by forks.
    clock: Floats  # [3]
    tally: Ints  # [5]
    alias: Ints  # [aliases, 5]
    alias_s: Floats  # [aliases, 3]
    limits: Ints  # [variants], the largest batch
    free: Ints  # [variants, gpus], idle instances; below zero: as many are ended when they are done
    busy: Ints  # [gpus], batches in execution
    queue: Ints  # [variants, ranges, 2], rings of ranges of requests
    queued: Ints  # [variants, 4]
    probes: Ints  # [variants, 2..], rows of each probe that waits
    totals: Floats  # [variants, 5]
    batch: Ints  # [slots, 4]
    batch_s: Floats  # [slots, 2]
    batch_requests: Ints  # [slots, rows]
    # Records; empty in forks.
    done_s: Floats  # [requests]
    served_by: Ints  # [requests]
    log: Floats  # [batches, 5]


@_compiled
def advance(s: State, to_s: float) -> int:
    """Let time pass up to a moment; return what stopped it, if anything."""
    while True:
        if 0 < len(s.log) < s.tally[LOGGED] + len(s.batch):
            return LOG_FULL
        for alias in range(len(s.alias)):
            if s.queued[s.alias[alias, SERVING], RANGES] >= s.queue.shape[1]:
                return QUEUE_FULL
        next_s = _next_event_s(s, to_s)
        _pass(s, next_s)
        for alias in range(len(s.alias)):
            _admit(s, alias)
            if s.alias_s[alias, SWITCH_AT] <= next_s:
                s.alias[alias, SERVING] = s.alias[alias, SWITCH_TO]
                s.alias_s[alias, SINCE] = next_s
                s.alias_s[alias, SWITCH_AT] = math.inf
                s.alias[alias, SWITCHES] += 1
        _end_batches(s)
        start(s)
        if next_s >= to_s:
            return ARRIVED


@_compiled
def start(s: State) -> None:
    """Begin every batch that can begin now."""
    for variant in range(len(s.free)):
        while s.queued[variant, WAITING] > 0 or s.queued[variant, PROBES] > 0:
            gpu = _idle(s, variant)
            if gpu < 0 or not _begin(s, variant, gpu):
                break


@_compiled
def work_s(s: State) -> float:
    """Return the seconds of work that wait or are in execution, in the largest batches."""
    total_s = 0.0
    for slot in range(s.tally[RUNNING]):
        total_s += s.batch_s[slot, LEFT]
    for variant in range(len(s.free)):
        if s.queued[variant, WAITING] == 0:
            continue
        waiting = 0
        for place in range(s.queued[variant, RANGES]):
            at = (s.queued[variant, HEAD] + place) % s.queue.shape[1]
            for request in range(s.queue[variant, at, 0], s.queue[variant, at, 1]):
                waiting += s.rows[request]
        largest = s.limits[variant]
        rest = waiting % largest
        total_s += waiting // largest * s.tables_s[variant, largest - 1]
        if rest > 0:
            total_s += s.tables_s[variant, rest - 1]
    return total_s


@_compiled
def noise_factor(given: Floats, seed: int, ordinal: int) -> float:
    """Return by how much the batch of an ordinal differs from its table, whatever was decided.

    Of mean 1, whatever its spread, but for stragglers.
    """
    spread = given[NOISE]
    factor = 1.0
    if spread > 0.0:
        radius = math.sqrt(-2.0 * math.log(_uniform(seed, ordinal, 0)))
        normal = radius * math.cos(2.0 * math.pi * _uniform(seed, ordinal, 1))
        factor = math.exp(spread * normal - 0.5 * spread * spread)
    if _uniform(seed, ordinal, 2) < given[STRAGGLER_RATIO]:
        factor *= given[STRAGGLER_FACTOR]
    return factor


@_compiled
def _uniform(seed: int, ordinal: int, stream: int) -> float:
    """Return a number in (0, 1) by its place (SplitMix64: Steele, Lea and Flood 2014)."""
    z = np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
    z += np.uint64(4 * ordinal + stream + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (np.float64(z >> np.uint64(11)) + 0.5) * 2.0**-53


@_compiled
def _slowed(s: State, gpu: int, column: int, usual: float) -> float:
    """Return what the last change says of the present of a GPU."""
    for back in range(s.tally[CHANGES]):
        change = s.changes[s.tally[CHANGES] - 1 - back]
        if change[CHANGED_GPU] < 0.0 or change[CHANGED_GPU] == gpu:
            return float(change[column])
    return usual


@_compiled
def _sharing(s: State, gpu: int) -> float:
    """Return how much slower each batch on a GPU is for those beside it."""
    beside = s.busy[gpu] + _slowed(s, gpu, COTENANTS, 0.0)
    return float(max(beside / s.given[PARALLEL], 1.0))


@_compiled
def _idle(s: State, variant: int) -> int:
    """Return the GPU with an idle instance and the fewest batches; -1: none."""
    found = -1
    for gpu in range(s.free.shape[1]):
        if s.free[variant, gpu] > 0 and (found < 0 or s.busy[gpu] < s.busy[found]):
            found = gpu
    return found


@_compiled
def _first(s: State, variant: int) -> int:
    """Return the request that waits longest."""
    return int(s.queue[variant, s.queued[variant, HEAD], 0])


@_compiled
def _next_event_s(s: State, to_s: float) -> float:
    next_s, now_s = to_s, s.clock[NOW]
    for slot in range(s.tally[RUNNING]):
        ends_s = now_s + s.batch_s[slot, LEFT] * _sharing(s, s.batch[slot, GPU])
        next_s = min(next_s, ends_s)
    # While no instance of the serving variant is free, arrivals need not be looked at.
    for alias in range(len(s.alias)):
        next_s = min(next_s, s.alias_s[alias, SWITCH_AT])
        following = s.alias[alias, NEXT]
        if following < s.alias[alias, END] and _idle(s, s.alias[alias, SERVING]) >= 0:
            next_s = min(next_s, s.arrivals_s[following])
    if s.given[QUEUE_DELAY_S] > 0.0:
        for variant in range(len(s.free)):
            if s.queued[variant, WAITING] > 0 and _idle(s, variant) >= 0:
                next_s = min(next_s, s.arrivals_s[_first(s, variant)] + s.given[QUEUE_DELAY_S])
    if s.tally[CHANGES] < len(s.changes):
        next_s = min(next_s, s.changes[s.tally[CHANGES], CHANGE_AT])
    return float(max(next_s, now_s))


@_compiled
def _pass(s: State, to_s: float) -> None:
    elapsed_s = to_s - s.clock[NOW]
    for slot in range(s.tally[RUNNING]):
        s.batch_s[slot, LEFT] -= elapsed_s / _sharing(s, s.batch[slot, GPU])
    for gpu in range(len(s.busy)):
        if s.busy[gpu] > 0:
            s.clock[BUSY] += elapsed_s
    s.clock[NOW] = to_s
    while s.tally[CHANGES] < len(s.changes) and s.changes[s.tally[CHANGES], CHANGE_AT] <= to_s:
        s.tally[CHANGES] += 1


@_compiled
def _admit(s: State, alias: int) -> None:
    """Queue what has arrived by now; a switch takes effect after what arrived before it."""
    began, end = s.alias[alias, NEXT], s.alias[alias, END]
    at = began
    while at < end and s.arrivals_s[at] <= s.clock[NOW]:
        at += 1
    if at == began:
        return
    s.alias[alias, NEXT] = at
    variant = s.alias[alias, SERVING]
    own = s.queued[variant]
    own[WAITING] += at - began
    size = s.queue.shape[1]
    if own[RANGES] > 0:
        last = (own[HEAD] + own[RANGES] - 1) % size
        if s.queue[variant, last, 1] == began:
            s.queue[variant, last, 1] = at
            return
    place = (own[HEAD] + own[RANGES]) % size
    s.queue[variant, place, 0] = began
    s.queue[variant, place, 1] = at
    own[RANGES] += 1


@_compiled
def _move(s: State, slot: int, to: int) -> None:
    """Put what is known of a batch in another slot. A row at once would allocate."""
    for place in range(s.batch.shape[1]):
        s.batch[to, place] = s.batch[slot, place]
    for place in range(s.batch_s.shape[1]):
        s.batch_s[to, place] = s.batch_s[slot, place]
    for place in range(s.batch[slot, BATCH_REQUESTS]):
        s.batch_requests[to, place] = s.batch_requests[slot, place]


@_compiled
def _end_batches(s: State) -> None:
    now_s = s.clock[NOW]
    kept = 0
    for slot in range(s.tally[RUNNING]):
        if s.batch_s[slot, LEFT] > _DONE_S:
            if kept < slot:
                _move(s, slot, kept)
            kept += 1
            continue
        variant, gpu = s.batch[slot, VARIANT], s.batch[slot, GPU]
        rows, requests = s.batch[slot, BATCH_ROWS], s.batch[slot, BATCH_REQUESTS]
        began_s = s.batch_s[slot, BEGAN]
        s.free[variant, gpu] += 1
        s.busy[gpu] -= 1
        count = max(requests, 1)
        totals = s.totals[variant]
        totals[EXECUTIONS] += 1
        totals[REQUESTS] += count
        totals[ROWS] += rows
        totals[COMPUTE_S] += (now_s - began_s) * count
        for place in range(requests):
            request = s.batch_requests[slot, place]
            arrived_s = s.arrivals_s[request]
            totals[QUEUE_S] += began_s - arrived_s
            if arrived_s >= now_s - s.alias_s[s.alias_of[variant], LIMIT_S]:
                s.clock[EARNED] += s.quality[variant]
            if len(s.done_s) > 0:
                s.done_s[request] = now_s
                s.served_by[request] = variant
        if len(s.log) > 0:
            line = s.log[s.tally[LOGGED]]
            line[LOG_VARIANT], line[LOG_ROWS] = variant, rows
            line[LOG_TOOK], line[LOG_ENDED] = now_s - began_s, now_s
            line[LOG_PROBE] = 1.0 if requests == 0 else 0.0
            s.tally[LOGGED] += 1
    s.tally[RUNNING] = kept


@_compiled
def _begin(s: State, variant: int, gpu: int) -> bool:
    """Begin a batch of what waits, in order; False: it shall wait for more."""
    slot, own = s.tally[RUNNING], s.queued[variant]
    rows, requests = 0, 0
    if own[WAITING] > 0:
        head, ranges, at = own[HEAD], own[RANGES], _first(s, variant)
        largest = s.limits[variant]
        # A request that is larger than a batch may be by now goes alone, as it was let in.
        while ranges > 0 and (rows == 0 or rows + s.rows[at] <= largest):
            s.batch_requests[slot, requests] = at
            rows += s.rows[at]
            requests += 1
            at += 1
            if at == s.queue[variant, head, 1]:
                head, ranges = (head + 1) % s.queue.shape[1], ranges - 1
                at = s.queue[variant, head, 0]
        if ranges == 0 and rows < largest and s.given[QUEUE_DELAY_S] > 0.0:
            until_s = s.arrivals_s[s.batch_requests[slot, 0]] + s.given[QUEUE_DELAY_S]
            if until_s > s.clock[NOW] + _SHORT_S:
                return False
        own[HEAD], own[RANGES] = head, ranges
        own[WAITING] -= requests
        if ranges > 0:
            s.queue[variant, head, 0] = at
    else:
        own[PROBES] -= 1
        rows = s.probes[variant, 0]
        for place in range(own[PROBES]):
            s.probes[variant, place] = s.probes[variant, place + 1]
    ordinal = s.tally[BATCHES]
    s.tally[BATCHES] += 1
    factor = noise_factor(s.given, s.tally[SEED], ordinal) * _slowed(s, gpu, SLOWDOWN, 1.0)
    s.batch[slot, VARIANT], s.batch[slot, GPU] = variant, gpu
    s.batch[slot, BATCH_ROWS], s.batch[slot, BATCH_REQUESTS] = rows, requests
    s.batch_s[slot, BEGAN] = s.clock[NOW]
    s.batch_s[slot, LEFT] = s.tables_s[variant, rows - 1] * factor
    s.free[variant, gpu] -= 1
    s.busy[gpu] += 1
    s.tally[RUNNING] += 1
    return True
