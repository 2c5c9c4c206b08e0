"""Several models that share a device: each heeds the others, and gives way where that pays."""

from dataclasses import replace

import numpy as np
import pytest

from controller.planning.core import GovernorCore
from controller.planning.decision import Reason
from controller.planning.explain import explain_decision
from controller.planning.price import DevicePrice, DevicePrices
from controller.prediction.placement import Placement
from controller.telemetry.observation import HostReading, Observation
from controller.twin.drive import profile_of
from controller.twin.ladder import TwinVariant
from controller.twin.load import Load
from controller.twin.many import Shared, fixed, govern, policy_of
from controller.twin.port import TwinPort
from controller.twin.server import Physics, SimulatedTriton

CALM = Physics(noise=0.0)
REAL = Physics(noise=0.05)


def variant(name: str, quality: float, row_s: float, each_s: float = 0.0005) -> TwinVariant:
    """Return a variant whose batches take so long and a little more for every row."""
    return TwinVariant(name, quality, row_s + each_s * np.arange(16))


def steady(rate_rps: float, seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0.0, seconds, rng.poisson(rate_rps * seconds)))


def model(name: str, rate_rps: float, limit_s: float, *variants: TwinVariant, weight: float = 1.0):
    """Return a model that begins on the last of its variants."""
    arrivals_s = steady(rate_rps, 20.0, sum(map(ord, name)))
    return Shared(name, Load(variants, arrivals_s, len(variants) - 1, limit_s), weight)


def governed(shared: list[Shared]) -> tuple[SimulatedTriton, GovernorCore, TwinPort]:
    """Return a server with these models, and a governor that knows what their batches take."""
    server = SimulatedTriton.shared([one.load for one in shared], physics=REAL)
    policy = policy_of(shared)
    core = GovernorCore(policy)
    core.restore(profile_of(server, policy))
    return server, core, TwinPort(server, *policy.models)


GREEDY = model("greedy", 60.0, 0.4, variant("g1", 0.90, 0.030, 0.002), variant("g2", 0.88, 0.004))
URGENT = model("urgent", 40.0, 0.06, variant("u1", 0.9, 0.016))


# -- the simulated server ----------------------------------------------------------------------


def test_two_models_on_one_device_slow_each_other_and_are_switched_apart():
    slow, quick = variant("slow", 0.9, 0.010, 0.0), variant("quick", 0.8, 0.001, 0.0)
    alone = np.array([1.0])
    both = [Load((slow, quick), alone, 0), Load((variant("other", 0.9, 0.010, 0.0),), alone, 0)]
    server = SimulatedTriton.shared(both, physics=CALM)
    server.advance(5.0)
    # Each had half of the device while both ran.
    assert server.latency_s() == pytest.approx([0.020, 0.020])
    assert server.requests_of(1) == slice(1, 2)
    assert server.switch(1)
    assert server.is_switching(0)
    assert not server.is_switching(1)
    server.advance(6.0)
    assert (server.serving_of(0), server.serving_of(1)) == (1, 2)
    assert (server.since_s_of(1), server.switches) == (0.0, 1)


def test_each_model_is_read_and_switched_through_one_port():
    shared = [
        model("a", 50.0, 0.1, variant("a1", 0.9, 0.004), variant("a2", 0.8, 0.001)),
        model("b", 20.0, 0.2, variant("b1", 0.9, 0.008), variant("b2", 0.7, 0.001)),
    ]
    server = SimulatedTriton.shared([one.load for one in shared], physics=CALM)
    policy = policy_of(shared)
    port = TwinPort(server, *policy.models)
    server.advance(2.0)
    seen = port.read()
    assert {name: one.serving for name, one in seen.models.items()} == {"a": "a2", "b": "b2"}
    assert seen.variants["a2"].completed_requests > seen.variants["b2"].completed_requests > 0
    assert seen.variants["a1"].completed_requests == 0
    server.advance(4.0)
    traced = {sample.alias for sample in port.read().request_samples}
    assert traced == {"a", "b"}


# -- heeding ------------------------------------------------------------------------------------


