"""How much batches are in each other's way is learned from those that ran together."""

import numpy as np
import pytest

from controller.prediction.overlap import AT_FIRST, Overlap
from controller.prediction.placement import Placement
from controller.prediction.sharing import DeviceSharing
from controller.telemetry.observation import BatchSample, Instances, Observation, VariantReading

ALONE_S = 0.02
TICK_S = 0.05
PLACEMENT = Placement([("best", "fast")], {})


def watched(overlap: Overlap, *, slope: float, number: int, slow: float = 1.0, seed: int = 0):
    """Let it watch a minute of two variants, of which one has several instances.

    In each tick some batches of each are in execution, evenly over the tick.
    """
    random, sharing = np.random.default_rng(seed), DeviceSharing()
    instances = {"best": Instances(number, 1)}
    for tick in range(1200):
        own = float(random.uniform(0.0, number))  # batches of the best at a time
        other = float(random.uniform(0.0, 0.6))
        now_s = tick * TICK_S
        # What a batch sees beside it where all come at random moments.
        beside = own * (number - 1) / number + other
        took_s = ALONE_S * slow * (1.0 + slope * beside) * random.lognormal(0.0, 0.05)
        batches = max(round(own * TICK_S / took_s), 1)
        readings = {
            "best": VariantReading(
                "best", True, 0, batches, batches, batches, 0, 0.0, own * TICK_S
            ),
            "fast": VariantReading("fast", True, 0, 1, 1, 1, 0, 0.0, other * TICK_S),
        }
        observation = Observation(
            now_s, tick, {}, readings, TICK_S, batch_samples=(), instances=instances
        )
        sharing.observe(observation)
        sample = BatchSample("best", 1, batches, took_s, TICK_S / 2.0)
        overlap.learn([sample], now_s, sharing, PLACEMENT, instances, lambda *_: ALONE_S)
    return sample, now_s, sharing, instances


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("slow", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("slope", [0.0, 0.33, 1.0])
def test_it_is_found_whatever_the_machine_does(slope, slow, number):
    overlap = Overlap()
    watched(overlap, slope=slope, number=number, slow=slow)
    # What overlaps within a tick is known within bounds alone, which draws it to less.
    assert 0.55 * slope - 0.05 < overlap.of("best") < 1.25 * slope + 0.2
    # Of a variant that was never seen: what the others do.
    assert overlap.of("new") == pytest.approx(overlap.of("best"), abs=0.15)


def test_nothing_known_is_worth_a_trial_and_one_instance_alone_teaches_nothing():
    overlap = Overlap()
    assert overlap.of("best") == AT_FIRST
    sample = BatchSample("best", 1, 20, ALONE_S, 0.01)
    for tick in range(100):
        overlap.learn([sample], tick, DeviceSharing(), PLACEMENT, {}, lambda *_: ALONE_S)
    assert overlap.of("best") == pytest.approx(AT_FIRST, abs=0.01)


@pytest.mark.parametrize("slow", [0.4, 0.7, 1.5, 3.0])
def test_a_machine_that_is_slower_or_faster_as_a_whole_tells_nothing_of_overlaps(slow):
    """Instances of a throttled one seemed to be in nobody's way, of a faster one to be so."""
    overlap = Overlap()
    sample = BatchSample("best", 1, 20, slow * ALONE_S, 0.01)
    for tick in range(100):
        overlap.learn([sample], tick, DeviceSharing(), PLACEMENT, {}, lambda *_: ALONE_S)
    assert overlap.of("best") == pytest.approx(AT_FIRST, abs=0.08)
    assert overlap.of("new") == pytest.approx(AT_FIRST, abs=0.08)


def test_times_are_corrected_for_own_instances_alone():
    overlap = Overlap()
    sample, now_s, sharing, instances = watched(overlap, slope=1.0, number=2)
    (alone,) = overlap.alone([sample], now_s, sharing, instances)
    assert alone.mean_service_s < sample.mean_service_s
    assert 0.0 < alone.siblings_ratio < 0.6
    other = BatchSample("fast", 1, 1, 0.01, 0.01)
    assert list(overlap.alone([other], now_s, sharing, instances)) == [other]


def test_first_runs_probes_and_nonsense_teach_nothing():
    overlap = Overlap()
    for sample in (
        BatchSample("best", 1, 9, 0.06, 0.01, after_action=True),
        BatchSample("best", 1, 9, 0.06, 0.01, probe=True),
        BatchSample("best", 1, 9, 60.0, 0.01),
    ):
        overlap.learn([sample], 1.0, DeviceSharing(), PLACEMENT, {}, lambda *_: ALONE_S)
    assert overlap.state() == Overlap().state()


def test_what_was_learned_survives_and_what_cannot_be_is_refused():
    overlap, again = Overlap(), Overlap()
    watched(overlap, slope=0.33, number=2)
    again.restore(overlap.state())
    assert again.of("best") == overlap.of("best")
    sums = overlap.state()["all"]
    for bad in ([*sums[:4]], [*sums[:4], float("nan")], [1.0, 9.0, 1.0, 1.0, 1.0], ["x"] * 5):
        with pytest.raises((ValueError, TypeError)):
            again.restore({"all": bad, "variants": {}})
        with pytest.raises((ValueError, TypeError)):
            again.restore({"all": sums, "variants": {"best": bad}})
    assert again.of("best") == overlap.of("best"), "nothing was changed"
