"""A GPU that may not be warmer, or draw more, than the policy says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.planning.core import GovernorCore
from controller.planning.decision import Reason
from controller.planning.explain import explain_decision
from controller.planning.limits import GpuLimits, most_per_s
from controller.policy.load import PolicyError, parse_policy
from controller.policy.model import GpuPolicy
from controller.policy.render import policy_to_yaml
from controller.prediction.placement import Placement
from controller.telemetry.observation import GpuReading
from controller.twin.drive import profile_of
from controller.twin.ladder import TwinVariant
from controller.twin.load import Load
from controller.twin.many import Shared, policy_of
from controller.twin.port import TwinPort
from controller.twin.server import Physics, SimulatedTriton

AMBIENT_C, WARMS_C, LAGS_S = 40.0, 60.0, 15.0  # idle; more at full use; to settle
TICK_S = 0.05


def variant(name: str, quality: float, row_s: float) -> TwinVariant:
    return TwinVariant(name, quality, row_s * np.arange(1, 17) ** 0.9)


def shared(name: str, rate_rps: float, seconds: float, *variants: TwinVariant) -> Shared:
    rng = np.random.default_rng(sum(map(ord, name)))
    arrivals_s = np.sort(rng.uniform(0.0, seconds, rng.poisson(rate_rps * seconds)))
    return Shared(name, Load(variants, arrivals_s, len(variants) - 1, 0.2))


class Warm:
    """What a thermometer shows of a GPU that is so busy; whole degrees, as NVML tells them."""

    def __init__(self) -> None:
        self.celsius = AMBIENT_C

    def read(self, gpu: GpuReading, elapsed_s: float) -> GpuReading:
        goal = AMBIENT_C + WARMS_C * (gpu.utilization_ratio or 0.0)
        self.celsius += (goal - self.celsius) * (1.0 - np.exp(-elapsed_s / LAGS_S))
        return replace(gpu, temperature_celsius=float(round(self.celsius)))


def run(models: list[Shared], seconds: float, limits: GpuPolicy):
    """Return the temperature and what serves, tick by tick, the server, and every decision."""
    server = SimulatedTriton.shared([one.load for one in models], physics=Physics(noise=0.05))
    policy = replace(policy_of(models), gpu=limits)
    core = GovernorCore(policy)
    core.restore(profile_of(server, policy))
    port, warm = TwinPort(server, *policy.models), Warm()
    celsius, decisions, told = [], [], []
    for tick in range(1, round(seconds / TICK_S)):
        server.advance(tick * TICK_S)
        seen = port.read()
        gpu = warm.read(seen.gpus[0], seen.window_s)
        for decision in core.step(replace(seen, gpus=(gpu,))):
            port.act(decision)
            decisions.append(decision)
        celsius.append(warm.celsius)
        told.append(core.limits.exceeded)
    return np.array(celsius), decisions, server, told, policy


LADDER = (variant("best", 0.95, 0.008), variant("good", 0.90, 0.005), variant("fast", 0.80, 0.002))


def test_a_gpu_is_kept_at_its_temperature_and_the_requests_in_time():
    """At 80 a second the best variant takes 0.6 of the GPU: 76 degrees and more."""
    seconds = 180.0
    model = shared("one", 80.0, seconds, *LADDER)
    freely, _, server, told, _ = run([model], seconds, GpuPolicy())
    assert freely[-1000:].mean() > 74.0
    assert not any(told)
    free_quality = _quality(server, [model])
    limited, decisions, server, told, policy = run(
        [model], seconds, GpuPolicy(max_temperature_celsius=68.0)
    )
    settled = limited[len(limited) // 3 :]
    assert settled.max() < 70.0
    assert settled.mean() < 68.5
    assert any(told)
    assert "68 that it may be at" in next(filter(None, told))[0]
    assert server.latency_s()[: len(model.load.arrivals_s) - 50].max() < 0.2
    quality = _quality(server, [model])
    # All it may cost: the GPU could be busy so much that it is at 68 degrees.
    assert 0.80 < quality < free_quality
    assert quality > 0.86
    cooling = next(d for d in decisions if d.reason is Reason.COOLS and d.serving == d.target)
    text = explain_decision(cooling, policy.models[0])
    assert "temperature" in text


def test_of_several_models_that_gives_way_which_loses_the_least():
    seconds = 120.0
    dear = shared("dear", 40.0, seconds, variant("d1", 0.95, 0.006), variant("d2", 0.60, 0.002))
    cheap = shared("cheap", 40.0, seconds, variant("c1", 0.95, 0.006), variant("c2", 0.94, 0.002))
    celsius, decisions, *_ = run([dear, cheap], seconds, GpuPolicy(max_temperature_celsius=66.0))
    assert celsius[len(celsius) // 2 :].max() < 68.0
    late = decisions[len(decisions) // 2 :]
    on_best = {
        name: np.mean([d.serving == best for d in late if d.model == name])
        for name, best in (("dear", "d1"), ("cheap", "c1"))
    }
    assert on_best["dear"] > 0.9
    assert on_best["cheap"] < 0.7


def test_a_limit_that_nothing_keeps_is_said_to_be_exceeded_and_costs_no_request():
    seconds = 60.0
    model = shared("one", 80.0, seconds, *LADDER)
    celsius, decisions, server, told, _ = run(
        [model], seconds, GpuPolicy(max_temperature_celsius=41.0)
    )
    assert celsius[-1] > 42.0
    assert "models give way" in told[-1][0]
    assert {d.serving for d in decisions[-100:]} == {"fast"}
    assert server.latency_s()[: len(model.load.arrivals_s) - 50].max() < 0.2


def test_what_gave_way_comes_back_when_the_gpu_is_cool():
    limits = GpuLimits(GpuPolicy(max_power_watts=300.0))
    hot = [GpuReading(0, None, None, power_watts=330.0)]
    cool = [GpuReading(0, None, None, power_watts=200.0)]
    for _ in range(200):
        limits.learn(hot, 10.0, 0.1)
    assert limits.gives_way
    assert "330 W" in limits.exceeded[0]
    for _ in range(3000):
        limits.learn(cool, 10.0, 0.1)
    assert not limits.gives_way
    assert limits.exceeded == ()


def test_a_gpu_that_tells_nothing_any_more_holds_nobody_up():
    limits = GpuLimits(GpuPolicy(max_temperature_celsius=80.0))
    hot = [GpuReading(1, None, None, temperature_celsius=90.0)]
    for _ in range(100):
        limits.learn(hot, 10.0, 0.1)
    assert limits.gives_way
    for silent in ([], [GpuReading(1, None, None)]):
        for _ in range(2000):
            limits.learn(silent, 10.0, 0.1)
    assert not limits.gives_way
    assert limits.exceeded == ()
    for _ in range(100):
        limits.learn(hot, 10.0, 0.1)
    limits.set_policy(GpuPolicy(devices=(0,), max_temperature_celsius=80.0))
    assert not limits.gives_way


def test_two_variants_about_as_fast_make_no_price_of_their_difference():
    prediction = SimpleNamespace(
        known=[True, True, True],
        throughput_rows_s=[1000.0, 999.9, 500.0],
        forecast=SimpleNamespace(rows_per_request=1.0),
    )
    quality = [0.80, 0.90, 0.95]
    assert most_per_s(prediction, quality, [True] * 3) == pytest.approx(50.0, rel=0.01)
    assert most_per_s(prediction, quality, [True, False, True]) == pytest.approx(150.0)


@given(
    readings=st.lists(
        st.one_of(st.none(), st.floats(0.0, 200.0), st.just(float("nan"))), max_size=60
    ),
    most=st.floats(0.0, 1e6),
)
def test_whatever_is_read_the_price_is_between_nothing_and_the_most(readings, most):
    limits = GpuLimits(GpuPolicy(max_temperature_celsius=80.0))
    placement = Placement([("a", "b")], {"a": (0,), "b": (0, 1)})
    for celsius in readings:
        limits.learn([GpuReading(0, None, None, temperature_celsius=celsius)], most, 0.5)
        (price,) = limits.add_to([None], placement)
        if price is not None:
            assert np.isfinite(price).all()
            assert (price >= 0.0).all()
            assert price[0] <= most * (1.0 + 1e-9)
            assert price[1] == pytest.approx(price[0] / 2.0)  # half of its time is elsewhere


TEXT = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
gpu: {max_temperature: 80C, max_power: 1.2kW}
models:
  chat:
    objective: {latency: 60ms, percentile: 99}
    variants: {best: {model: best, quality: 0.95}}
"""


def test_a_policys_limits_are_read_and_told_as_they_are():
    policy = parse_policy(TEXT, "p.yaml")
    assert policy.gpu == GpuPolicy(max_temperature_celsius=80.0, max_power_watts=1200.0)
    again = parse_policy(policy_to_yaml(policy), "p.yaml")
    assert again.gpu == policy.gpu
    with pytest.raises(PolicyError, match=r"write 80C"):
        parse_policy(TEXT.replace("80C", "80"), "p.yaml")
    with pytest.raises(PolicyError, match="never sees"):
        parse_policy(TEXT.replace("gpu: {", "gpu: {source: none, "), "p.yaml")


def _quality(server: SimulatedTriton, models: list[Shared]) -> float:
    qualities = np.array([v.quality for one in models for v in one.load.variants])
    return float(qualities[server.served_by()].mean())
