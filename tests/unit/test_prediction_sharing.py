"""What a batch would have taken alone, from what ran beside it."""

import pytest

from controller.prediction.placement import Placement
from controller.prediction.service import ServiceTimes
from controller.prediction.sharing import DeviceSharing
from controller.telemetry.observation import BatchSample, HostReading, Observation, VariantReading

TICK_S = 0.02


def _ticks(sharing: DeviceSharing, busy_s: list[dict[str, float]]) -> float:
    """Show ticks in which models executed one batch each of so many seconds; return the time."""
    now_s = 0.0
    for busy in busy_s:
        now_s += TICK_S
        sharing.observe(
            Observation(
                now_s=now_s,
                sequence=0,
                models={},
                variants={
                    model: VariantReading(
                        model, True, 0, completed_requests=2, executions=1, compute_s=2.0 * took_s
                    )
                    for model, took_s in busy.items()
                },
                window_s=TICK_S,
                host=HostReading(),
            )
        )
    return now_s


def _alone(
    sharing: DeviceSharing,
    took_s: float,
    now_s: float,
    gpus: dict[str, tuple[int, ...]] | None = None,
) -> BatchSample:
    sample = BatchSample("probed", 4, 1, took_s, age_s=now_s / 2.0)
    placement = Placement([("probed",), ("serving",)], gpus or {})
    (alone,) = sharing.alone([sample], now_s, placement)
    return alone


def test_a_batch_that_had_the_device_to_itself_took_what_it_took():
    sharing = DeviceSharing()
    now_s = _ticks(sharing, [{"serving": 0.015}, {"probed": 0.01}, {"serving": 0.015}])
    alone = _alone(sharing, 0.01, now_s)
    assert (alone.mean_service_s, alone.shared_ratio) == (0.01, 0.0)


def test_a_batch_beside_one_that_was_always_active_would_have_taken_half():
    sharing = DeviceSharing()
    now_s = _ticks(sharing, [{"serving": TICK_S}, {"serving": TICK_S, "probed": TICK_S}])
    alone = _alone(sharing, TICK_S, now_s)
    assert alone.shared_ratio == pytest.approx(1.0)
    assert alone.mean_service_s == pytest.approx(TICK_S / 2.0)
    # On another GPU it is in nobody's way.
    elsewhere = {"probed": (0,), "serving": (1,)}
    assert _alone(sharing, TICK_S, now_s, elsewhere).mean_service_s == TICK_S


def test_what_surely_and_what_perhaps_overlapped_bound_the_correction():
    sharing = DeviceSharing()
    now_s = _ticks(sharing, [{"serving": 0.01, "probed": 0.01}])
    # They may have followed each other, or overlapped for a quarter of the tick by chance.
    assert _alone(sharing, 0.01, now_s).shared_ratio == pytest.approx(0.25)


def test_a_batch_longer_than_a_tick_ran_in_those_before_it_ended():
    sharing = DeviceSharing()
    now_s = _ticks(sharing, [{}, {"serving": TICK_S}, {"serving": TICK_S}, {"probed": 0.06}])
    assert _alone(sharing, 0.06, now_s).shared_ratio == pytest.approx(2.0 / 3.0)


def test_a_measurement_beside_others_counts_only_until_there_is_a_clean_one():
    def sample(seconds: float, shared_ratio: float) -> BatchSample:
        return BatchSample("v", 1, 1, seconds, 0.1, shared_ratio=shared_ratio)

    service = ServiceTimes(("v", "w"), 4)
    for step, seconds in enumerate((0.016, 0.018, 0.011)):
        service.observe([sample(seconds, 0.8)], step * 0.5)
    # The least disturbed of them counts most.
    assert service.table_s()[0, 0] < 0.0135
    for step in range(4, 12):
        service.observe([sample(0.010, 0.0), sample(0.030, 0.9)], step * 0.5)
    assert service.table_s()[0, 0] == pytest.approx(0.010, rel=0.06)
    assert service.drift_ratio == pytest.approx(1.0, rel=0.05)


class Counting(Placement):
    """Counts how often it is asked to add up who was busy where."""

    asked = 0

    def others_s(self, busy_s):
        self.asked += 1
        return super().others_s(busy_s)


def test_however_many_samples_there_are_ticks_are_added_up_once():
    """Of 36 busy variants on two GPUs this took a tick of 37 ms at every poll."""
    models = [f"m{i}" for i in range(12)]
    placement = Counting([(name,) for name in models], {m: (i % 2,) for i, m in enumerate(models)})
    sharing = DeviceSharing()
    now_s = _ticks(sharing, [dict.fromkeys(models, 0.001)] * 5)
    samples = [BatchSample(m, rows, 1, 0.001, now_s / 2.0) for m in models for rows in (1, 2, 4, 8)]
    for _ in range(2):
        alone = list(sharing.alone(samples, now_s, placement))
    assert placement.asked == 1
    # Five others on the same GPU, one after the other or by chance together.
    assert [one.shared_ratio for one in alone] == pytest.approx([0.125] * len(samples))
