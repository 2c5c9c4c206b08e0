"""A host that stands still for a moment: what it must not teach, and not decide."""

from dataclasses import replace

import pytest
from taught_core import SERVERS, observation, taught

from controller.planning.core import GovernorCore
from controller.planning.decision import Decision
from controller.telemetry.observation import ModelReading, Observation, VariantReading

TICK_S = 0.02
STALL_S = 0.3
MEAN_S = 0.006  # a request, while all is well


def _shown(
    now_s: float, completed: int, *, mean_s: float = MEAN_S, window_s: float = TICK_S
) -> Observation:
    """Return a tick in which the middle variant served."""
    served = dict.fromkeys(SERVERS, 0) | {"m_mid": completed}
    variants = {
        k: VariantReading(
            k,
            ready=True,
            pending_requests=0,
            completed_requests=n,
            completed_rows=n,
            executions=n,
            compute_s=n * mean_s,
        )
        for k, n in served.items()
    }
    models = {"m": ModelReading("m", "m_mid", 0.0, ready=True)}
    return observation(now_s, variants=variants, models=models, window_s=window_s)


def _busy(core: GovernorCore, from_s: float, seconds: float) -> list[Decision]:
    """Have 600 requests a second arrive, which the largest variant cannot serve."""
    ticks = round(seconds / TICK_S)
    return [core.step(_shown(from_s + i * TICK_S, 12))[0] for i in range(1, ticks + 1)]


def _stalled(core: GovernorCore, now_s: float) -> Decision:
    """Show few requests, each of which waited for the host."""
    return core.step(_shown(now_s + STALL_S, 4, mean_s=STALL_S, window_s=STALL_S))[0]


def test_few_arrivals_in_a_stall_are_no_reason_for_a_slower_variant():
    core = taught()
    before = _busy(core, 5.0, 2.0)[-1]
    decision = _stalled(core, 7.0)
    assert decision.target != "big"
    assert decision.rate_rps == pytest.approx(before.rate_rps)


def test_what_was_late_to_be_seen_is_counted_with_the_stall():
    core = taught()
    _busy(core, 5.0, 2.0)
    _stalled(core, 7.0)
    after = core.step(_shown(7.0 + STALL_S + TICK_S, 188))[0]
    assert after.rate_rps == pytest.approx(600.0, rel=0.1)


def test_a_stall_does_not_have_a_variant_look_slow_afterwards():
    def factor(*, stall: bool) -> float:
        core = taught()
        _busy(core, 5.0, 2.0)
        if stall:
            _stalled(core, 7.0)
            core.step(_shown(7.0 + STALL_S + TICK_S, 188))  # what was late to be seen
        _busy(core, 7.0 + STALL_S + TICK_S, 0.5)
        return core.calibration("m")[1]["m_mid"]

    assert factor(stall=True) == pytest.approx(factor(stall=False), rel=0.05)


def test_requests_that_are_as_late_without_a_stall_do():
    core = taught()
    _busy(core, 5.0, 2.0)
    before = core.calibration("m")[1]["m_mid"]
    for tick in range(15):
        core.step(_shown(7.0 + (tick + 1) * TICK_S, 12, mean_s=0.1))
    assert core.calibration("m")[1]["m_mid"] > 1.2 * before


def test_readings_that_stay_slow_are_no_stall():
    core = taught()
    _busy(core, 5.0, 2.0)
    decisions = [
        core.step(replace(_shown(7.0 + i * 0.2, 20), window_s=0.2))[0] for i in range(1, 200)
    ]
    assert decisions[-1].rate_rps == pytest.approx(100.0, rel=0.2)
    assert decisions[-1].target == "big"