def test_what_runs_beside_a_variant_counts_into_what_is_predicted_of_it():
    shared = [
        model("a", 20.0, 0.1, variant("a1", 0.9, 0.010)),
        model("b", 60.0, 0.2, variant("b1", 0.9, 0.010)),
    ]
    told = {}
    for names in ("a", "ab"):
        some = [one for one in shared if one.name in names]
        server, core, port = governed(some)
        for tick in range(1, 200):
            server.advance(tick * 0.02)
            told[names] = core.step(port.read())[0].candidates[0]
    assert told["ab"].p50_s > 1.2 * told["a"].p50_s
    assert told["ab"].utilization_ratio > 1.2 * told["a"].utilization_ratio


def test_one_gives_way_where_another_could_not_meet_its_objective():
    # `urgent` is in time on its only variant, but not beside a device that `greedy` keeps busy; to
    # `greedy` alone its best variant looks fine.
    shared = [GREEDY, URGENT]
    settings = {"physics": REAL, "duration_s": 20.0, "seed": 1}
    unheeded = fixed(shared, [0, 0], **settings)
    assert unheeded.attainment[1] < 0.92
    result = govern(shared, policy_of(shared), **settings)
    assert result.attainment[0] > 0.99
    assert result.attainment[1] > 0.97
    assert result.together > unheeded.together + 0.02


def test_who_gives_way_says_so_and_goes_back_when_nobody_is_in_need():
    shared = [GREEDY, URGENT]
    calm = shared[1].load.arrivals_s[shared[1].load.arrivals_s < 8.0]
    shared[1] = Shared("urgent", Load(shared[1].load.variants, calm, 0, 0.06))
    server, core, port = governed(shared)
    reasons, last = [], None
    for tick in range(1, 900):
        server.advance(tick * 0.02)
        for decision in core.step(port.read()):
            port.act(decision)
            if decision.model == "greedy":
                last = decision
                reasons.append(decision.reason)
                if decision.reason is Reason.YIELDS:
                    assert "worth more to it" in explain_decision(
                        decision, policy_of(shared).models[0]
                    )
    assert Reason.YIELDS in reasons
    assert last is not None
    assert last.serving == "g1"


def _hopeless(limit_s: float) -> list[Shared]:
    """Return a model of 20 ms a batch, and one that would be in time on both of its variants."""
    return [
        model("hopeless", 5.0, limit_s, variant("h1", 0.9, 0.020)),
        model("fine", 40.0, 0.2, variant("b1", 0.95, 0.004), variant("b2", 0.90, 0.002)),
    ]


def test_nobody_gives_way_to_who_would_be_late_even_alone():
    result = govern(
        _hopeless(0.005), policy_of(_hopeless(0.005)), physics=REAL, duration_s=20.0, seed=1
    )
    assert result.effective_quality[1] > 0.945


def test_who_may_not_move_needs_nobody_to_give_way():
    shared = [GREEDY, URGENT]
    server, core, port = governed(shared)
    for tick in range(1, 400):
        server.advance(tick * 0.02)
        seen = port.read()
        paused = replace(seen.models["urgent"], paused=True)
        for decision in core.step(replace(seen, models={**seen.models, "urgent": paused})):
            port.act(decision)
            assert decision.reason is not Reason.YIELDS


def test_on_a_host_nobody_gives_way_as_idle_cores_may_take_what_runs_beside():
    shared = [GREEDY, URGENT]
    server, core, port = governed(shared)
    host = HostReading(cpu_ratio=1.0, cpu_count=4)
    for tick in range(1, 400):
        server.advance(tick * 0.02)
        for decision in core.step(replace(port.read(), gpus=(), host=host)):
            port.act(decision)
            assert decision.reason is not Reason.YIELDS


def test_the_weight_says_who_gives_way():
    def attainment(weight: float) -> float:
        # Both lose if they give way; the device does not suffice for both on their best.
        shared = [
            model(
                "a", 60.0, 0.4, variant("a1", 0.90, 0.030), variant("a2", 0.3, 0.004), weight=weight
            ),
            model("b", 40.0, 0.045, variant("b1", 0.5, 0.012)),
        ]
        found = govern(shared, policy_of(shared), physics=REAL, duration_s=20.0, seed=1)
        return float(found.attainment[1])

    assert attainment(0.01) > attainment(100.0) + 0.05


# -- devices ------------------------------------------------------------------------------------


