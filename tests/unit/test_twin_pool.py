"""Loads, unloads, resizes and reloads on the simulated Triton: their time and their memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.twin.ladder import TwinVariant
from controller.twin.server import Physics, SimulatedTriton

GIB = 1024.0**3
TABLE_S = 0.010 + 0.0 * np.arange(1, 9)
VARIANTS = (
    TwinVariant("one", 0.9, TABLE_S, memory_bytes=4 * GIB, load_s=1.0),
    TwinVariant("two", 0.8, TABLE_S, memory_bytes=3 * GIB),
)
PHYSICS = Physics(noise=0.0, load_s=2.0, memory_bytes=12 * GIB)


def _server(arrivals_s=(), physics=PHYSICS):
    return SimulatedTriton(VARIANTS, np.array(arrivals_s), serving=0, physics=physics)


def test_another_instance_takes_the_time_of_a_load_and_serves_beside_the_first():
    arrivals_s = [0.5, 0.501, 1.5, 1.501]
    server = _server(arrivals_s, Physics(noise=0.0, parallel=2))
    assert server.pool.resize(0, 2)
    assert not server.pool.resize(0, 3)  # one operation at a time
    server.advance(0.9)
    assert server.pool.instances(0) == 1
    server.advance(3.0)
    assert server.pool.instances(0) == 2
    # Before, the second waits for the first; then it does not.
    assert server.latency_s() == pytest.approx([0.010, 0.019, 0.010, 0.010])


def test_a_copy_that_goes_while_another_stays_takes_nothing_more():
    physics = Physics(noise=0.0, gpus=2, memory_bytes=12 * GIB)
    server = _server([0.0, 0.001, 0.002, 0.003], physics)
    server.advance(0.0015)
    assert server.pool.unload(0, 1)
    assert server.pool.used_bytes(1) == 7 * GIB  # its batch is not done
    server.advance(0.012)
    assert server.pool.used_bytes(1) == 3 * GIB
    server.advance(1.0)
    # Both ran at once; what came later went to the first GPU alone, together.
    assert server.latency_s() == pytest.approx([0.010, 0.010, 0.018, 0.017])


def test_a_reload_holds_memory_on_every_gpu_and_a_resize_does_not_undo_it():
    server = _server(physics=Physics(noise=0.0, gpus=2, load_s=2.0))
    assert server.pool.resize(1, 2, 0)
    server.advance(0.5)
    assert not server.pool.reload(1, 4)  # a copy of it is being changed
    assert server.pool.reload(0, 4)
    assert [server.pool.used_bytes(gpu) for gpu in (0, 1)] == [11 * GIB, 11 * GIB]
    server.advance(2.5)
    assert server.pool.reload(1, 4)
    assert server.pool.resize(0, 2, 1)
    server.advance(9.0)
    server.pool.resize(0, 3, 0)
    server.advance(20.0)
    assert server._state.limits.tolist() == [4, 4]


def test_fewer_instances_let_what_runs_end():
    server = _server([0.0, 0.001], Physics(noise=0.0, instances=2, parallel=2))
    server.advance(0.005)
    assert server.pool.resize(0, 1)
    server.advance(1.0)
    assert server.latency_s() == pytest.approx([0.010, 0.010])
    again = _server([0.0, 0.001, 0.002], Physics(noise=0.0, instances=2, parallel=2))
    again.advance(0.0005)
    again.pool.resize(0, 1)
    again.advance(1.0)
    assert again.latency_s() == pytest.approx([0.010, 0.019, 0.018])


def test_a_reload_changes_the_largest_batch_and_holds_twice_the_memory_meanwhile():
    server = _server(0.5 + 1e-4 * np.arange(9))
    assert server.pool.used_bytes(0) == 7 * GIB
    assert server.pool.reload(0, 2)
    assert server.pool.used_bytes(0) == 11 * GIB
    server.advance(1.0)
    assert server.pool.used_bytes(0) == 7 * GIB
    assert server.pool.peak_bytes == 11 * GIB
    # The old copy served meanwhile, with batches up to 8.
    assert [batch.rows for batch in server.take_executed()] == [1, 8]
    later = _server(2.0 + 1e-4 * np.arange(5))
    later.pool.reload(0, 2)
    later.advance(3.0)
    assert [batch.rows for batch in later.take_executed()] == [1, 2, 2]


def test_what_does_not_fit_is_refused_and_costs_nothing():
    server = _server(physics=Physics(noise=0.0, memory_bytes=10 * GIB))
    assert not server.pool.reload(0, 4)
    assert server.pool.used_bytes(0) == 7 * GIB
    assert server.pool.reload(1, 4)
    with pytest.raises(ValueError, match="not in 1 to 8"):
        server.pool.reload(0, 9)


def test_an_unload_waits_for_what_is_queued_and_never_takes_the_last_that_serves():
    server = _server([0.0, 0.001])
    assert not server.pool.unload(0)
    server.advance(0.002)
    server.switch(1)
    server.advance(0.008)  # switched; the second request still waits on the first variant
    assert server.pool.unload(0)
    server.advance(0.012)
    assert server.pool.used_bytes(0) == 7 * GIB
    server.advance(1.0)
    assert np.isfinite(server.latency_s()).all()
    assert server.pool.used_bytes(0) == 3 * GIB
    assert server.pool.load(0)
    assert server.pool.used_bytes(0) == 7 * GIB
    server.advance(1.5)
    assert server.pool.instances(0) == 0
    server.advance(2.1)
    assert server.pool.instances(0) == 1


def test_a_fork_does_not_touch_the_operations_of_its_origin():
    server = _server()
    server.pool.reload(0, 2)
    fork = server.fork()
    fork.advance(5.0)
    fork.pool.unload(1)
    assert fork.pool.instances(1) == 0
    assert server.pool.instances(1) == 1
    assert server.pool.used_bytes(0) == 11 * GIB
    assert server.pool.next_s() == 1.0


@settings(max_examples=80, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["load", "unload", "resize", "reload", "switch"]),
            st.integers(0, 1),
            st.integers(0, 1),
            st.integers(1, 4),
        ),
        max_size=25,
    )
)
def test_whatever_is_done_memory_stays_within_bounds_and_every_request_is_answered(steps):
    physics = Physics(noise=0.1, gpus=2, load_s=0.3, memory_bytes=11.5 * GIB)
    arrivals_s = np.linspace(0.0, 0.1 * (len(steps) + 1), 200)
    server = SimulatedTriton(VARIANTS, arrivals_s, serving=0, physics=physics, seed=2)
    pool = server.pool
    for index, (what, variant, gpu, number) in enumerate(steps):
        server.advance(0.1 * (index + 1))
        if what == "load":
            pool.load(variant, gpu, number)
        elif what == "unload":
            pool.unload(variant, gpu)
        elif what == "resize" and pool.instances(variant, gpu) > 0:
            pool.resize(variant, number, gpu)
        elif what == "reload":
            pool.reload(variant, number)
        elif what == "switch" and pool.instances(variant, 0) + pool.instances(variant, 1) > 0:
            server.switch(variant)
        assert max(pool.used_bytes(0), pool.used_bytes(1)) <= physics.memory_bytes
    server.advance(1000.0)
    assert pool.peak_bytes <= physics.memory_bytes
    assert (server.served_by() >= 0).all()
    assert np.isfinite(server.latency_s()).all()


def test_a_variant_that_is_to_go_stays_while_the_alias_has_come_back_to_it():
    server = _server([0.0, 0.001, 0.5])
    server.advance(0.002)
    server.switch(1)
    server.advance(0.007)
    assert server.pool.unload(0)
    server.switch(0)
    server.advance(1.0)
    assert server.served_by().tolist() == [0, 0, 0]
    assert server.pool.instances(0) == 1


def test_of_two_copies_that_serve_one_stays():
    server = _server(physics=Physics(noise=0.0, gpus=2))
    assert server.pool.unload(0, 1)
    assert not server.pool.unload(0, 0)
