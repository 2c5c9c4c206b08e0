"""GPUs that are told apart: one that is lost, one that comes back, one that is slow."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from taught_core import SERVERS, observation, taught

from controller.planning.decision import Excluded, Reason
from controller.planning.devices import DeviceWatch
from controller.planning.explain import explain_decision
from controller.policy.model import (
    GpuPolicy,
    GpuSource,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.prediction.placement import Placement
from controller.prediction.service import ServiceTimes
from controller.telemetry.cards import Cards
from controller.telemetry.hub import Telemetry
from controller.telemetry.observation import BatchSample, GpuReading, ModelReading

POLICY = Policy(
    TritonPolicy("127.0.0.1:1", None, None),
    (ModelPolicy("m", Objective(0.1, 99.0), (VariantPolicy("v", "v", 0.9),)),),
)

WELL = GpuReading(0, "GPU-0", None)
GONE = replace(WELL, error="NVML: GPU is lost", lost=True)


# -- which can be relied on --------------------------------------------------------------------


def test_a_gpu_that_is_lost_is_used_again_after_it_was_well_for_a_while():
    watch = DeviceWatch()
    assert watch.look([WELL], 0.0) == frozenset()
    assert watch.look([GONE], 10.0) == {0}
    assert watch.look([WELL], 11.0) == {0}
    assert watch.look([WELL], 39.0) == {0}
    assert watch.look([WELL], 41.0) == frozenset()


def test_one_that_is_lost_again_and_again_is_left_alone_for_ever_longer():
    watch, now_s, waits = DeviceWatch(), 0.0, []
    for _ in range(7):
        watch.look([GONE], now_s)
        began_s = now_s
        while watch.look([WELL], now_s):
            now_s += 5.0
        waits.append(now_s - began_s)
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert max(waits) == 900.0
    watch.look([WELL], now_s + 4000.0)
    watch.look([GONE], now_s + 4001.0)
    assert watch.look([WELL], now_s + 4032.0) == frozenset()


def test_a_driver_that_tells_nothing_changes_nothing():
    watch = DeviceWatch()
    watch.look([GONE], 0.0)
    assert watch.look([], 500.0) == {0}
    assert watch.look([replace(WELL, error="NVML: Unknown Error")], 501.0) == {0}
    healthy = DeviceWatch()
    healthy.look([WELL], 0.0)
    assert healthy.look([replace(WELL, error="NVML: Unknown Error")], 1.0) == frozenset()


def test_a_gpu_that_nobody_watches_any_more_is_not_lost_for_ever():
    watch = DeviceWatch()
    watch.look([GONE], 0.0)
    watch.keep(None)
    assert watch.look([], 1.0) == {0}
    watch.keep(replace(GpuPolicy(), devices=(0, 1)).watched)
    assert watch.look([], 1.0) == {0}
    watch.keep(replace(GpuPolicy(), source=GpuSource.NONE).watched)
    assert watch.look([], 1.0) == frozenset()


# -- which is which ------------------------------------------------------------------------------


def cards(*uuids: str) -> list[GpuReading]:
    return [GpuReading(at, uuid, f"card {uuid}") for at, uuid in enumerate(uuids)]


def test_when_one_is_not_there_any_more_the_others_keep_their_numbers():
    known = Cards()
    assert [gpu.index for gpu in known.told(cards("a", "b", "c", "d"))] == [0, 1, 2, 3]
    left = known.told(cards("a", "c", "d"))  # NVML counts those that are there
    assert [(gpu.index, gpu.uuid, gpu.lost) for gpu in left] == [
        (0, "a", False),
        (1, "b", True),
        (2, "c", False),
        (3, "d", False),
    ]
    assert "not any more" in str(left[1].error)
    back = known.told(cards("a", "b", "c", "d"))
    assert [(gpu.index, gpu.lost) for gpu in back] == [(at, False) for at in range(4)]


def test_only_what_is_watched_is_told_whatever_is_found_where_one_was():
    known = Cards()
    known.told(cards("a", "b"), (0, 1))
    left = known.told(cards("a", "c"), (0, 1))  # the third of them, which nobody asked for
    assert [(gpu.index, gpu.lost) for gpu in left] == [(0, False), (1, True)]
    assert [gpu.index for gpu in known.told(cards("a"), (0,))] == [0]


async def test_which_is_which_is_known_over_another_policy(monkeypatch):
    given = []
    monkeypatch.setattr(
        "controller.telemetry.gpu.NvmlSampler",
        lambda _policy, *, cards, **_: given.append(cards) or SimpleNamespace(close=None),
    )
    hub = Telemetry(POLICY)
    hub._build(replace(POLICY, gpu=replace(POLICY.gpu, max_temperature_celsius=80.0)))
    assert len(given) == 2
    assert given[0] is given[1] is not None


def test_one_that_tells_no_uuid_is_where_nobody_else_is():
    known = Cards()
    known.told(cards("a", "b"))
    sick = GpuReading(1, None, None, error="NVML: GPU is lost", lost=True)
    assert known.told([*cards("a"), sick]) == (*cards("a"), sick)
    assert Cards().told([sick]) == (sick,)


# -- leaving it -----------------------------------------------------------------------------------


def place(**gpus: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"m_{name}": on for name, on in gpus.items()}


def looking(placement, *lost: int, serving: str = "m_big", **more):
    gpus = tuple(
        GpuReading(gpu, f"GPU-{gpu}", None, lost=gpu in lost, error="lost" if gpu in lost else None)
        for gpu in range(3)
    )
    models = {"m": ModelReading("m", serving, 0.0, ready=True)}
    return observation(5.0, placement=placement, gpus=gpus, models=models, **more)


def test_the_alias_leaves_a_gpu_that_is_lost_at_once_even_for_a_slower_variant():
    names = [name.removeprefix("m_") for name in SERVERS]
    # `tiny` serves, and everything faster than it that is left is nothing: a slower one it is.
    others = {name: (1,) for name in names if name != "tiny"}
    core = taught()
    decision = core.step(looking(place(tiny=(0,), **others), 0, serving="m_tiny"))[0]
    assert core.lost == {0}
    assert decision.target not in (None, "tiny")
    assert decision.reason is Reason.ESCAPE
    assert decision.urgent
    gone = {c.variant: c.excluded for c in decision.candidates}
    assert gone["tiny"] is Excluded.GPU_LOST
    text = explain_decision(decision, core._policy.models[0])
    assert "at once: tiny has instances on a GPU that is lost" in text


def test_damping_does_not_hold_it_there():
    core = taught()
    others = {name.removeprefix("m_"): (1,) for name in SERVERS if name != "m_tiny"}
    placement = place(tiny=(0,), **others)
    core.step(looking(placement, serving="m_big"))
    core._minds["m"]._damper.moved(5.0, upgrade=True)  # the last switch is this young
    decision = core.step(replace(looking(placement, 0, serving="m_tiny"), now_s=5.01))[0]
    assert decision.reason is Reason.ESCAPE


def test_what_is_on_another_gpu_is_chosen_as_ever():
    everywhere = place(**{name.removeprefix("m_"): (1,) for name in SERVERS})
    assert taught().step(looking(everywhere, 0))[0].reason is Reason.STEADY
    assert taught().step(looking({}, 0))[0].reason is Reason.STEADY  # nobody knows where


def test_half_of_its_instances_is_better_than_none():
    half = place(**{name.removeprefix("m_"): (0,) for name in SERVERS}) | place(mid=(0, 1))
    decision = taught().step(looking(half, 0))[0]
    assert (decision.target, decision.reason) == ("mid", Reason.ESCAPE)
    whole = half | place(tiny=(1,))
    assert taught().step(looking(whole, 0))[0].target == "tiny"


def test_where_everything_is_lost_nothing_is_done():
    all_lost = place(**{name.removeprefix("m_"): (0,) for name in SERVERS})
    decision = taught().step(looking(all_lost, 0))[0]
    assert decision.reason is Reason.NO_CHOICE
    assert not decision.changes


# -- how fast each is -----------------------------------------------------------------------------

MODELS = ("a", "b", "c")


def learn(service: ServiceTimes, seconds: float, start_s: float, **factor: float) -> float:
    rng = np.random.default_rng(3)
    now_s = start_s
    while now_s < start_s + seconds:
        now_s += 0.1
        noise = float(np.exp(rng.normal(0.0, 0.05)))
        service.observe(
            [BatchSample(m, 4, 1, 0.01 * f * noise, 0.1) for m, f in factor.items()], now_s
        )
    return now_s


def placed(service: ServiceTimes, *models: tuple[str, ...], **gpus: tuple[int, ...]) -> None:
    placement = Placement(models or [(m,) for m in MODELS], gpus)
    shares = placement.shares_of(service.models)
    service.place(placement.device_ids, shares, known=placement.known)


def test_a_slow_gpu_slows_no_prediction_for_another():
    service = ServiceTimes(MODELS, 8)
    placed(service, a=(0,), b=(1,), c=(0,))
    now_s = learn(service, 20.0, 0.0, a=1.0, b=1.0, c=1.0)
    before_s = service.table_s()[:, 3].copy()
    learn(service, 2.0, now_s, a=1.6, b=1.0)
    after_s = service.table_s()[:, 3]
    assert after_s[0] > 1.4 * before_s[0]
    assert after_s[2] > 1.4 * before_s[2]  # idle, and on the slow one
    assert after_s[1] == pytest.approx(before_s[1], rel=0.05)
    assert service.drift_ratio_of("b") == pytest.approx(1.0, abs=0.05)
    assert service.drift_ratio_of("c") > 1.4
    assert service.device_ratios[0] > 1.4 > service.device_ratios[1]
    assert service.learned_row_s()[0] == pytest.approx(service.learned_row_s()[1], rel=0.1)


def test_where_nobody_knows_the_places_it_is_one_machine():
    service = ServiceTimes(MODELS, 8)
    placed(service, a=(0,), b=(1,))  # of `c` nothing is known
    now_s = learn(service, 20.0, 0.0, a=1.0, b=1.0, c=1.0)
    learn(service, 2.0, now_s, a=1.6)
    assert service.drift_ratio_of("b") == service.drift_ratio_of("a") > 1.4


def test_what_is_known_of_a_gpu_stays_when_another_is_used():
    service = ServiceTimes(MODELS, 8)
    placed(service, a=(0,), b=(1,), c=(1,))
    now_s = learn(service, 20.0, 0.0, a=1.0, b=1.0, c=1.0)
    learn(service, 2.0, now_s, a=1.6, b=1.0)
    before = service.device_ratios
    placed(service, a=(0,), b=(1,), c=(2,))
    assert service.device_ratios == {**before, 2: 1.0}


def test_a_variant_that_was_moved_is_learned_anew_and_is_no_drift_of_where_it_came_to():
    service = ServiceTimes(MODELS, 8)
    placed(service, a=(0,), b=(1,), c=(1,))
    now_s = learn(service, 20.0, 0.0, a=1.0, b=1.0, c=1.0)
    placed(service, a=(1,), b=(1,), c=(1,))
    learn(service, 3.0, now_s, a=0.5, b=1.0)  # GPU 1 is twice as fast for it
    assert service.drift_ratio_of("b") == pytest.approx(1.0, abs=0.1)
    assert service.table_s()[0, 3] == pytest.approx(0.005, rel=0.25)


def test_a_variant_on_two_gpus_is_as_slow_as_they_are_in_the_mean():
    service = ServiceTimes(MODELS, 8)
    placed(service, a=(0,), b=(1,), c=(0, 1))
    now_s = learn(service, 20.0, 0.0, a=1.0, b=1.0, c=1.0)
    learn(service, 3.0, now_s, a=2.0, b=1.0)
    slow, well = service.device_ratios[0], service.device_ratios[1]
    assert service.drift_ratio_of("c") == pytest.approx((slow * well) ** 0.5)