def test_who_runs_on_another_gpu_is_in_nobodys_way():
    models = [("a1", "a2"), ("b1",), ("c1",)]
    gpus = {"a1": (0,), "a2": (1,), "b1": (1,), "c1": (0, 1)}
    placement = Placement(models, gpus)
    busy = placement.busy_beside({"a1": 0.5, "b1": 0.4, "c1": 0.2})
    # `c1` runs on each GPU for half of its time; of their own model nobody counts.
    assert busy.tolist() == pytest.approx([0.1, 0.5, 0.1, 0.45])
    work_s = placement.work_beside_s(np.array([1.0, 0.0, 2.0, 0.0]))
    assert work_s[:2].tolist() == pytest.approx([0.0, 2.0])
    assert placement.meeting(0).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    # In a tick without, and in one with a variant whose place nobody knows: it may be anywhere.
    assert list(placement.names) == ["a1", "a2", "b1", "c1"]
    others_s = placement.others_s(np.array([[0.1, 0.0, 0.4, 0.0, 0.0], [0.1, 0.0, 0.4, 0.0, 0.2]]))
    assert others_s[0].tolist() == pytest.approx([0.0, 0.4, 0.0, 0.25, 0.5])
    assert others_s[1].tolist() == pytest.approx([0.2, 0.6, 0.2, 0.45, 0.5])


def test_a_triton_model_of_two_models_counts_once_and_is_in_no_way_of_either():
    placement = Placement([("a", "x"), ("x", "b"), ("c",)], {})
    # The two take what waits on `x` for different, as their requests have different sizes.
    beside_s = placement.work_beside_s(np.array([0.0, 0.1, 0.8, 0.0, 0.5]))
    assert beside_s.tolist() == [0.5, 0.5, 0.5, 0.5, 0.8]


def test_another_placement_is_seen_and_its_prices_begin_anew():
    core = GovernorCore(policy_of(_hopeless(0.005)))
    seen = Observation(0.0, 0, {}, {}, 0.02, placement={"h1": (0,), "b1": (1,), "b2": (1,)})
    assert core._place(seen).devices == 2
    moved = replace(seen, placement={"h1": (0,), "b1": (0,), "b2": (0,)})
    assert core._place(moved).devices == 1


def test_where_one_place_is_not_known_all_share_one_device():
    placement = Placement([("a1",), ("b1",)], {"a1": (0,)})
    assert placement.devices == 1
    assert placement.busy_beside({"a1": 0.5, "b1": 0.4}).tolist() == [0.4, 0.5]


def test_a_device_has_a_price_where_somebody_on_it_is_in_need():
    placement = Placement([("a1", "a2"), ("b1",)], {"a1": (0,), "a2": (1,), "b1": (1,)})
    prices = DevicePrices([2.0, 1.0])
    assert prices.of(placement) == [None, None]
    prices.learn(placement, [(1, 10.0), None], 0.02)
    own, other = prices.of(placement)
    assert own is not None
    assert other is not None
    assert own[0] == 0.0
    assert own[1] == other[0] > 0.0


def test_models_on_two_gpus_do_as_well_as_each_alone():
    urgent = Load((variant("u1", 0.9, 0.012),), steady(40.0, 20.0, 5), 0, 0.045, gpus=(0,))
    greedy = Load(
        (variant("g1", 0.90, 0.030, 0.002), variant("g2", 0.88, 0.004)),
        steady(60.0, 20.0, 6), 1, 0.4, gpus=(1,),
    )  # fmt: skip
    shared = [Shared("urgent", urgent), Shared("greedy", greedy)]
    settings = {"duration_s": 20.0, "seed": 1}
    result = govern(shared, policy_of(shared), physics=Physics(gpus=2), **settings)
    alone = govern(shared[:1], policy_of(shared[:1]), physics=Physics(gpus=2), **settings)
    assert result.attainment[0] >= alone.attainment[0] - 0.005
    assert result.effective_quality[1] > 0.895


# -- the price ----------------------------------------------------------------------------------


def test_the_price_rises_to_what_is_needed_and_falls_to_nothing():
    price = DevicePrice()
    price.learn([0.0, 0.0], 0.02)
    assert price.per_s == 0.0
    for _ in range(100):
        price.learn([0.0, 50.0, 8.0], 0.02)
    assert price.per_s == 50.0
    price.learn([10.0], 0.02)
    assert price.per_s == 10.0
    prices = []
    for _ in range(5000):
        price.learn([0.0], 0.02)
        prices.append(price.per_s)
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] == 0.0
