"""Counting arrivals that no counter of Triton shows yet."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.prediction.inflight import ArrivalCounter
from controller.telemetry.observation import VariantReading

TICK_S = 0.02
LARGEST = 8


class Queue:
    """One instance that takes up to so many waiting requests at once, as Triton's batcher does."""

    def __init__(self, arrivals_s, service_s, largest=LARGEST):
        self._to_come, self._service_s = list(arrivals_s), service_s
        self._largest = largest
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
            self._running = min(len(self._waiting), self._largest)
            del self._waiting[: self._running]
            self._free_s = event_s + self._service_s
        took_s = self._service_s * done
        return VariantReading("m", True, len(self._waiting), done, done, batches, 0, 0.0, took_s)

    def _arrive(self):
        self._waiting.append(self._to_come.pop(0))
        self.arrived += 1


def _follow(queue, seconds, rate, largest=LARGEST):
    """Return, tick by tick, how many too many were counted, and what no counter shows."""
    counter, counted, shown, off, lacking = ArrivalCounter(), 0.0, 0, [], []
    for tick in range(1, int(seconds / TICK_S)):
        reading = queue.read(tick * TICK_S)
        counted += counter.count(
            [reading], expected={"m": rate * TICK_S}, largest=largest, window_s=TICK_S
        )
        shown += reading.completed_requests
        off.append(counted - queue.arrived)
        lacking.append(queue.arrived - shown - reading.pending_requests)
    return np.array(off), np.array(lacking)


def _poisson(rate, seconds, seed=1):
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, int(1.5 * seconds * rate)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**6), st.sampled_from([0.035, 0.05, 0.07]))
def test_long_batches_are_counted_while_they_run(seed, service_s):
    rate = 0.7 * LARGEST / service_s
    off, lacking = _follow(Queue(_poisson(rate, 8.0, seed), service_s), 6.0, rate)
    assert np.abs(off).mean() < 0.5 * lacking.mean()
    assert abs(off.mean()) < 0.35 * lacking.mean()


@pytest.mark.parametrize("service_s", [0.004, 0.010, 0.015])
def test_of_short_batches_there_is_little_to_estimate_and_little_is_wrong(service_s):
    rate = 0.7 * LARGEST / service_s
    off, lacking = _follow(Queue(_poisson(rate, 8.0), service_s), 6.0, rate)
    assert np.abs(off).mean() < 0.8 * lacking.mean()


def test_without_batching_one_is_in_execution_however_many_wait():
    queue = Queue(_poisson(95.0, 10.0), 0.010, largest=1)
    off, _ = _follow(queue, 8.0, 95.0)
    assert np.abs(off).max() <= 3.0


def test_a_rise_is_seen_while_the_batch_that_holds_it_is_still_in_execution():
    """The batch of 60 ms that began at the rise's second tick ends after the fifth."""
    calm = np.arange(0.05, 1.0, 0.05)
    burst = 1.0 + np.arange(1, 60) / 300.0
    queue = Queue([*calm, *burst], 0.060, largest=64)
    counter, counted = ArrivalCounter(), 0.0
    for tick in range(1, 56):
        reading = queue.read(tick * TICK_S)
        expected = {"m": 20.0 * TICK_S}  # nobody has told of the burst
        counted += counter.count([reading], expected=expected, largest=64.0, window_s=TICK_S)
    assert counted >= 0.85 * queue.arrived
    assert counted <= queue.arrived + 1.0


def _one(waiting, done=0, batches=0, took_s=0.0, **changes):
    return VariantReading("m", True, waiting, done, done, batches, 0, 0.0, took_s * done, **changes)


def _counts(readings, expected=0.0):
    counter = ArrivalCounter()
    return [
        counter.count([one], expected={"m": expected}, largest=LARGEST, window_s=TICK_S)
        for one in readings
    ]


def test_a_variant_to_which_nothing_is_sent_gets_no_arrivals():
    counts = _counts([_one(6), _one(0), _one(0, 6, 1, 0.03)])
    assert counts[0] == pytest.approx(7.0)  # one in execution: others wait
    assert sum(counts) == pytest.approx(6.0)  # there was none


