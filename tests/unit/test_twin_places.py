"""Several GPUs in the twin: one that is slow or lost, and variants that are moved."""

import math

import numpy as np
import pytest

from controller.planning.core import GovernorCore
from controller.planning.decision import Reason
from controller.planning.sizing import Resize
from controller.telemetry.observation import Instances
from controller.twin.drive import looks, profile_of
from controller.twin.ladder import TwinVariant
from controller.twin.load import Load
from controller.twin.many import Shared, govern, policy_of
from controller.twin.port import TwinPort
from controller.twin.server import Change, Physics, SimulatedTriton

FAST = 0.002 + 0.0005 * np.arange(1, 9)
GOOD = 0.004 + 0.0015 * np.arange(1, 9)


def shared(name: str, gpus: tuple[int, ...], rate_rps: float, seconds: float) -> Shared:
    arrivals_s = np.arange(0.0, seconds, 1.0 / rate_rps)
    variants = (TwinVariant(f"{name}-fast", 0.7, FAST), TwinVariant(f"{name}-good", 0.9, GOOD))
    return Shared(name, Load(variants, arrivals_s, 0, 0.1, gpus=gpus))


def server_of(*models: Shared, **physics) -> SimulatedTriton:
    settings = {"noise": 0.0, "gpus": 2, "load_s": 1.0, **physics}
    return SimulatedTriton.shared([m.load for m in models], physics=Physics(**settings))


def test_a_change_of_one_gpu_is_none_of_another():
    slow = Change(1.0, 2.0, gpu=0)
    server = server_of(shared("a", (0,), 20, 4), shared("b", (1,), 20, 4), changes=(slow,))
    server.advance(5.0)
    latency_s, arrivals_s = server.latency_s(), server.arrivals_s()
    for alias, factor in enumerate((2.0, 1.0)):
        part = server.requests_of(alias)
        late = arrivals_s[part] >= 1.0
        assert latency_s[part][late] == pytest.approx(FAST[0] * factor)
        assert latency_s[part][~late] == pytest.approx(FAST[0])
    physics = Physics(changes=(slow, Change(2.0, 3.0)))
    assert [physics.slowdown_at(t, g) for t, g in ((1.5, 0), (1.5, 1), (2.5, 1))] == [2.0, 1.0, 3.0]


def test_on_a_gpu_that_is_lost_no_batch_ends():
    lost = Change(1.0, math.inf, gpu=0)
    server = server_of(shared("a", (0,), 20, 2), shared("b", (1,), 20, 2), changes=(lost,))
    server.advance(9.0)
    latency_s, arrivals_s = server.latency_s(), server.arrivals_s()
    own = server.requests_of(0)
    assert np.isinf(latency_s[own][arrivals_s[own] > 1.0]).all()
    assert np.isfinite(latency_s[server.requests_of(1)]).all()
    told = TwinPort(server, *policy_of([shared("a", (0,), 1, 2), shared("b", (1,), 1, 2)]).models)
    assert [gpu.lost for gpu in told.read().gpus] == [True, False]


def test_an_idle_variant_is_moved_in_the_time_of_a_load_and_what_serves_is_not():
    models = [shared("a", (0,), 20, 6)]
    server = server_of(*models)
    port = TwinPort(server, *policy_of(models).models)
    before = port.read().placement
    assert not server.pool.move(0, 1)  # it serves
    assert server.pool.move(1, 1)
    assert not server.pool.move(1, 0)  # one at a time
    server.advance(0.5)
    assert server.pool.places(1) == (0,)
    assert port.read().placement is before
    server.advance(1.5)
    assert server.pool.places(1) == (1,)
    assert port.read().placement == {"a-fast": (0,), "a-good": (1,)}
    server.switch(1)
    server.advance(9.0)
    assert np.isfinite(server.latency_s()).all()


def test_one_that_was_moved_takes_its_instances_along_and_gets_more_where_it_is():
    models = [shared("a", (0,), 20, 6)]
    server = server_of(*models, instances=2, most_instances=4)
    port = TwinPort(server, *policy_of(models).models)
    assert server.pool.move(1, 1)
    assert not port.read().instances["a-good"].may_change, "it is under way"
    server.advance(1.5)
    assert port.read().instances["a-good"] == Instances(2, 2, may_change=True)
    port.resize(Resize("a-good", 3, 2, 0.1))
    server.advance(3.0)
    assert [server.pool.instances(1, gpu) for gpu in (0, 1)] == [0, 3]
    assert port.read().instances["a-good"].number == 3


def test_a_move_needs_memory_on_both():
    variants = (
        TwinVariant("fast", 0.7, FAST, memory_bytes=3.0),
        TwinVariant("good", 0.9, GOOD, memory_bytes=4.0),
    )
    one = Shared("a", Load(variants, np.arange(0.0, 2.0, 0.1), 0, 0.1, gpus=(0,)))
    other = Shared("b", Load(variants[:1], np.arange(0.0, 2.0, 0.1), 0, 0.1, gpus=(1,)))
    server = server_of(one, other, memory_bytes=7.0)
    assert server.pool.move(1, 1)
    server.advance(1.5)
    assert [server.pool.used_bytes(gpu) for gpu in (0, 1)] == [3.0, 7.0]
    full = server_of(one, other, memory_bytes=6.9999)
    assert not full.pool.move(1, 1)


def test_a_governor_leaves_a_gpu_that_is_lost_at_its_next_look():
    lost = Change(4.03, math.inf, gpu=0)
    variants = (TwinVariant("fast", 0.7, FAST), TwinVariant("good", 0.9, GOOD))
    models = [Shared("a", Load(variants, np.arange(0.0, 8.0, 0.05), 1, 0.1, gpus=(0,)))]
    server = server_of(*models, changes=(lost,))
    assert server.pool.move(0, 1)
    policy = policy_of(models)
    core = GovernorCore(policy)
    core.restore(profile_of(server, policy))
    port = TwinPort(server, *policy.models)
    left = [
        (look.observation.now_s, look.decisions[0])
        for look in looks(server, core, port, policy, duration_s=8.0, seed=0)
        if look.decisions[0].reason is Reason.ESCAPE
    ]
    assert 4.03 <= left[0][0] < 4.03 + 2.0 * policy.tick_s
    assert left[0][1].target == "fast"
    after = server.arrivals_s() > 4.03 + 3.0 * policy.tick_s
    server.advance(9.0)
    assert (server.latency_s()[after] <= 0.1).all()


@pytest.mark.parametrize("gpus", [None, ()])
def test_what_may_be_placed_comes_back_when_its_gpu_is_lost(gpus):
    models = [shared("a", (0,), 20, 12), shared("b", (1,), 20, 12)]
    physics = Physics(noise=0.02, gpus=2, load_s=0.5, changes=(Change(3.0, math.inf, gpu=0),))
    run = {"physics": physics, "duration_s": 12.0, "seed": 1}
    found = govern(models, policy_of(models, gpus), **run)
    assert found.attainment[1] > 0.98
    if gpus is None:
        assert found.attainment[0] < 0.3
        assert found.moves == 0
    else:
        assert found.attainment[0] > 0.8
        assert found.moves == 2
