"""What the journal tells of the past: who served when, and what advice would have come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.journal.advice import advice
from controller.journal.reader import JournalReader
from controller.journal.records import ActionRow, DecisionRow, EventRow, Stamp
from controller.journal.served import Certainty, served_at
from controller.journal.store import Store
from controller.planning.decision import Candidate, Decision, Excluded, Reason
from controller.ports import ActionRecord, Outcome

BOOT = 1_000_000.0  # the Unix time at which the monotonic clock was 0
OBJECTIVE_S = 0.06


def candidate(variant: str, *, miss: float = 0.0, p99_s: float = 0.01, **given) -> Candidate:
    quality = {"good": 0.9, "fast": 0.8, "new": 0.95}[variant]
    return Candidate(
        variant=variant,
        model=f"m_{variant}",
        quality=quality,
        excluded=given.get("excluded"),
        known=given.get("known", True),
        service_s=0.01,
        utilization_ratio=0.5,
        p50_s=0.01,
        p99_s=p99_s,
        told_p99_s=p99_s,
        miss_ratio=miss,
        value=quality,
        feasible=miss < 0.01,
    )


def decided(
    at_s: float,
    serving: str | None,
    desired: str | None = None,
    candidates: tuple[Candidate, ...] = (candidate("good"), candidate("fast")),
    *,
    advised: bool = True,
    rate_rps: float = 100.0,
) -> DecisionRow:
    decision = Decision(
        now_s=at_s,
        sequence=1,
        model="m",
        serving=serving,
        desired=desired or serving,
        target=desired or serving,
        reason=Reason.STEADY,
        candidates=candidates,
        rate_rps=rate_rps,
        rate_p95_rps=rate_rps,
        rows_per_request=1.0,
        backlog_requests=0,
        backlog_s=0.0,
        drift_ratio=1.0,
        advised=advised,
        objective_s=OBJECTIVE_S,
    )
    return DecisionRow(Stamp(BOOT + at_s, at_s), decision)


def switched(
    ended_s: float,
    source: str | None,
    target: str,
    *,
    took_s: float | None = 0.1,
    outcome: Outcome = Outcome.DONE,
    kind: str = "switch",
    reason: str = "escape",
) -> ActionRow:
    record = ActionRecord(
        kind, "m", source, target, outcome, ended_s - (took_s or 0.1), 0.002, took_s, reason
    )
    return ActionRow(Stamp(BOOT + ended_s, record.started_s), record)


@pytest.fixture
def journal(tmp_path: Path):
    """Return a function that writes rows and opens what was written."""
    opened: list[JournalReader] = []

    def write(*rows) -> JournalReader:
        store = Store(tmp_path / "journal.sqlite3", 1 << 24)
        store.open()
        ordered = sorted(rows, key=lambda row: row.stamp.time_unix_s)
        assert store.write(ordered, {}, BOOT) == 0
        store.close()
        opened.append(JournalReader(tmp_path / "journal.sqlite3"))
        return opened[-1]

    yield write
    for reader in opened:
        reader.__exit__(None, None, None)


def every_second(first: int, last: int, serving: str) -> list[DecisionRow]:
    return [decided(float(at), serving) for at in range(first, last + 1)]


def served(reader: JournalReader, at_s: float) -> tuple[Certainty, tuple[str, ...]]:
    found = served_at(reader, "m", BOOT + at_s)
    return found.certainty, found.models


def test_between_two_decisions_it_is_certain(journal):
    reader = journal(*every_second(0, 5, "good"))
    assert served(reader, 2.5) == (Certainty.CERTAIN, ("m_good",))
    assert served(reader, 5.9) == (Certainty.CERTAIN, ("m_good",))  # the newest


def test_in_the_window_of_a_switch_it_is_one_or_the_other(journal):
    rows = [
        *every_second(0, 5, "good"),
        switched(5.6, "m_good", "m_fast"),
        *every_second(6, 9, "fast"),
    ]
    reader = journal(*rows)
    assert served(reader, 5.45) == (Certainty.CERTAIN, ("m_good",))
    assert served(reader, 5.55) == (Certainty.SWITCHING, ("m_good", "m_fast"))
    assert served(reader, 5.65) == (Certainty.CERTAIN, ("m_fast",))
    window = served_at(reader, "m", BOOT + 5.55)
    assert (window.from_unix_s, window.to_unix_s) == (
        pytest.approx(BOOT + 5.5),
        pytest.approx(BOOT + 5.6),
    )


def test_a_switch_whose_proof_was_cut_short_begins_by_the_other_clock(journal):
    rows = [
        *every_second(0, 5, "good"),
        switched(5.6, "m_good", "m_fast", took_s=None),
        *every_second(6, 9, "fast"),
    ]
    assert served(journal(*rows), 5.55) == (Certainty.SWITCHING, ("m_good", "m_fast"))


def test_what_was_put_back_may_have_served_for_a_moment(journal):
    rows = [
        *every_second(0, 5, "good"),
        switched(5.6, "m_good", "m_fast", outcome=Outcome.ROLLED_BACK),
        *every_second(6, 9, "good"),
    ]
    reader = journal(*rows)
    assert served(reader, 5.55)[0] is Certainty.SWITCHING
    assert served(reader, 5.8) == (Certainty.CERTAIN, ("m_good",))


def test_while_nobody_looked_it_is_only_probable(journal):
    reader = journal(*every_second(0, 5, "good"), *every_second(100, 105, "good"))
    assert served(reader, 50.0) == (Certainty.UNWATCHED, ("m_good",))
    assert served(reader, 500.0) == (Certainty.UNWATCHED, ("m_good",))
    assert served(reader, -50.0) == (Certainty.UNKNOWN, ())


def test_what_changed_while_nobody_looked_leaves_both(journal):
    reader = journal(*every_second(0, 5, "good"), *every_second(100, 105, "fast"))
    assert served(reader, 50.0) == (Certainty.SWITCHING, ("m_good", "m_fast"))


def test_a_foreign_change_happened_a_little_before_it_was_seen(journal):
    rows = [
        *every_second(0, 5, "good"),
        switched(
            5.6, "m_good", "m_fast", took_s=0.0, kind="adopt", reason="foreign change: by ada"
        ),
        *every_second(6, 9, "fast"),
    ]
    assert served(journal(*rows), 5.2)[0] is Certainty.SWITCHING


def test_what_was_done_to_a_variant_says_nothing_of_the_alias(journal):
    rows = [
        *every_second(0, 9, "good"),
        switched(5.6, None, "m_fast", kind="load"),
        switched(5.7, None, "m_fast", kind="adopt", reason="foreign change: it was unloaded"),
        switched(5.8, "m_good", "m_fast", outcome=Outcome.REFUSED),
    ]
    assert served(journal(*rows), 5.75) == (Certainty.CERTAIN, ("m_good",))


def test_advice_adds_up_what_decisions_said(journal):
    late = (candidate("good", miss=0.5, p99_s=0.5), candidate("fast"))
    rows = [decided(float(at), "good") for at in range(10)]
    rows += [decided(float(at), "good", "fast", late) for at in range(10, 20)]
    rows += [decided(float(at), "good") for at in range(20, 31)]
    (found,) = advice(journal(*rows), BOOT, BOOT + 30.0)
    assert found["watched_s"] == pytest.approx(30.0)
    assert found["acted_ratio"] == 0.0
    assert found["expected_requests"] == pytest.approx(3000.0)
    share = {v["variant"]: (v["served_ratio"], v["chosen_ratio"]) for v in found["variants"]}
    assert share["good"] == (1.0, pytest.approx(2 / 3, abs=1e-5))
    assert share["fast"] == (0.0, pytest.approx(1 / 3, abs=1e-5))
    # A third of the requests: half of them late on what served, none on what was advised.
    assert found["as_served"]["predicted_attainment"] == pytest.approx(1 - 1 / 6, abs=1e-5)
    assert found["as_served"]["predicted_effective_quality"] == pytest.approx(0.9 * 5 / 6, abs=1e-5)
    assert found["as_chosen"]["predicted_attainment"] == 1.0
    assert found["as_chosen"]["predicted_effective_quality"] == pytest.approx(
        0.8 / 3 + 0.6, abs=1e-5
    )
    assert found["as_served"]["told_within_objective_ratio"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["as_served"]["told_p99_ms"] == {"p50": 10.0, "p95": 500.0}
    assert found["would_switch"] == 2
    assert found["objective_ms"] == 60.0


def test_a_gap_is_not_watched_and_what_was_acted_on_is_told(journal):
    rows = [decided(float(at), "good", advised=at < 5) for at in range(10)]
    rows += [decided(100.0, "good", advised=False)]
    (found,) = advice(journal(*rows), BOOT, BOOT + 200.0)
    assert found["watched_s"] == pytest.approx(9.0 + 2.5 + 1.0)
    assert found["acted_ratio"] == pytest.approx((4.0 + 2.5 + 1.0) / 12.5)


def test_variants_that_were_no_choice_are_told_apart(journal):
    three = (
        candidate("good"),
        candidate("fast", known=False),
        candidate("new", excluded=Excluded.UNUSABLE),
    )
    rows = [decided(float(at), "good", None, three) for at in range(10)]
    (found,) = advice(journal(*rows), BOOT, BOOT + 9.0)
    told = {v["variant"]: v for v in found["variants"]}
    assert told["fast"]["not_measured_ratio"] == pytest.approx(1.0)
    assert told["new"]["excluded_ratio"] == {"unusable": pytest.approx(1.0)}
    assert told["good"]["not_measured_ratio"] == 0.0


def test_measured_outcomes_stand_beside_the_predicted_ones(journal):
    scores = [
        EventRow(
            Stamp(BOOT + at, at),
            "score",
            None,
            "the last minute's requests",
            {"m": {"requests": count, "attainment": met, "effective_quality": quality}},
        )
        for at, count, met, quality in (
            (3.0, 300, 1.0, 0.9),
            (6.0, 100, 0.6, 0.54),
            (8.0, 5, None, None),
        )
    ]
    (found,) = advice(journal(*every_second(0, 9, "good"), *scores), BOOT, BOOT + 9.0)
    assert found["measured"] == {
        "traced_requests": 400,
        "attainment": pytest.approx(0.9),
        "effective_quality": pytest.approx(0.81),
    }


def test_a_model_that_nobody_served_is_left_out(journal):
    assert advice(journal(decided(0.0, None), decided(1.0, None)), BOOT, BOOT + 9.0) == []
