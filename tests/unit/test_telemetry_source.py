"""The record of a source, and the rate at which requests are traced."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy.model import GpuPolicy, GpuSource
from controller.telemetry.gpu import GpuWatch
from controller.telemetry.sampling import is_fragile, next_rate
from controller.telemetry.source import Backoff, Ledger, ThreadSource, shorten


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_source_that_never_answered_is_down_and_has_no_age():
    ledger: Ledger[int] = Ledger("x", clock=Clock())
    health = ledger.health(100.0)
    assert (health.up, health.age_s, health.failures) == (False, None, 0)


def test_a_reading_ages_and_a_failure_keeps_it():
    clock = Clock()
    ledger: Ledger[int] = Ledger("x", clock=clock)
    ledger.succeed(7)
    clock.now_s = 103.0
    ledger.fail(OSError("gone"))
    health = ledger.health(104.0)
    assert (health.up, health.age_s, health.failures, health.error) == (False, 4.0, 1, "gone")
    assert ledger.reading == 7


def test_a_success_clears_the_error_and_keeps_the_count_of_failures():
    ledger: Ledger[int] = Ledger("x", clock=Clock())
    ledger.fail("broken")
    ledger.succeed(1)
    health = ledger.health(100.0)
    assert (health.up, health.failures, health.error) == (True, 1, None)
    assert ledger.retry_s is None


def test_silence_of_a_started_source_is_told_as_hanging():
    clock = Clock()
    ledger: Ledger[int] = Ledger("x", clock=clock, silent_s=2.0)
    ledger.begin()
    ledger.succeed(1)
    assert ledger.health(101.9).up
    health = ledger.health(103.0)
    assert not health.up
    assert "hangs" in (health.error or "")


def test_waits_double_and_end_at_the_longest():
    backoff = Backoff(0.5, 5.0)
    assert [backoff.delay_s(n) for n in range(7)] == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.delay_s(10_000) == 5.0


def test_an_error_is_one_line_of_bounded_length():
    assert shorten(ValueError("a\n b\n")) == "a b"
    assert shorten(ValueError()) == "ValueError"
    assert len(shorten("x" * 5000)) == 300


def test_a_source_that_hangs_does_not_hold_whoever_reads_or_stops_it():
    entered, leave = threading.Event(), threading.Event()

    def hang() -> int:
        entered.set()
        leave.wait()
        return 1

    clock = Clock()
    source = ThreadSource(Ledger("x", clock=clock, silent_s=2.0), hang, cadence_s=0.1)
    source.start()
    assert entered.wait(10.0)
    assert source.ledger.reading is None
    assert not source.ledger.health(103.0).up
    source.stop()
    leave.set()


def test_a_source_that_raises_anything_is_a_failure_and_goes_on():
    done = threading.Event()
    calls = iter([RuntimeError("once"), None])

    def sample() -> int:
        error = next(calls, None)
        if error is not None:
            raise error
        done.set()
        return 5

    ledger: Ledger[int] = Ledger("x", clock=Clock(), backoff=Backoff(0.001, 0.001))
    source = ThreadSource(ledger, sample, cadence_s=0.001)
    source.start()
    assert done.wait(10.0)
    source.stop()
    assert (ledger.reading, ledger.failures) == (5, 1)


def test_a_policy_without_gpus_is_up_and_says_none():
    watch = GpuWatch(GpuPolicy(GpuSource.NONE), clock=Clock())
    watch.start()
    health = watch.health(100.0)
    assert (health.up, health.detail) == (True, "gpu: none (as the policy says)")
    assert watch.readings(100.0, 2.0) == ()
    watch.stop()


def test_every_request_is_traced_while_there_are_few():
    assert next_rate(None, 0.0) == 1
    assert next_rate(None, 35.0) == 1


def test_the_rate_gives_about_the_target():
    assert next_rate(None, 4000.0) == 100
    assert next_rate(1, 4000.0) == 100


def test_the_rate_stays_while_it_is_within_a_factor_of_two():
    assert next_rate(100, 7900.0) == 100
    assert next_rate(100, 2100.0) == 100
    assert next_rate(100, 8100.0) != 100
    assert next_rate(100, 1900.0) != 100


@given(
    present=st.none() | st.integers(1, 10**6),
    requests_per_s=st.floats(0.0, 1e9),
    target_per_s=st.floats(0.1, 1000.0),
)
def test_traces_never_exceed_twice_the_target_and_the_rate_is_valid(
    present, requests_per_s, target_per_s
):
    rate = next_rate(present, requests_per_s, target_per_s)
    assert 1 <= rate <= 10**6
    # One in a million is the end of the scale: above it there is no bound to hold.
    if requests_per_s / target_per_s < 10**6:
        # Rounding to a whole N costs up to a half more at small N.
        assert requests_per_s / rate <= 2.5 * target_per_s
    assert next_rate(rate, requests_per_s, target_per_s) == rate


@pytest.mark.parametrize(
    ("version", "fragile"),
    [
        ("2.51.0", True),
        ("2.57.0", True),
        ("2.58.0", False),
        ("3.0", False),
        (None, True),
        ("?", True),
    ],
)
def test_servers_that_their_own_tracing_can_end_are_known_by_version(version, fragile):
    assert is_fragile(version) is fragile


def test_a_fragile_server_is_traced_little_even_when_it_is_quiet():
    assert next_rate(None, 5.0, 8.0, least=8) == 8
    assert next_rate(None, 800.0, 8.0, least=8) == 100
