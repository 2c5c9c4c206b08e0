"""Which of what Triton counts was no client's."""

import pytest

from controller.prediction.own_probes import OwnProbes
from controller.telemetry.observation import ProbeDone, VariantReading


def shown(model: str, requests: int, rows: int | None = None) -> list[VariantReading]:
    rows = requests if rows is None else rows
    return [VariantReading(model, True, 0, completed_requests=requests, completed_rows=rows)]


def test_a_request_that_proves_a_variant_is_no_clients():
    own = OwnProbes()
    own.proof("m", 10.0)
    assert own.without(shown("m", 3), 10.0) == (2, 2)
    assert own.shown == {"m": 1}
    assert own.without(shown("m", 3), 10.02) == (3, 3)  # once
    assert own.shown == {}


def test_it_waits_for_the_counters_as_long_as_an_answer_may_take():
    own = OwnProbes()
    own.proof("m", 10.0)
    assert own.without(shown("m", 0), 12.0) == (0, 0)
    assert own.without(shown("m", 1), 14.0) == (0, 0)


def test_a_proof_that_no_counter_ever_shows_takes_no_clients_request_away_for_long():
    own = OwnProbes()
    own.proof("m", 10.0)
    assert own.without(shown("m", 1), 21.0) == (1, 1)


def test_as_many_proofs_as_a_start_needs_are_kept_apart():
    own = OwnProbes()
    for _ in range(20):
        own.proof("m", 10.0)
    assert own.without(shown("m", 25), 10.1) == (5, 5)


def test_two_proofs_of_a_variant_are_not_taken_from_one_request_of_it():
    own = OwnProbes()
    own.proof("m", 10.0)
    own.proof("m", 10.0)
    assert own.without(shown("m", 1) + shown("other", 5), 10.0) == (5, 5)
    assert own.without(shown("m", 1), 10.02) == (0, 0)


@pytest.mark.parametrize("foreseen", [True, False])
def test_only_a_probe_that_was_asked_for_disturbs_what_is_learned_of_latencies(foreseen):
    own = OwnProbes()
    if foreseen:
        own.sent("m", 1, 9.9)
        own.answered(ProbeDone("m", 1), 10.0)
    else:
        own.proof("m", 10.0)
    assert ("m" in own.last_s) is foreseen
