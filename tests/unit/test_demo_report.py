"""What a demo leaves behind: the published JSON, the table, the picture, the policy it wrote."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from controller.demo import plot, report, scores, wire
from controller.demo.arms import Arm, Governed, Result, Switch, parse
from controller.demo.governed import Choice, policy_text
from controller.demo.live import Plain, Screen, arms_table
from controller.demo.load import Progress
from controller.demo.processes import Usage
from controller.demo.records import OK, Records
from controller.demo.scenario import Scale, bursty
from controller.demo.scores import Served
from controller.policy.load import load_policy

SERVED = (Served("fast", 0.8, 800.0), Served("mid", 0.88, 300.0), Served("good", 0.95, 90.0))


def records_of(schedule, choose):
    """Answer every request at once by the variant that `choose(due_s)` names."""
    count = len(schedule.due_s)
    variant = np.array([choose(due_s) for due_s in schedule.due_s], np.int16)
    return Records(
        due_s=schedule.due_s,
        rows=schedule.rows,
        late_ms=np.full(count, 0.1),
        latency_ms=np.array([3.0, 10.0, 30.0])[variant],
        status=np.full(count, OK, np.int8),
        variant=variant,
        correct=schedule.rows.astype(np.int16),
        zero_s=0.0,
        errors={},
    )


@pytest.fixture(scope="module")
def outcome():
    schedule = bursty(Scale(90.0, 800.0), seed=1, duration_s=20.0)

    def governed(due_s):
        return 0 if any(b.start_s <= due_s < b.end_s for b in schedule.bursts) else 2

    results = []
    for arm, choose in (
        (Arm("good"), lambda _: 2),
        (Arm("fast"), lambda _: 0),
        (Arm(), governed),
        (Arm(None, "frozen"), lambda _: 1),
    ):
        records = records_of(schedule, choose)
        details = None
        if arm.variant is None:
            switches = tuple(Switch(b.start_s + 0.1, 0, 2.0, 9.0) for b in schedule.bursts)
            details = Governed(
                switches=switches,
                usage=Usage(0.04, 200_000_000),
                tick_ms={"count": 9, "p50": 1.0, "p99": 4.0},
                relief=scores.relief(
                    records, SERVED, schedule, [(s.at_s, s.target) for s in switches]
                ),
                gpu=None,
            )
        results.append(
            Result(arm, scores.score(records, SERVED, objective_ms=60.0), records, details)
        )
    return report.Outcome(tuple(results), schedule, SERVED, 60.0, "2.51.0", 1)


def test_the_published_json_has_exactly_the_agreed_fields(outcome, tmp_path):
    path = tmp_path / "out.json"
    report.write(path, report.summary(outcome))
    document = json.loads(path.read_text())
    assert set(document) == {
        "arms",
        "switch_ms",
        "transaction_ms",
        "relief_ms",
        "tick_ms",
        "governor",
        "triton_version",
        "gpu",
    }
    assert all(
        set(arm)
        == {
            "name",
            "requests",
            "failed",
            "slo_attainment",
            "effective_quality",
            "mean_quality",
            "p50_ms",
            "p99_ms",
            "switches",
        }
        for arm in document["arms"]
    )
    assert [arm["name"] for arm in document["arms"]] == [
        "fixed:good",
        "fixed:fast",
        "governor",
        "governor:frozen",
    ]
    assert document["switch_ms"] == {"count": 2, "p50": 2.0, "p99": 2.0}
    assert document["transaction_ms"] == {"p50": 9.0, "p99": 9.0}
    assert document["governor"] == {"cpu_ratio": 0.04, "rss_bytes": 200_000_000}
    assert document["gpu"] is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_demo_of_fixed_arms_alone_still_has_a_report(outcome):
    fixed = replace(outcome, results=outcome.results[:2])
    document = report.summary(fixed)
    assert document["switch_ms"] == {"count": 0, "p50": None, "p99": None}
    assert document["governor"] == {"cpu_ratio": None, "rss_bytes": None}
    assert report.findings(fixed) == []


def test_the_findings_compare_with_the_best_fixed_variant(outcome):
    text = "\n".join(report.findings(outcome))
    assert "Best fixed variant: good" in text
    assert f"{0.95:.4f}" in text


def test_a_generator_that_was_late_is_named(outcome):
    assert report.warnings(outcome) == []
    good = outcome.results[0]
    late = replace(good, score=replace(good.score, late_p99_ms=20.0))
    found = report.warnings(replace(outcome, results=(late,)))
    assert len(found) == 1
    assert "fixed:good" in found[0]


def test_a_machine_that_stood_still_for_a_moment_is_named(outcome):
    good = outcome.results[0]
    late = replace(good, score=replace(good.score, late_max_ms=114.0))
    found = report.warnings(replace(outcome, results=(late,)))
    assert len(found) == 1
    assert "114 ms" in found[0]


def test_the_picture_is_drawn_with_and_without_a_governor(outcome, tmp_path):
    for name, results in (("all", outcome.results), ("fixed", outcome.results[:1])):
        path = tmp_path / f"{name}.png"
        plot.draw(path, results, outcome.schedule, SERVED, 60.0)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_eighty_columns_with_every_heading_whole(outcome):
    console = Console(file=io.StringIO(), width=80)
    console.print(arms_table(list(outcome.results)))
    text = console.file.getvalue()
    assert "…" not in text
    for word in ("requests", "failed", "in time", "effective", "p99 ms", "switches"):
        assert word in text


PROGRESS = Progress(1.0, 100, 0, 3, 88.0, 80, 2, 5.0, 71.0, 0)
STATUS = {
    "models": [
        {
            "serving": "mid",
            "reason": "escape",
            "predicted_p99_ms": 44.0,
            "measured_p99_ms": None,
            "switches": 3,
        }
    ]
}


@pytest.mark.parametrize("status", [None, {}, {"models": []}, STATUS])
def test_the_views_show_whatever_the_governor_knows(outcome, status):
    for make in (Plain, lambda console: Screen(console, 60.0)):
        console = Console(file=io.StringIO(), width=100, force_terminal=True)
        view = make(console)
        view.stage("measuring fast", 0.5)
        view.arm_started("governor", 20.0)
        view.arm_progress(PROGRESS, status)
        view.arm_ended(outcome.results[2])
        view.close()
        shown = console.file.getvalue()
        assert "governor" in shown
        assert "71.0 ms" in shown
        assert ("mid" in shown) == (status is STATUS)


def test_arms_are_parsed_and_a_wrong_one_is_answered_with_the_right_ones():
    assert [arm.name for arm in parse(None, ["a", "b"])] == ["fixed:a", "fixed:b", "governor"]
    chosen = parse("governor:frozen, fixed:b,governor,fixed:b", ["a", "b"])
    assert [arm.name for arm in chosen] == ["governor:frozen", "fixed:b", "governor"]
    with pytest.raises(ValueError, match="fixed:a"):
        parse("fixed:c", ["a", "b"])
    with pytest.raises(ValueError, match="no arm"):
        parse(" , ", ["a", "b"])


def test_the_policy_that_the_demo_writes_is_a_valid_one(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(
        policy_text(
            grpc="127.0.0.1:18001",
            metrics_url="http://127.0.0.1:18002/metrics",
            traces="127.0.0.1:14318",
            model="digits",
            objective_ms=60.0,
            percentile=99.0,
            client_max_batch=8,
            choices=[Choice("fast", "digits_fast", 0.81234), Choice("good", "digits_good", 0.95)],
        )
    )
    policy = load_policy(path)
    model = policy.model("digits")
    assert model.objective.latency_s == pytest.approx(0.060)
    assert model.objective.percentile == 99
    assert [(v.name, v.model, v.quality) for v in model.variants] == [
        ("fast", "digits_fast", 0.8123),
        ("good", "digits_good", 0.95),
    ]
    assert policy.triton.traces_listen == "127.0.0.1:14318"


TENSORS = wire.Tensors("page", "scores", "variant")


def answer(scores_of_rows, variant):
    response = wire.service_pb2.ModelInferResponse(model_name="digits")
    for name, content in (
        ("variant", np.full((len(scores_of_rows), 1), variant, np.int32)),
        ("scores", np.array(scores_of_rows, np.float32)),
    ):
        response.outputs.add().name = name
        response.raw_output_contents.append(content.tobytes())
    return response.SerializeToString()


def test_an_answer_tells_who_served_and_how_many_rows_are_right():
    labels = np.array([1, 0, 1])
    reading = wire.read(answer([[0, 1], [2, 1], [3, 1]], 2), TENSORS, labels)
    assert reading == wire.Reading(2, 2)


@pytest.mark.parametrize(
    "message", [b"\xff\xff", b"", answer([[0, 1]], 0), answer([], 0)], ids=range(4)
)
def test_what_is_no_answer_is_refused(message):
    with pytest.raises(ValueError, match=r"answer|ModelInferResponse"):
        wire.read(message, wire.Tensors("page", "other", "variant"), np.array([1]))


def test_requests_of_each_size_carry_the_pages_and_their_labels():
    pages = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2)
    prepared = wire.prepare("digits", TENSORS, pages, np.arange(10), [1, 4])
    assert [len(prepared[rows]) for rows in (1, 4)] == [10, 2]
    second = prepared[4][1]
    request = wire.service_pb2.ModelInferRequest.FromString(second.message)
    assert list(request.inputs[0].shape) == [4, 2, 2]
    assert request.raw_input_contents[0] == pages[4:8].tobytes()
    assert second.labels.tolist() == [4, 5, 6, 7]
