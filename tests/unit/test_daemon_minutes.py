"""The recorder of minutes: what it sums of ticks, and that minutes come to the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.daemon.minutes import Minutes, ModelRecorder
from controller.journal.minutes import MachineMinute, ModelMinute, quantile_s
from controller.planning.decision import Candidate, Decision, Reason
from controller.policy.model import ModelPolicy, Objective, Policy, TritonPolicy, VariantPolicy
from controller.prediction.predictor import Tally
from controller.telemetry.observation import (
    Dispatched,
    GpuReading,
    HostReading,
    ModelReading,
    Observation,
    RequestSample,
    VariantReading,
)

WIDE = VariantPolicy("wide", "digits_wide", 0.9)
SLIM = VariantPolicy("slim", "digits_slim", 0.6)
DIGITS = ModelPolicy("digits", Objective(0.100, 99.0), (WIDE, SLIM))
POLICY = Policy(TritonPolicy("127.0.0.1:8001", None, None), (DIGITS,))


class Stand:
    """Everything that a recorder of minutes talks to, and the ticks that it sees."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.tallies = {"digits": Tally(), "words": Tally()}
        self.switch_counts: Counter[str] = Counter()
        self.failure_counts: Counter[str] = Counter()
        self.rows: list[tuple[int, str | None, Any]] = []
        self.unix_s = 6000.0
        self.now_s = 100.0
        self.minutes = Minutes(self, self, self, lambda: self.unix_s)  # type: ignore[arg-type]

    def tally(self, model: str) -> Tally:
        return self.tallies[model]

    def minute(self, begins_unix_s: int, model: str | None, minute: Any) -> None:
        self.rows.append((begins_unix_s, model, minute))

    def tick(
        self,
        *latencies_s: float,
        completed: int = 0,
        probes: int = 0,
        failed: int = 0,
        serving: str | None = "wide",
        told_s: float = 0.08,
        kept: int = 0,
        queue: int = 0,
        step_s: float = 0.1,
        up: bool = True,
    ) -> None:
        self.unix_s += step_s
        self.now_s += step_s
        before = self.tallies["digits"]
        self.tallies["digits"] = Tally(
            before.arrived + completed,
            before.completed + completed,
            before.told + len(latencies_s),
            before.kept + kept,
        )
        model = "digits_slim" if serving == "slim" else "digits_wide"
        reading = VariantReading(
            model,
            True,
            queue,
            completed_requests=completed + probes,
            failed_requests=failed,
            queue_s=0.01 * (completed + probes),
            compute_s=0.02 * (completed + probes),
        )
        candidate = Candidate(
            "wide", "digits_wide", 0.9, None, True, 0.01, 0.5, 0.02, 0.07, told_s, 0.0, 0.9, True
        )
        decision = Decision(
            self.now_s,
            0,
            "digits",
            serving,
            serving,
            serving,
            Reason.STEADY,
            (candidate, candidate._replace(variant="slim")),
            *[1.0] * 3,
            queue,
            0.0,
            1.0,
        )
        observation = Observation(
            now_s=self.now_s,
            sequence=0,
            models={},
            variants={model: reading},
            window_s=step_s,
            gpus=(GpuReading(0, None, None, utilization_ratio=0.5, temperature_celsius=60.0),),
            host=HostReading(cpu_ratio=0.25),
            request_samples=tuple(
                RequestSample("digits", model, self.now_s - s, s) for s in latencies_s
            ),
        )
        governed = [model.name for model in self.policy.models]
        decisions = [decision] if "digits" in governed else []
        self.minutes.tick(observation, decisions, self.policy, took_s=0.002, triton_up=up)

    def of_model(self) -> list[ModelMinute]:
        return [row for _, model, row in self.rows if model == "digits"]

    def whole(self) -> ModelMinute:
        total = ModelMinute()
        for minute in self.of_model():
            total.add(minute)
        return total


