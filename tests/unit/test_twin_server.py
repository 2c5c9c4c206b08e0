"""The simulated Triton: what its queue, its GPU and its alias do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.twin.ladder import TwinVariant
from controller.twin.server import Change, Physics, SimulatedTriton

EXACT = Physics(noise=0.0)


def _variant(name: str, fixed_s: float, row_s: float, quality: float = 0.9, most: int = 8):
    return TwinVariant(name, quality, fixed_s + row_s * np.arange(1, most + 1))


FAST, SLOW = _variant("fast", 0.001, 0.001), _variant("slow", 0.010, 0.010)


def _served(arrivals_s, *, variants=(FAST, SLOW), serving=0, physics=EXACT, until_s=100.0):
    server = SimulatedTriton(variants, np.array(arrivals_s), serving=serving, physics=physics)
    server.advance(until_s)
    return server


def test_a_request_alone_takes_its_service_time():
    assert _served([1.0]).latency_s() == pytest.approx([0.002])


def test_what_waits_while_a_batch_runs_goes_together():
    server = _served([0.0, 0.001, 0.001, 0.001])
    # One alone (2 ms), then three together (4 ms).
    assert server.latency_s() == pytest.approx([0.002, 0.005, 0.005, 0.005])
    assert [batch.rows for batch in server.take_executed()] == [1, 3]


def test_no_batch_is_larger_than_it_may_be():
    server = _served(np.linspace(0.0, 0.0015, 30))
    batches = [batch.rows for batch in server.take_executed()]
    assert (max(batches), sum(batches)) == (8, 30)
    assert server.take_executed() == []


def test_requests_of_several_rows_share_a_batch_in_order_while_they_fit():
    rows = np.array([1, 5, 4, 3])
    server = SimulatedTriton(
        (FAST,), np.array([0.0, 0.001, 0.001, 0.001]), serving=0, rows=rows, physics=EXACT
    )
    server.advance(1.0)
    # The third does not fit beside the second; the fourth may not pass it.
    assert [batch.rows for batch in server.take_executed()] == [1, 5, 7]
    with pytest.raises(ValueError, match="1 to 8 each"):
        SimulatedTriton((FAST,), np.array([0.0]), serving=0, rows=np.array([9]))


def test_a_queue_delay_gathers_and_a_full_batch_does_not_wait():
    physics = Physics(noise=0.0, queue_delay_s=0.005)
    assert _served([0.0, 0.004], physics=physics).latency_s() == pytest.approx([0.008, 0.004])
    together = _served([0.0] * 8, physics=physics)
    assert together.latency_s() == pytest.approx([0.009] * 8)


def test_a_switch_sends_new_requests_elsewhere_and_leaves_the_backlog():
    server = SimulatedTriton((FAST, SLOW), np.array([0.0, 0.001, 0.050]), serving=1, physics=EXACT)
    server.advance(0.002)
    assert server.switch(0)
    assert not server.switch(1)  # one at a time
    server.advance(1.0)
    assert server.served_by().tolist() == [1, 1, 0]
    assert (server.serving, server.switches) == (0, 1)


def test_variants_that_run_at_one_time_share_the_gpu():
    server = SimulatedTriton((FAST, SLOW), np.array([0.0, 0.010]), serving=1, physics=EXACT)
    server.advance(0.001)
    server.switch(0)
    server.advance(1.0)
    # 10 ms of 20 alone; then the 2 ms of the other take 4, and the rest is alone again.
    assert server.latency_s() == pytest.approx([0.022, 0.004])


def test_on_a_host_as_many_batches_as_cores_do_not_slow_each_other():
    physics = replace(EXACT, parallel=2)
    server = SimulatedTriton((FAST, SLOW), np.array([0.0, 0.010]), serving=1, physics=physics)
    server.advance(0.001)
    server.switch(0)
    server.advance(1.0)
    assert server.latency_s() == pytest.approx([0.020, 0.002])


def test_instances_of_one_variant_work_side_by_side_at_half_the_speed():
    server = _served([0.0, 0.0005], physics=Physics(noise=0.0, instances=2))
    # 0.5 ms alone, then both at half the speed.
    assert server.latency_s() == pytest.approx([0.0035, 0.0035])


def test_a_slow_down_changes_the_batches_that_begin_under_it():
    physics = Physics(noise=0.0, changes=(Change(1.0, slowdown=3.0),))
    assert _served([0.5, 1.5], physics=physics).latency_s() == pytest.approx([0.002, 0.006])


def test_what_others_run_on_the_gpu_slows_every_batch_while_it_lasts():
    physics = Physics(noise=0.0, changes=(Change(1.0, cotenants=1.0), Change(2.001, cotenants=0.0)))
    # Alone; beside one other; beside it for half of its work, then alone.
    latency_s = _served([0.5, 1.5, 2.0], physics=physics).latency_s()
    assert latency_s == pytest.approx([0.002, 0.004, 0.0025])


def test_some_batches_straggle():
    physics = Physics(noise=0.0, straggler_ratio=0.1, straggler_factor=5.0)
    server = _served(np.arange(2000) * 0.1, physics=physics, until_s=300.0)
    slow = server.latency_s() > 0.005
    assert server.latency_s()[slow] == pytest.approx(0.010)
    assert slow.mean() == pytest.approx(0.1, abs=0.02)


def test_gpus_do_not_slow_each_other():
    server = _served([0.0, 0.0005, 0.001], physics=Physics(noise=0.0, gpus=2))
    # The third waits until the first GPU is free.
    assert server.latency_s() == pytest.approx([0.002, 0.002, 0.003])
    assert server.busy_s == pytest.approx(0.006)


def test_a_backlog_of_many_switches_is_served_in_order():
    # Every request falls to the other variant, and both are far too slow.
    slow = tuple(TwinVariant(name, 0.9, np.array([1.0])) for name in ("a", "b"))
    arrivals_s = 0.01 * np.arange(1, 401)
    physics = Physics(noise=0.0, switch_s=0.0)
    server = SimulatedTriton(slow, arrivals_s, serving=0, physics=physics)
    for request in range(400):
        server.advance(0.01 * request + 0.005)
        server.switch(request % 2)
    server.advance(1000.0)
    assert server.served_by().tolist() == [0, 1] * 200
    ends_s = arrivals_s + server.latency_s()
    assert (np.diff(ends_s[::2]) > 0.0).all()
    assert (np.diff(ends_s[1::2]) > 0.0).all()


def test_days_of_virtual_time_change_nothing():
    late_s = 1e6
    server = _served([late_s, late_s + 0.001], physics=Physics(noise=0.05), until_s=late_s + 1.0)
    assert np.isfinite(server.latency_s()).all()
    assert server.latency_s() == pytest.approx([0.002, 0.003], rel=0.2)


def test_forks_differ_by_what_was_decided_alone():
    server = SimulatedTriton((FAST, SLOW), np.linspace(0.0, 2.0, 300), serving=0, seed=3)
    server.advance(1.0)
    same, other = server.fork(), server.fork()
    other.switch(1)
    for fork in (same, other):
        fork.advance(3.0)
    server.advance(3.0)
    assert same.counters == server.counters
    assert other.counters != server.counters
    assert (server.served_by() == 0).all()


def test_time_does_not_run_backwards():
    server = _served([1.0])
    with pytest.raises(ValueError, match="before"):
        server.advance(1.0)


def test_the_queue_agrees_with_theory():
    # M/D/1: a Poisson stream, one at a time, 10 ms each, 60 % busy.
    rng = np.random.default_rng(4)
    arrivals_s = np.cumsum(rng.exponential(1.0 / 60.0, 60_000))
    one = TwinVariant("one", 0.9, np.array([0.010]))
    server = _served(arrivals_s, variants=(one,), until_s=float(arrivals_s[-1]) + 10.0)
    waiting_s = 0.6 * 0.010 / (2.0 * (1.0 - 0.6))  # Pollaczek & Khinchine 1930
    assert server.latency_s().mean() == pytest.approx(0.010 + waiting_s, rel=0.03)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0.0, 0.02), min_size=1, max_size=60),
    switches=st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 1)), max_size=6),
    instances=st.integers(1, 3),
    noise=st.floats(0.0, 0.5),
    largest=st.integers(1, 8),
)
def test_every_request_is_answered_once_in_order_and_the_counters_agree(
    gaps, switches, instances, noise, largest
):
    arrivals_s = np.cumsum(gaps)
    rows = np.random.default_rng(1).integers(1, largest + 1, len(gaps))
    physics = Physics(noise=noise, instances=instances)
    server = SimulatedTriton(
        (FAST, SLOW), arrivals_s, serving=0, rows=rows, physics=physics, seed=1
    )
    for at_s, variant in sorted(switches):
        server.advance(max(at_s, server.now_s))
        server.switch(variant)
    server.advance(1000.0)
    latency_s, served_by = server.latency_s(), server.served_by()
    assert (served_by >= 0).all()
    assert np.isfinite(latency_s).all()
    assert (latency_s > 0.0).all()
    assert sum(counters.requests for counters in server.counters) == len(gaps)
    assert sum(counters.rows for counters in server.counters) == rows.sum()
    assert all(1 <= batch.rows <= 8 for batch in server.take_executed())
    total_s = sum(counters.queue_s + counters.compute_s for counters in server.counters)
    assert total_s == pytest.approx(latency_s.sum(), rel=1e-6, abs=1e-9)
    assert server.busy_s <= server.now_s
    if instances == 1:
        for variant in (0, 1):
            ends_s = (arrivals_s + latency_s)[served_by == variant]
            assert (np.diff(ends_s) >= -1e-9).all()
