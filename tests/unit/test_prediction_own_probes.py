"""Which of what Triton counts was no client's."""

import pytest

from controller.prediction.own_probes import OwnProbes
from controller.telemetry.observation import ProbeDone, VariantReading


def shown(model: str, requests: int, rows: int | None = None) -> dict[str, VariantReading]:
    rows = requests if rows is None else rows
    return {model: VariantReading(model, True, 0, completed_requests=requests, completed_rows=rows)}


PROOF = ProbeDone("m", 1, foreseen=False)


def test_a_request_that_proves_a_variant_is_no_clients():
    own = OwnProbes()
    own.answered(PROOF, 10.0)
    assert own.without(shown("m", 3), 10.0) == (2, 2)
    assert own.without(shown("m", 3), 10.02) == (3, 3)  # once


def test_whose_counters_came_first_is_taken_from_what_comes_next():
    own = OwnProbes()
    assert own.without(shown("m", 1), 10.0) == (1, 1)
    own.answered(PROOF, 10.02)
    assert own.without(shown("m", 0), 10.02) == (0, 0)
    assert own.without(shown("m", 2), 10.04) == (1, 1)


def test_a_proof_that_no_counter_ever_shows_takes_no_clients_request_away_for_long():
    own = OwnProbes()
    own.answered(PROOF, 10.0)
    assert own.without(shown("m", 1), 11.5) == (1, 1)


def test_as_many_proofs_as_a_start_needs_are_kept_apart():
    own = OwnProbes()
    for _ in range(20):
        own.answered(PROOF, 10.0)
    assert own.without(shown("m", 25), 10.1) == (5, 5)


@pytest.mark.parametrize("foreseen", [True, False])
def test_only_a_probe_that_was_asked_for_disturbs_what_is_learned_of_latencies(foreseen):
    own = OwnProbes()
    if foreseen:
        own.sent("m", 1, 9.9)
    own.answered(ProbeDone("m", 1, foreseen=foreseen), 10.0)
    assert ("m" in own.last_s) is foreseen