def test_what_never_came_is_taken_back_when_the_variant_falls_silent():
    """Else the first batch after a pause would be taken for what was counted before it."""
    busy = [_one(0, 6, 1, 0.01)]
    silent = [_one(0)] * 5
    counts = _counts([*busy, *silent], expected=3.0)
    assert counts[0] == pytest.approx(6.0 + 3.0)
    assert sum(counts) == pytest.approx(6.0)


@pytest.mark.parametrize(
    "gone", [None, VariantReading("m", False, 0), VariantReading("m", True, None)]
)
def test_what_a_server_took_with_it_is_not_counted_again(gone):
    counts = _counts([_one(5), gone, _one(0), _one(2)])
    assert counts == pytest.approx([6.0, 0.0, 0.0, 3.0])


def test_where_nothing_tells_what_waits_it_is_what_completed():
    unknown = VariantReading("m", True, None, 4, 4, 2)
    assert _counts([unknown, unknown]) == [4.0, 4.0]


# -- several instances ---------------------------------------------------------------------------


def _together(number, rate, batch_s, seconds, seed=1):
    """Return what came in each tick, and what was counted, where some batches run at a time."""
    arrivals_s = [at for at in _poisson(rate, seconds, seed) if at < seconds]
    counter, waiting, running = ArrivalCounter(), 0, []
    came, counted = [], []
    for tick in range(1, int(seconds / TICK_S)):
        done, batches, before = 0, 0, len(arrivals_s)
        until_s = tick * TICK_S
        while True:
            events_s = [ends_s for ends_s, _ in running] + arrivals_s[:1]
            if not events_s or min(events_s) > until_s:
                break
            now_s = min(events_s)
            if arrivals_s and arrivals_s[0] <= now_s:
                waiting += 1
                del arrivals_s[0]
            for ended in [one for one in running if one[0] <= now_s]:
                running.remove(ended)
                done, batches = done + ended[1], batches + 1
            if waiting and len(running) < number:
                running.append((now_s + batch_s, min(waiting, 32)))
                waiting -= running[-1][1]
        reading = VariantReading("m", True, waiting, done, done, batches, 0, 0.0, batch_s * done)
        counted.append(
            counter.count(
                [reading],
                expected={"m": rate * TICK_S},
                largest=32.0,
                window_s=TICK_S,
                instances={"m": float(number)},
            )
        )
        came.append(before - len(arrivals_s))
    return np.array(came), np.array(counted)


@pytest.mark.parametrize(
    ("number", "rate", "batch_s", "most"),
    [(2, 200.0, 0.02, 1.5), (2, 100.0, 0.08, 2.0), (2, 100.0, 0.05, 2.0), (3, 20.0, 0.01, 1.6)],
)
def test_of_batches_on_several_instances_no_tick_is_far_off(number, rate, batch_s, most):
    """Batches of four ticks, which end all at once, made it wrong by five times the chance."""
    came, counted = _together(number, rate, batch_s, 40.0)
    assert counted.sum() == pytest.approx(came.sum(), rel=0.02)
    assert (counted - came).std() < most * came.mean() ** 0.5


def test_a_variant_on_several_instances_that_nothing_is_sent_to_gets_no_arrivals():
    counter = ArrivalCounter()
    counts = [
        counter.count([one], expected={}, largest=LARGEST, window_s=TICK_S, instances={"m": 2.0})
        for one in (_one(6), _one(0), _one(0, 3, 1, 0.03), _one(0, 3, 1, 0.03), *[_one(0)] * 4)
    ]
    assert counts[0] == pytest.approx(8.0)  # two in execution: others wait
    assert max(counts[1:]) == pytest.approx(0.0)
    assert sum(counts) == pytest.approx(6.0)  # there were none


def test_how_fast_requests_ended_is_forgotten_where_several_instances_were_one_meanwhile():
    counter = ArrivalCounter()

    def count(instances, **reading) -> float:
        expected = {"m": 1.0} if reading.get("pending_requests") else {}
        one = VariantReading(**{"model": "m", "ready": True, "pending_requests": 0, **reading})
        return counter.count(
            [one], expected=expected, largest=8.0, window_s=TICK_S, instances=instances
        )

    count({"m": 2.0}, completed_requests=40, executions=5, compute_s=4.0)
    count(None)
    came = count({"m": 2.0}, pending_requests=2, completed_requests=1, executions=1, compute_s=0.1)
    # Two wait, one ended, and those in execution are as many as one that ended in a tick tells.
    assert came == pytest.approx(5.5)
