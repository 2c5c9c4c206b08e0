"""Service times by batch size: differences of running totals, and what spoils them."""

import math

from controller.telemetry.batches import BatchDifferences, BatchTotals, ModelTotals


def totals(**batches: tuple[int, float]) -> ModelTotals:
    """Return totals from `r4=(executions, seconds)`."""
    return ModelTotals(
        {
            int(name[1:]): BatchTotals(count, round(seconds * 1e9))
            for name, (count, seconds) in batches.items()
        }
    )


def settled() -> BatchDifferences:
    """Return one that has seen model `a` run, and run again."""
    differences = BatchDifferences()
    differences.update(0.0, {"a": totals(r1=(10, 0.1))})
    differences.update(0.5, {"a": totals(r1=(20, 0.2))})
    return differences


def test_the_first_poll_only_sets_the_base():
    assert BatchDifferences().update(0.0, {"a": totals(r1=(10, 1.0))}) == []


def test_the_mean_is_that_of_what_ran_between_two_polls():
    (timed,) = settled().update(1.0, {"a": totals(r1=(24, 0.28))})
    assert timed.sample.rows == 1
    assert timed.sample.executions == 4
    assert math.isclose(timed.sample.mean_service_s, 0.02)
    assert not timed.sample.after_action


def test_age_counts_from_the_middle_of_the_window():
    (timed,) = settled().update(1.0, {"a": totals(r1=(24, 0.28))})
    assert math.isclose(timed.aged(1.25).age_s, 0.5)


def test_a_model_that_did_not_run_gives_no_sample():
    assert settled().update(1.0, {"a": totals(r1=(20, 0.2))}) == []


def test_a_batch_size_that_is_new_counts_from_zero():
    samples = settled().update(1.0, {"a": totals(r1=(20, 0.2), r8=(2, 0.1))})
    assert [(s.sample.rows, s.sample.executions, s.sample.mean_service_s) for s in samples] == [
        (8, 2, 0.05)
    ]


def test_statistics_that_start_from_zero_are_a_first_run_and_never_negative():
    (timed,) = settled().update(1.0, {"a": totals(r1=(3, 0.6))})
    assert timed.sample.executions == 3
    assert math.isclose(timed.sample.mean_service_s, 0.2)
    assert timed.sample.after_action


def test_the_first_runs_of_a_model_that_appears_are_marked_and_the_next_are_not():
    differences = settled()
    (first,) = differences.update(1.0, {"a": totals(r1=(20, 0.2)), "b": totals(r1=(5, 1.0))})
    (second,) = differences.update(1.5, {"a": totals(r1=(20, 0.2)), "b": totals(r1=(9, 1.1))})
    assert (first.sample.model, first.sample.after_action) == ("b", True)
    assert not second.sample.after_action


def test_a_loaded_model_that_never_ran_is_marked_when_it_first_runs():
    differences = settled()
    differences.update(1.0, {"a": totals(r1=(20, 0.2)), "b": totals()})
    (first,) = differences.update(1.5, {"a": totals(r1=(20, 0.2)), "b": totals(r1=(1, 1.0))})
    assert first.sample.after_action


def test_a_window_that_overlaps_an_action_is_marked_and_so_is_the_first_after_it():
    differences = settled()
    differences.note_action("a", 0.7)
    marks = []
    for number, at_s in enumerate((1.0, 1.5, 2.0), start=1):
        (timed,) = differences.update(at_s, {"a": totals(r1=(20 + number, 0.2 + number / 100))})
        marks.append(timed.sample.after_action)
    assert marks == [True, True, False]


def test_the_first_executions_after_an_action_are_marked_however_late_they_come():
    differences = settled()
    differences.note_action("a", 0.7)
    for at_s in (1.0, 1.5, 2.0):
        assert differences.update(at_s, {"a": totals(r1=(20, 0.2))}) == []
    (late,) = differences.update(2.5, {"a": totals(r1=(21, 0.3))})
    assert late.sample.after_action


def test_an_action_on_one_model_does_not_mark_another():
    differences = settled()
    differences.note_action("b", 0.7)
    (timed,) = differences.update(1.0, {"a": totals(r1=(21, 0.21))})
    assert not timed.sample.after_action


def test_after_a_restart_of_the_server_everything_is_a_first_run():
    differences = settled()
    differences.forget()
    (timed,) = differences.update(5.0, {"a": totals(r1=(30, 0.3))})
    assert timed.sample.executions == 30
    assert timed.sample.after_action


def test_a_model_that_was_unloaded_comes_back_as_a_first_run():
    differences = settled()
    assert differences.update(1.0, {}) == []
    (timed,) = differences.update(1.5, {"a": totals(r1=(50, 0.5))})
    assert timed.sample.after_action
