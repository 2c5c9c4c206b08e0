"""Calibration by adaptive conformal inference."""

import math

import numpy as np
import pytest

from controller.prediction.calibration import ConformalCalibration, Outcome, factors


def _run(
    calibration: ConformalCalibration, scale: float, count: int, seed: int, start_s: float = 0.0
) -> float:
    """Feed requests whose model is off by `scale`; return the coverage of what was stated."""
    rng = np.random.default_rng(seed)
    covered = 0
    for i in range(count):
        latency_s = 0.010 * scale * math.exp(rng.normal(0.0, 0.3))
        stated_s = 0.020 * calibration.factor
        covered += latency_s <= stated_s
        calibration.observe([Outcome(latency_s, 0.020, stated_s)], start_s + i * 0.02)
        calibration.relax(start_s + i * 0.02)
    return covered / count


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_stated_quantile_covers_what_it_says_however_wrong_the_model_is(scale):
    calibration = ConformalCalibration(0.01)
    _run(calibration, scale, 2000, seed=1)
    assert _run(calibration, scale, 8000, seed=2, start_s=40.0) == pytest.approx(0.99, abs=0.005)


def test_it_stays_sharp():
    calibration = ConformalCalibration(0.01)
    _run(calibration, 0.6, 6000, seed=3)
    realised_s = 0.010 * 0.6 * math.exp(2.326 * 0.3)
    assert 0.020 * calibration.factor < 1.3 * realised_s


def test_coverage_holds_when_latencies_drift():
    calibration = ConformalCalibration(0.01)
    _run(calibration, 1.0, 4000, seed=4)
    assert _run(calibration, 1.3, 6000, seed=5, start_s=80.0) == pytest.approx(0.99, abs=0.006)


def test_state_survives_and_a_broken_one_is_refused():
    before = ConformalCalibration(0.01)
    _run(before, 2.0, 3000, seed=6)
    after = ConformalCalibration(0.01)
    after.restore(before.state())
    assert after.factor == pytest.approx(before.factor, rel=0.25)
    with pytest.raises((ValueError, KeyError, TypeError)):
        after.restore({"alpha": 7.0, "scores": []})


def test_a_variant_that_a_bad_moment_made_unusable_gets_another_chance():
    calibration = ConformalCalibration(0.01)
    _run(calibration, 6.0, 500, seed=7)
    assert calibration.factor > 2.0
    for second in range(10, 90):  # it is not used meanwhile
        calibration.relax(float(second))
    assert calibration.factor == pytest.approx(1.0, abs=0.05)


def test_one_straggler_does_not_rule_out_a_variant_whose_siblings_are_well_behaved():
    seldom, often = ConformalCalibration(0.01), ConformalCalibration(0.01)
    for one in (seldom, often):
        one.borrow_from((seldom, often))
    often.observe([Outcome(0.010, 0.010, 0.010)] * 250, 0.0)
    seldom.observe([Outcome(0.040, 0.010, 0.010)], 0.1)
    assert seldom.factor < 1.1


def test_a_variant_seen_little_is_as_careful_as_its_siblings_had_to_be():
    seldom, often = ConformalCalibration(0.01), ConformalCalibration(0.01)
    for one in (seldom, often):
        one.borrow_from((seldom, often))
    often.observe([Outcome(0.020, 0.010, 0.030)] * 250, 0.0)
    assert seldom.factor > 1.5


def test_pauses_of_the_host_on_short_requests_do_not_rule_out_longer_ones():
    offset, factor = (ConformalCalibration(0.01, offset_s) for offset_s in (0.015, 0.0))
    for calibration in (offset, factor):
        calibration.observe([Outcome(0.006, 0.003, 0.006)] * 300, 0.0)
    assert offset.stated_s(0.003) == pytest.approx(0.006, rel=0.06)
    assert offset.stated_s(0.020) < 0.030
    assert factor.stated_s(0.020) > 0.038


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_limit_is_where_the_statement_meets_it(scale):
    calibration = ConformalCalibration(0.01, 0.015)
    calibration.observe([Outcome(0.010 * scale, 0.010, 0.010)] * 300, 0.0)
    raw_s = calibration.raw_limit_s(0.060)
    assert calibration.stated_s(raw_s) == pytest.approx(0.060)
    statements = [calibration.stated_s(raw / 1000.0) for raw in range(100)]
    assert statements == sorted(statements)
    assert min(statements) >= 0.0


def test_scores_about_another_objective_are_not_taken_over():
    before, after = ConformalCalibration(0.01, 0.015), ConformalCalibration(0.01, 0.500)
    before.observe([Outcome(0.040, 0.010, 0.010)] * 300, 0.0)
    after.restore(before.state())
    assert after.factor == pytest.approx(1.0, abs=0.02)


def test_a_tick_with_many_requests_speaks_for_as_many():
    calibration = ConformalCalibration(0.01)
    calm = [Outcome(0.010, 0.010, 0.010)] * 290
    burst = [Outcome(0.020, 0.010, 0.010, requests=20)] * 10
    calibration.observe([*calm, *burst], 0.0)
    assert calibration.factor == pytest.approx(2.2, rel=0.02)  # single ones lie around the mean
    assert calibration.observed == 290  # the mean of many says nothing of one


def test_a_state_of_another_shape_is_refused():
    state = ConformalCalibration(0.01).state()
    for broken in ({**state, "scores": [0.1]}, {**state, "scores": [-1.0] * len(state["scores"])}):
        with pytest.raises(ValueError, match="weights of scores"):
            ConformalCalibration(0.01).restore(broken)


def test_what_teaches_nothing_is_still_counted_in_the_coverage():
    def taught(*, teaches: bool) -> ConformalCalibration:
        calibration = ConformalCalibration(0.01)
        calibration.observe([Outcome(0.08, 0.02, 0.02, teaches=teaches)] * 400, 0.0)
        return calibration

    assert taught(teaches=True).factor > 2.0
    assert taught(teaches=False).factor == pytest.approx(1.0, abs=0.02)
    assert taught(teaches=True).coverage == taught(teaches=False).coverage == 0.0


def test_factors_found_at_once_are_those_found_one_by_one():
    rng = np.random.default_rng(8)
    # Of one that is seen much, one a little, one that was always late, and one never.
    kinds = ((2000, 1.0), (40, 1.6), (400, 9.0), (0, 1.0))

    def family() -> list[ConformalCalibration]:
        own = [ConformalCalibration(0.01, 0.015) for _ in kinds]
        for calibration in own:
            calibration.borrow_from(own)
        return own

    def teach(own: list[ConformalCalibration]) -> None:
        for calibration, (count, scale) in zip(own, kinds, strict=True):
            for i in range(count):
                latency_s = 0.010 * scale * math.exp(rng.normal(0.0, 0.3))
                calibration.observe([Outcome(latency_s, 0.012, 0.015)], i * 0.02)

    families = [family() for _ in range(5)]
    for own in families:
        teach(own)
    everyone = [calibration for own in families for calibration in own]
    together = factors([*everyone, everyone[0]])
    for calibration in everyone:
        calibration.borrow_from(calibration._siblings)  # which has them found anew
    apart = [calibration.factor for calibration in everyone]
    assert together[:-1] == pytest.approx(apart, rel=1e-12)
    assert together[-1] == together[0]
    assert len({round(one, 3) for one in together}) > 3
    assert together[2] == pytest.approx(2.2)  # as high as it goes
    # Who was never seen takes his siblings' word.
    assert together[3] > 1.2
