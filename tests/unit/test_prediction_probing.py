"""Which synthetic requests are sent when."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.policy.model import (
    DispatcherPolicy,
    ModelPolicy,
    Objective,
    Policy,
    ProbingPolicy,
    TritonPolicy,
    VariantPolicy,
)
from controller.prediction.probing import Probe, ProbePlan
from controller.telemetry.observation import (
    Dispatched,
    HostReading,
    ModelReading,
    Observation,
    VariantReading,
)

NAMES = ("fast", "slow")
POLICY = Policy(
    triton=TritonPolicy("127.0.0.1:8001", None, None),
    models=(
        ModelPolicy(
            "m",
            Objective(0.1, 99.0),
            tuple(VariantPolicy(name, name, 0.9) for name in NAMES),
            client_max_batch=8,
        ),
    ),
)
LATE = replace(
    POLICY, models=(replace(POLICY.models[0], dispatcher=DispatcherPolicy("late", "/key")),)
)
TABLE_S = np.array([[0.001], [0.006]]) * np.arange(1.0, 9.0)


class Bench:
    """A plan that is asked every 20 ms; what it asks for is measured at once."""

    def __init__(
        self,
        *,
        enabled: bool = True,
        policy: Policy = POLICY,
        known: bool = False,
        table_s: NDArray[np.float64] = TABLE_S,
        silent: set[str] | None = None,
    ) -> None:
        self.silent = silent or set()
        self.table_s = table_s
        self.policy = policy
        self.plan = ProbePlan(ProbingPolicy(enabled=enabled))
        self.samples = np.zeros((2, 8))
        self.samples[:, 0] = 2.0 if known else 0.0
        self.tick = 0

    def run(
        self,
        ticks: int,
        *,
        pending: int,
        work_s: float,
        loading: bool = False,
        handed_over: int = 0,
    ) -> list[Probe]:
        found: list[Probe] = []
        for _ in range(ticks):
            self.tick += 1
            now_s = self.tick * 0.02
            observation = Observation(
                now_s=now_s,
                sequence=self.tick,
                models={"m": ModelReading("m", "fast", 0.0, ready=True)},
                variants={
                    name: VariantReading(name, ready=True, pending_requests=pending)
                    for name in NAMES
                },
                window_s=0.02,
                readings_age_s=0.001,
                host=HostReading(cpu_count=2),
                operations={"other": "load"} if loading else {},
                dispatched={"m": Dispatched("late", healthy=True, arrived_requests=handed_over)},
            )
            asked = self.plan.next(
                observation, self.policy, self.samples, NAMES, self.table_s, work_s
            )
            for probe in asked:
                row = NAMES.index(probe.model)
                self.samples[row, probe.rows - 1] += probe.model not in self.silent
                self.plan.spent(self.table_s[row, probe.rows - 1], now_s)
            found.extend(asked)
        return found


def test_every_size_of_every_variant_is_asked_once_before_any_is_asked_again():
    asked = Bench().run(3000, pending=0, work_s=0.0)
    every = {Probe(name, rows) for name in NAMES for rows in (1, 3, 8)}
    rounds = [asked[at : at + len(every)] for at in range(0, len(asked), len(every))]
    assert len(rounds) == 3
    assert all(set(one) == every for one in rounds)
    # One row of every variant before any larger batch.
    assert [[probe.rows for probe in one] for one in rounds] == [[1, 1, 3, 3, 8, 8]] * 3


def test_beside_a_load_every_size_is_asked_once_and_the_others_after_it():
    bench = Bench()
    every = {Probe(name, rows) for name in NAMES for rows in (1, 3, 8)}
    beside = bench.run(1500, pending=0, work_s=0.0, loading=True)
    assert len(beside) == len(every)
    assert set(beside) == every
    after = bench.run(3000, pending=0, work_s=0.0)
    assert len(after) == 2 * len(every)
    assert set(after) == every


def test_it_waits_for_an_idle_moment():
    bench = Bench(known=True)
    assert bench.run(9, pending=0, work_s=0.0) == []
    assert bench.run(1, pending=1, work_s=0.0) == []  # starts the waiting anew
    assert bench.run(9, pending=0, work_s=0.0) == []
    assert bench.run(3, pending=0, work_s=0.0) != []


def test_a_dispatcher_that_is_handed_requests_is_busy_though_none_waits():
    longer = 2.0 * TABLE_S  # 36 ms for three rows of `slow`: they would be in each other's way
    calm = Bench(known=True, table_s=longer).run(3000, pending=0, work_s=0.0)
    assert Probe("slow", 3) in calm
    bench = Bench(known=True, table_s=longer)
    assert Probe("slow", 3) not in bench.run(3000, pending=0, work_s=0.0, handed_over=1)
    assert Probe("slow", 3) in bench.run(3000, pending=0, work_s=0.0)


def test_it_is_done_for_now_where_all_that_is_wanted_has_to_wait_for_calm():
    bench = Bench(known=True, table_s=2.0 * TABLE_S)
    bench.run(1000, pending=1, work_s=0.0)
    assert not bench.plan.is_done(bench.tick * 0.02), "a moment may come soon"
    bench.run(2000, pending=1, work_s=0.0)
    assert bench.plan.is_done(bench.tick * 0.02)
    assert bench.run(60, pending=0, work_s=0.0) != []


def test_where_no_idle_moment_comes_little_waiting_will_do():
    bench = Bench(known=True)
    assert bench.run(49, pending=1, work_s=0.005) == []
    asked = bench.run(3000, pending=1, work_s=0.005)
    assert Probe("slow", 1) in asked
    assert Probe("slow", 3) in asked  # 18 ms of an objective of 100
    assert Probe("slow", 8) not in asked  # 48 ms


def test_a_variant_that_nobody_has_measured_is_asked_soon_and_again_on_a_busy_service():
    """A dispatcher cannot use it before two batches of it were measured, however long it takes."""
    slow = 6.0 * TABLE_S  # 36 ms for a row of `slow`: more than a quarter of the objective
    asked = Bench(table_s=slow, policy=LATE).run(400, pending=1, work_s=0.005)
    assert asked.count(Probe("slow", 1)) == 2
    assert asked.count(Probe("fast", 1)) >= 2
    assert Probe("slow", 3) not in asked
    assert Bench(table_s=slow, policy=LATE).run(7, pending=1, work_s=0.005) != []
    assert Bench(table_s=slow, policy=LATE, known=True).run(49, pending=1, work_s=0.005) == []


def test_without_a_dispatcher_a_stranger_is_asked_once_and_after_a_second():
    slow = 6.0 * TABLE_S
    assert Bench(table_s=slow).run(49, pending=1, work_s=0.005) == []
    asked = Bench(table_s=slow).run(400, pending=1, work_s=0.005)
    assert asked.count(Probe("slow", 1)) == 1


def test_a_batch_that_is_expected_to_take_over_half_the_objective_is_halved_until_it_does_not():
    asked = Bench(table_s=2.0 * TABLE_S).run(9000, pending=0, work_s=0.0)
    sizes = {name: {probe.rows for probe in asked if probe.model == name} for name in NAMES}
    assert sizes == {"fast": {1, 3, 8}, "slow": {1, 3, 4}}  # 12 ms a row: 36 and 48 of 100 ms
    slower = Bench(table_s=10.0 * TABLE_S).run(9000, pending=0, work_s=0.0)
    assert {probe.rows for probe in slower if probe.model == "slow"} == {1}


def test_a_variant_that_was_once_too_slow_for_its_objective_is_left_until_it_is_idle():
    slow = 20.0 * TABLE_S  # 120 ms for a row of `slow`
    bench = Bench(policy=LATE, table_s=slow)
    assert bench.run(500, pending=1, work_s=0.005).count(Probe("slow", 1)) == 1
    assert Probe("slow", 1) in bench.run(5000, pending=0, work_s=0.0)


def test_variants_that_answer_no_probe_do_not_keep_the_others_from_theirs():
    bench = Bench(policy=LATE, silent={"slow"})
    asked = bench.run(3000, pending=1, work_s=0.005)
    assert {probe.rows for probe in asked if probe.model == "fast"} == {1, 3, 8}
    assert sum(probe.model == "slow" for probe in asked) < 60, "one a second, as ever"


def test_where_the_operator_wants_no_batch_of_one_the_smallest_is_asked():
    bench = Bench(policy=LATE, table_s=6.0 * TABLE_S)
    bench.plan = ProbePlan(ProbingPolicy(batches=(2, 8)))
    asked = bench.run(300, pending=1, work_s=0.005)
    assert asked.count(Probe("slow", 2)) == 2
    assert Probe("slow", 8) not in asked


def test_a_batch_of_twice_the_rows_of_a_short_one_is_asked_whatever_is_expected_of_it():
    """What was not measured is expected to grow with its rows, which it need not."""
    steep = np.array([[0.001], [0.043]]) * np.arange(1.0, 9.0)
    asked = Bench(table_s=steep).run(9000, pending=0, work_s=0.0)
    assert {probe.rows for probe in asked if probe.model == "slow"} == {1, 2}
    steeper = np.array([[0.001], [0.047]]) * np.arange(1.0, 9.0)
    asked = Bench(table_s=steeper).run(9000, pending=0, work_s=0.0)
    assert {probe.rows for probe in asked if probe.model == "slow"} == {1}


def test_sizes_that_the_operator_wants_are_asked_however_long_they_take():
    bench = Bench(table_s=10.0 * TABLE_S)
    bench.plan = ProbePlan(ProbingPolicy(batches=(1, 8)))
    asked = bench.run(30000, pending=0, work_s=0.0)
    assert {probe.rows for probe in asked if probe.model == "slow"} == {1, 8}


@pytest.mark.parametrize("work_s", [0.011, 0.2])
def test_a_backlog_is_not_added_to(work_s):
    assert Bench().run(1000, pending=5, work_s=work_s) == []


def test_probes_keep_to_their_share_of_time():
    bench = Bench()
    asked = bench.run(200, pending=0, work_s=0.0)
    took_s = sum(TABLE_S[NAMES.index(probe.model), probe.rows - 1] for probe in asked)
    assert 0.0 < took_s <= POLICY.probing.max_busy_ratio * 200 * 0.02 + TABLE_S.max()


def test_it_is_done_when_nothing_is_wanted_and_looks_again_later():
    bench = Bench()
    bench.run(10, pending=1, work_s=0.5)
    assert not bench.plan.is_done(0.2), "what is wanted may not be asked now"
    bench.samples[:] = 3.0
    bench.run(1, pending=1, work_s=0.5)
    assert bench.plan.is_done(0.3)
    assert not bench.plan.is_done(2.0)
    bench.samples[0] = 0.0
    assert bench.run(60, pending=0, work_s=0.0) != []


def test_none_are_sent_where_the_policy_wants_none():
    assert Bench(enabled=False).run(1000, pending=0, work_s=0.0) == []


def test_a_profile_is_asked_at_its_own_largest_batch():
    """An engine that is compiled for one shape takes as long for a single row."""
    model = replace(
        POLICY.models[0],
        client_max_batch=1,
        variants=(
            VariantPolicy("fast", "fast", 0.9),
            VariantPolicy("fast.b4", "slow", 0.9, max_batch=4, profile_of="fast"),
        ),
    )
    asked = Bench(policy=replace(POLICY, models=(model,))).run(3000, pending=0, work_s=0.0)
    assert set(asked) == {Probe("fast", 1), Probe("slow", 1), Probe("slow", 2), Probe("slow", 4)}
