"""Measuring quality: scores, intervals, and rows from files."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from controller.quality.data import DataError, Rows, read_rows, sample
from controller.quality.metrics import (
    Metric,
    MetricError,
    difference,
    estimate,
    rows_for,
    score,
)


def test_top1_is_right_where_the_label_has_the_greatest_score():
    answers = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert score(Metric.TOP1, answers, np.array([1, 1, 1])).tolist() == [1, 0, 1]


def test_agreement_compares_the_greatest_and_not_the_scores():
    answers, reference = np.array([[1.0, 2.0], [5.0, 4.0]]), np.array([[0.0, 9.0], [0.0, 9.0]])
    assert score(Metric.AGREEMENT, answers, reference).tolist() == [1, 0]


def test_cosine_and_error_are_one_for_the_same_and_never_leave_the_unit_interval():
    same = np.array([[1.0, 2.0], [0.0, 0.0]])
    for metric in (Metric.COSINE, Metric.ERROR):
        assert score(metric, same, same) == pytest.approx([1.0, 1.0])
        assert score(metric, -same[:1], same[:1]).tolist() == [0.0]
    assert score(Metric.ERROR, np.array([[1.5]]), np.array([[2.0]])).tolist() == [0.75]


@given(
    arrays.arrays(np.float32, (5, 3), elements=st.floats(width=32)),
    arrays.arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([Metric.COSINE, Metric.ERROR, Metric.AGREEMENT]),
)
@settings(deadline=None, max_examples=60)
def test_whatever_a_variant_answers_a_score_is_from_0_to_1(answers, reference, metric):
    with np.errstate(all="ignore"):
        scores = score(metric, answers, reference)
    assert ((scores >= 0.0) & (scores <= 1.0)).all()


def test_text_is_compared_as_it_is():
    answers = np.array([[b"yes"], [b"no"]], dtype=object)
    assert score(Metric.EXACT, answers, np.array([b"yes", b"yes"], dtype=object)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("metric", "answers", "expected", "words"),
    [
        (Metric.TOP1, np.ones((2, 1)), np.array([0, 0]), "--output"),
        (Metric.TOP1, np.ones((2, 3)), np.array([0, 3]), "from 0 to 2"),
        (Metric.TOP1, np.ones((2, 3)), np.array([0, 0.5]), "whole numbers"),
        (Metric.COSINE, np.ones((2, 3)), np.ones((2, 4)), "3 numbers a row, but 4"),
        (Metric.COSINE, np.array([b"a"]), np.array([b"a"]), "exact"),
        (Metric.TOP1, np.ones((2, 3)), np.array([0]), "2 answers, but 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_way_out(metric, answers, expected, words):
    with pytest.raises(MetricError, match=words):
        score(metric, answers, expected)


def test_the_interval_of_a_share_covers_the_truth_as_often_as_it_says():
    chance = np.random.default_rng(1)
    truth, rows, hits = 0.93, 300, 0
    for _ in range(1000):
        found = estimate((chance.random(rows) < truth).astype(float))
        hits += found.low <= truth <= found.high
    assert 930 <= hits <= 970


def test_rows_that_are_alike_widen_the_interval_as_they_should():
    chance = np.random.default_rng(2)
    truth, hits, naive = 0.9, 0, 0
    groups = np.repeat(np.arange(60), 10)
    for _ in range(500):
        # All ten rows of a group are right or wrong together.
        scores = np.repeat((chance.random(60) < truth).astype(float), 10)
        found, rows = estimate(scores, groups), estimate(scores)
        hits += found.low <= truth <= found.high
        naive += rows.low <= truth <= rows.high
    assert hits >= 450  # of 475: with 60 groups and a share near 1 Student's t is a little short
    assert naive <= 300


def test_all_right_is_no_proof_of_perfection():
    found = estimate(np.ones(100))
    assert (found.mean, found.high) == (1.0, 1.0)
    assert 0.95 < found.low < 0.97


def test_one_group_says_nothing():
    found = estimate(np.array([1.0, 1.0, 0.0]), np.zeros(3))
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_difference_on_the_same_rows_is_surer_than_two_qualities():
    chance = np.random.default_rng(3)
    one = (chance.random(2000) < 0.9).astype(float)
    other = np.where(chance.random(2000) < 0.02, 0.0, one)
    apart = difference(other, one)
    assert apart.high < 0.0
    assert apart.high - apart.low < estimate(one).high - estimate(one).low


@pytest.mark.parametrize(("half", "quality", "rows"), [(0.01, 0.9, 3458), (0.05, 0.5, 385)])
def test_how_many_rows_a_precision_takes(half, quality, rows):
    assert rows_for(half, quality) == rows
    chance = np.random.default_rng(4)
    found = estimate((chance.random(rows) < quality).astype(float))
    assert math.isclose((found.high - found.low) / 2.0, half, rel_tol=0.1)


def test_an_npz_gives_inputs_labels_and_groups(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, page=np.zeros((4, 2)), labels=np.arange(4), source=[0, 0, 1, 1], other=[1, 2])
    rows = read_rows(path, group="source").only({"IN": "page"})
    assert list(rows.inputs) == ["IN"]
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 1, 2, 3]


def test_json_lines_give_numbers_and_texts(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"inputs": {"x": [1, 2], "t": "a"}, "label": 1}, {"inputs": {"x": [3, 4], "t": "b"}}]
    lines[1]["label"] = 0
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = read_rows(path)
    assert rows.inputs["x"].tolist() == [[1, 2], [3, 4]]
    assert rows.inputs["t"].tolist() == [b"a", b"b"]
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"inputs": {"x": 1}}\n{"inputs": ', ":2: not JSON"),
        ('{"x": 1}', ":1: needs"),
        ('{"inputs": {"x": 1}}\n{"inputs": {"y": 1}}', ":2: every line needs the same keys"),
        ('{"inputs": {"x": [1]}}\n{"inputs": {"x": [1, 2]}}', "differs in its shape"),
        ('{"inputs": {"label": 1}, "label": 2}', "an input and something else"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_rows(path).only({"x": "x"})


def test_a_missing_input_says_what_there_is(tmp_path):
    np.savez(tmp_path / "rows.npz", pages=np.zeros((4, 2)))
    with pytest.raises(DataError, match="the file has pages; see --input page=KEY"):
        read_rows(tmp_path / "rows.npz").only({"page": "page"})
    with pytest.raises(DataError, match="has no 'labels'"):
        read_rows(tmp_path / "rows.npz", labels="labels")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "rows.npz")


def test_a_sample_has_whole_groups_and_is_the_same_again():
    groups = np.repeat(np.arange(20), 5)
    rows = Rows({"x": np.arange(100)}, groups=groups)
    some = sample(rows, 30, seed=7)
    assert some.groups is not None
    _, counts = np.unique(some.groups, return_counts=True)
    assert counts.tolist() == [5] * 6
    again = sample(rows, 30, seed=7)
    assert some.inputs["x"].tolist() == again.inputs["x"].tolist()
    assert len(sample(rows, 1000, seed=7)) == 100