def test_a_minute_has_what_its_ticks_saw() -> None:
    stand = Stand()
    stand.tick()
    for _ in range(99):
        stand.tick(0.05, completed=10, kept=1, queue=3)
    for _ in range(100):
        stand.tick(0.2, completed=10, serving="slim", queue=1)
    stand.switch_counts["digits"] = 4
    stand.minutes.close()
    (begins, name, minute), (_, nobody, machine) = stand.rows
    assert (begins, name, nobody) == (6000, "digits", None)
    assert minute.completed == 1990
    assert minute.arrived == 1990
    assert (minute.in_time, minute.late) == (99, 100)
    assert minute.known + minute.unknown == 1990
    assert minute.known_late == pytest.approx(1000, abs=11)
    assert minute.known_quality == pytest.approx(990 * 0.9, abs=10)
    assert minute.allowed == pytest.approx(19.9)
    assert minute.quality == pytest.approx(990 * 0.9 + 1000 * 0.6)
    assert minute.variants["wide"] == pytest.approx([9.9, 990])
    assert minute.variants["slim"] == pytest.approx([10.0, 1000])
    assert minute.reasons == {"steady": pytest.approx(19.9)}
    assert minute.queue_s == pytest.approx(19.9)
    assert minute.told_s / minute.told_of == pytest.approx(0.08)
    assert (minute.singles, minute.singles_kept, minute.switches) == (199, 99, 4)
    assert minute.waiting_most == 3
    assert minute.peak_rps == pytest.approx(100.0, rel=0.1)
    assert quantile_s(minute.latencies, 0.25) == pytest.approx(0.05, rel=0.1)
    assert quantile_s(minute.latencies, 0.99) == pytest.approx(0.2, rel=0.1)
    assert machine.seconds == pytest.approx(19.9)
    assert machine.triton_s == machine.seconds
    assert machine.ticks == 200
    assert machine.host_s == pytest.approx(machine.seconds / 4)
    assert machine.gpus["0"] == pytest.approx([19.9, 9.95, 0.0, 0.0, 60.0])


def test_a_traced_request_speaks_for_its_own_second_not_for_the_burst_beside() -> None:
    stand = Stand()
    stand.tick()
    for _ in range(300):  # half a minute, traced ten times a second as the burst is
        stand.tick(0.05, completed=1)
    for _ in range(30):
        stand.tick(0.2, completed=100)
    stand.minutes.close()
    whole = stand.whole()
    assert whole.late / (whole.in_time + whole.late) == pytest.approx(0.09, abs=0.01)
    assert whole.known_late / whole.known == pytest.approx(3000 / 3300, abs=0.01)


def test_without_traces_nothing_is_known_of_latency_but_means() -> None:
    stand = Stand()
    for _ in range(700):
        stand.tick(completed=5)
    stand.minutes.close()
    whole = stand.whole()
    assert (whole.known, whole.known_late, whole.allowed, whole.latencies) == (0, 0, 0, {})
    assert whole.unknown == whole.completed == 3500
    assert whole.compute_s == pytest.approx(0.02 * 3500)


def test_traces_that_come_a_moment_later_than_the_counters_are_of_the_same_requests() -> None:
    stand = Stand()
    stand.tick()
    for _ in range(30):  # a request every two seconds, its trace 0.3 s later
        stand.tick(completed=1)
        stand.tick()
        stand.tick()
        stand.tick(0.05)
        for _ in range(16):
            stand.tick()
    stand.minutes.close()
    whole = stand.whole()
    assert (whole.known, whole.unknown, whole.known_late) == (30, 0, 0)


def test_failed_requests_are_misses_where_the_rest_is_known() -> None:
    stand = Stand()
    stand.tick()
    for _ in range(20):
        stand.tick(0.05, completed=9, failed=1)
    for _ in range(20):  # everything fails: this is known without any trace
        stand.tick(failed=1)
    stand.minutes.close()
    whole = stand.whole()
    assert (whole.failed, whole.known_failed) == (40, 40)
    assert whole.known == 180


def test_probes_of_ours_are_nobodys_requests() -> None:
    stand = Stand()
    for _ in range(20):
        stand.tick(completed=3, probes=1)
        stand.tick(probes=2)
    stand.minutes.close()
    whole = stand.whole()
    assert whole.completed == 60
    assert whole.variants["wide"][1] == pytest.approx(60)
    assert whole.compute_s == pytest.approx(1.2)


def test_time_in_which_nobody_watched_is_not_counted() -> None:
    stand = Stand()
    stand.tick()
    stand.tick(step_s=30.0)  # the machine slept
    stand.tick(up=False)
    stand.minutes.close()
    machine = next(row for _, _, row in stand.rows if isinstance(row, MachineMinute))
    assert machine.seconds == pytest.approx(5.1)
    assert machine.triton_s == pytest.approx(5.0)
    assert stand.whole().variants["wide"][0] == pytest.approx(5.0)


def test_minutes_begin_with_the_clock_on_the_wall_and_the_last_is_a_part() -> None:
    stand = Stand()
    for _ in range(1300):
        stand.tick(completed=1)
    stand.minutes.close()
    begins = [begins for begins, model, _ in stand.rows if model == "digits"]
    assert begins == [6000, 6060, 6120]
    assert stand.of_model()[-1].seconds == pytest.approx(10.0, abs=0.2)
    rows = len(stand.rows)
    stand.minutes.close()  # a second time: nothing is told twice
    assert len(stand.rows) == rows


