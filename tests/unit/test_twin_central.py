"""Rivals that decide batch by batch, each with a property that its source claims."""

import numpy as np
import pytest

from controller.twin.central import Waiting, drive_dispatcher
from controller.twin.ladder import TwinVariant
from controller.twin.rivals import Setting
from controller.twin.rivals.clipper import Clipper
from controller.twin.rivals.model_switching import bears_rps
from controller.twin.rivals.ramsis import Ramsis
from controller.twin.rivals.slackfit import SlackFit
from controller.twin.server import Physics

ROWS = np.arange(1, 17)
VARIANTS = (
    TwinVariant("large", 0.95, 0.0060 + 0.0040 * ROWS),
    TwinVariant("middle", 0.92, 0.0030 + 0.0015 * ROWS),
    TwinVariant("little", 0.85, 0.0010 + 0.0004 * ROWS),
)
LIMIT_S = 0.150
SETTING = Setting(VARIANTS, LIMIT_S, 0.01)


class _All:
    """Takes all that wait on one variant."""

    def choose(self, waiting):
        return 1, waiting.count

    def ended(self, variant, rows, took_s):
        pass


class _Nothing(_All):
    def choose(self, waiting):
        return 1, 0


def test_batches_follow_each_other_and_take_what_waits():
    arrivals_s = np.array([0.0, 0.001, 0.002, 1.0])
    outcome = drive_dispatcher(_All(), VARIANTS, arrivals_s, physics=Physics(noise=0.0), seed=1)
    # 4.5 ms alone; then two together in 6 ms; then one alone.
    assert outcome.latency_s == pytest.approx([0.0045, 0.0095, 0.0085, 0.0045])
    assert outcome.served_by.tolist() == [1, 1, 1, 1]
    assert outcome.switches == 0


def test_a_dispatcher_that_takes_nothing_is_refused():
    with pytest.raises(ValueError, match="a batch of 0 of 1 requests"):
        drive_dispatcher(_Nothing(), VARIANTS, np.array([0.0]), physics=Physics(), seed=1)


def test_slackfit_never_takes_what_does_not_fit_the_slack_and_more_of_it_buys_larger_batches():
    policy = SlackFit(SETTING)
    took_s = []
    for waited_s in np.linspace(0.0, LIMIT_S - 0.006, 60):
        variant, rows = policy.choose(Waiting(waited_s, 64, 0.0, 64))
        took_s.append(VARIANTS[variant].service_s(rows))
        assert took_s[-1] <= LIMIT_S - waited_s + 1e-9
    assert took_s == sorted(took_s, reverse=True)
    assert took_s[0] > 5 * took_s[-1]


def test_slackfit_takes_as_many_as_it_can_when_it_is_late():
    variant, rows = SlackFit(SETTING).choose(Waiting(10.0, 64, 0.0, 64))
    assert VARIANTS[variant].name == "little"
    assert rows > 8


def test_clipper_grows_by_one_and_shrinks_by_a_tenth():
    policy = Clipper(SETTING, variant=0)
    for size in range(1, 12):
        assert policy.choose(Waiting(0.0, 64, 0.0, 64)) == (0, size)
        policy.ended(0, size, LIMIT_S / 2)
    policy.ended(0, 12, LIMIT_S * 1.1)
    assert policy.largest == pytest.approx(10.8)
    policy.ended(0, 3, LIMIT_S / 2)  # a batch that was not full says nothing
    assert policy.largest == pytest.approx(10.8)


def test_ramsis_gets_more_quality_from_a_steady_load_than_any_variant_that_bears_it():
    # Its claim: a table by queue and slack uses the lulls that one by load alone cannot.
    bears = [bears_rps(v.table_s.tobytes(), LIMIT_S, 0.01) for v in VARIANTS]
    rate_rps = 1.05 * bears[0]  # a little too much for the best
    rng = np.random.default_rng(5)
    arrivals_s = np.sort(rng.uniform(0.0, 60.0, rng.poisson(60.0 * rate_rps)))
    outcome = drive_dispatcher(
        Ramsis(SETTING), VARIANTS, arrivals_s, physics=Physics(noise=0.05), seed=1
    )
    met = outcome.latency_s <= LIMIT_S
    quality = np.array([v.quality for v in VARIANTS])[outcome.served_by]
    assert met.mean() > 0.99
    assert (quality * met).mean() > VARIANTS[1].quality


def test_ramsis_hurries_when_more_wait_and_nobody_can_be_helped():
    policy = Ramsis(SETTING)
    qualities = [VARIANTS[policy.look_up(12, n, LIMIT_S)[0]].quality for n in (1, 4, 16)]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] > qualities[-1]
    calm, busy = (VARIANTS[policy.look_up(level, 2, LIMIT_S)[0]].quality for level in (0, 19))
    assert calm > busy
    assert policy.look_up(12, 4, -1.0)[0] == 2
    assert policy.look_up(12, 100, LIMIT_S)[1] == 16
