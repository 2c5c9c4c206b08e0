"""Counting arrivals that no counter of Triton shows yet."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.prediction.inflight import ArrivalCounter
from controller.telemetry.observation import VariantReading

TICK_S = 0.02
LARGEST = 8


class Queue:
    """One instance that takes up to LARGEST waiting requests at once, as Triton's batcher does."""

    def __init__(self, arrivals_s, service_s):
        self._to_come, self._service_s = list(arrivals_s), service_s
        self._free_s, self._waiting, self._running = 0.0, [], 0
        self.arrived = 0

    def read(self, until_s):
        """Return a reading of the time since the last one."""
        done = batches = 0
        while True:
            starts_s = self._free_s
            if not self._running and not self._waiting:
                starts_s = self._to_come[0] if self._to_come else np.inf
            event_s = min(starts_s, self._to_come[0] if self._to_come else np.inf)
            if event_s > until_s:
                break
            if self._to_come and self._to_come[0] <= event_s and (self._running or self._waiting):
                self._arrive()
                continue
            if self._running:
                done, batches, self._running = done + self._running, batches + 1, 0
                if not self._waiting:
                    continue
            if not self._waiting:
                self._arrive()
            self._running = min(len(self._waiting), LARGEST)
            del self._waiting[: self._running]
            self._free_s = event_s + self._service_s
        return VariantReading("m", True, len(self._waiting), done, done, batches)

    def _arrive(self):
        self._waiting.append(self._to_come.pop(0))
        self.arrived += 1


def _count(queue, seconds, rate):
    counter, counts, true = ArrivalCounter(LARGEST), [], []
    for tick in range(1, int(seconds / TICK_S)):
        before = queue.arrived
        reading = queue.read(tick * TICK_S)
        expected = rate * TICK_S
        counts.append(counter.count([reading], receiving=frozenset({"m"}), expected=expected))
        true.append(queue.arrived - before)
    return np.array(counts), np.array(true)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 10**6),
    st.sampled_from([0.004, 0.015, 0.035, 0.07]),
    st.sampled_from([30.0, 100.0, 300.0]),
)
def test_as_many_are_counted_as_came_but_for_one_batch(seed, service_s, rate):
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, int(6 * rate))
    counts, true = _count(Queue(np.cumsum(gaps), service_s), 4.0, rate)
    off = np.cumsum(counts) - np.cumsum(true)
    assert np.abs(off).max() <= LARGEST


def test_a_rise_is_seen_while_the_batch_that_holds_it_is_still_in_execution():
    """Completed plus pending alone would show the arrivals of a batch's time too late."""
    calm = np.arange(0.05, 1.0, 0.05)
    burst = 1.0 + np.arange(1, 60) / 300.0
    queue, counter = Queue([*calm, *burst], 0.060), ArrivalCounter(LARGEST)
    seen = known = 0.0
    for tick in itertools.count(1):
        if tick * TICK_S > 1.125:
            break
        reading = queue.read(tick * TICK_S)
        expected = 20.0 * TICK_S  # nobody has told of the burst
        arrived = counter.count([reading], receiving=frozenset({"m"}), expected=expected)
        if tick * TICK_S > 1.0:
            seen += arrived
            known = seen
    came = float((burst <= 1.12).sum())
    assert known >= 0.75 * came


def test_a_variant_to_which_nothing_is_sent_gets_no_arrivals():
    counter = ArrivalCounter(LARGEST)
    readings = [
        VariantReading("m", True, 6),
        VariantReading("m", True, 0),  # all six are in execution
        VariantReading("m", True, 0, 6, 6, 1),
    ]
    served = frozenset({"other"})
    first = counter.count(readings[:1], receiving=frozenset({"m"}), expected=3.0)
    later = [counter.count([r], receiving=served, expected=3.0) for r in readings[1:]]
    assert first == pytest.approx(7.0)  # one in execution: others wait
    assert sum(later) == pytest.approx(-1.0)  # there was none


def test_what_a_server_took_with_it_is_not_counted_again():
    counter = ArrivalCounter(LARGEST)
    mine = frozenset({"m"})
    assert counter.count([VariantReading("m", True, 5)], receiving=mine, expected=0.0) == 6.0
    assert counter.count([None], receiving=mine, expected=0.0) == 0.0
    assert counter.count([VariantReading("m", True, 0)], receiving=mine, expected=0.0) == 0.0