def test_a_model_that_leaves_the_policy_leaves_its_minute_and_one_that_comes_begins() -> None:
    stand = Stand()
    for _ in range(30):
        stand.tick(completed=1)
    stand.policy = replace(POLICY, models=(replace(DIGITS, name="words"),))
    stand.tick(completed=1)
    stand.minutes.close()
    assert stand.whole().completed == 30
    assert [model for _, model, _ in stand.rows] == ["digits", None]  # "words" has no decision yet


def test_a_model_that_was_away_between_two_ticks_is_counted_from_there_on() -> None:
    stand = Stand()
    for _ in range(20):
        stand.tick(completed=5)
    stand.tallies["digits"] = Tally()
    stand.tick(completed=2)
    stand.minutes.close()
    assert stand.whole().completed == 102


def test_a_new_objective_goes_on_counting() -> None:
    stand = Stand()
    for _ in range(20):
        stand.tick(0.05, completed=1, kept=1)
    tighter = replace(DIGITS, objective=Objective(0.040, 95.0))
    stand.policy = replace(POLICY, models=(tighter,))
    before = stand.tallies["digits"]
    stand.tallies["digits"] = before._replace(told=0, kept=0)  # a new promise counts anew
    for _ in range(21):
        stand.tick(0.05, completed=1)
    stand.minutes.close()
    whole = stand.whole()
    assert (whole.latency_s, whole.percentile) == (0.040, 95.0)
    assert (whole.in_time, whole.late) == (20, 21)
    assert (whole.singles, whole.singles_kept) == (41, 20)


ticks = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.01, 0.09, 0.3]), max_size=2),
        st.integers(0, 5),
        st.integers(0, 1),
    ),
    max_size=120,
)


@given(ticks, st.sets(st.integers(0, 119), max_size=4))
def test_however_time_is_cut_into_minutes_they_come_to_the_whole(seen: Any, cuts: set[int]) -> None:
    """Also where a stratum begins in one minute and ends in the next."""
    one, many = Stand(), Stand()
    for index, (latencies, completed, failed) in enumerate(seen):
        for stand in (one, many):
            stand.tick(*latencies, completed=completed, failed=failed, step_s=0.25)
        one.unix_s = 6000.0
        many.unix_s = 6000.0 + 60.0 * sum(cut <= index for cut in cuts)
    for stand in (one, many):
        stand.minutes.close()
    whole, summed = one.whole(), many.whole()
    for name in ("completed", "failed", "in_time", "late", "singles", "waiting_most"):
        assert getattr(whole, name) == getattr(summed, name)
    for name in ("seconds", "known", "known_late", "known_quality", "unknown", "allowed"):
        assert getattr(whole, name) == pytest.approx(getattr(summed, name))
    assert whole.latencies == pytest.approx(summed.latencies)
    assert whole.known >= sum(len(latencies) for latencies, _, _ in seen)
    assert whole.known + whole.unknown >= whole.completed


def test_batches_of_a_dispatcher_are_as_many_requests_as_they_had_rows():
    """Each is one request to a variant, and of traced ones only the dispatcher is known."""
    one = ModelRecorder(DIGITS, 100.0)
    variants = {
        "digits_wide": VariantReading(
            "digits_wide", True, 0, 2, 10, executions=2, queue_s=0.002, compute_s=0.06
        ),
        "digits_slim": VariantReading(
            "digits_slim", True, 0, 1, 5, executions=1, queue_s=0.001, compute_s=0.01
        ),
    }
    late = Dispatched(
        "late", healthy=True, arrived_requests=30, arrived_rows=30, failed_requests=2, quality=0.8
    )
    observation = Observation(
        now_s=100.1,
        sequence=0,
        models={"digits": ModelReading("digits", "late", 0.0, ready=True)},
        variants=variants,
        window_s=0.1,
        dispatched={"digits": late},
    )
    decision = Decision(
        100.1,
        0,
        "digits",
        "dispatcher",
        "dispatcher",
        "dispatcher",
        Reason.LATE_BINDING,
        (),
        *[1.0] * 3,
        0,
        0.0,
        1.0,
    )
    samples = [RequestSample("digits", "late", 100.0, 0.05), RequestSample("digits", "x", 100.0, 1)]
    one.tick(observation, decision, Tally(30.0, 30), samples, seconds=0.1, triton_up=True)
    minute = one.cut(101.5, 0, 0, last=True)
    assert minute.completed == 30
    assert minute.failed == 2
    served = {name: counts[1] for name, counts in minute.variants.items()}
    assert served == {"dispatcher": 0.0, "wide": pytest.approx(20.0), "slim": pytest.approx(10.0)}
    assert minute.quality == pytest.approx(20 * 0.9 + 10 * 0.6)
    assert minute.compute_s == pytest.approx(20 * 0.03 + 10 * 0.01)
    assert (minute.in_time, minute.late) == (1, 0)
    assert minute.known_quality == pytest.approx(30 * 0.8)
