"""Joining Triton's spans, on a body that a real tritonserver 2.51.0 posted.

Eight requests went through the alias `al` to the variant `a` (5 ms a batch): three one after the
other, then five of two rows at once, of which four shared a batch; the ninth trace is a direct
request to `a`.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from controller.telemetry.spans import ClockMap, MalformedTraceError, SpanJoiner, read_spans

BODY = Path(__file__).with_name("test_telemetry_otlp_body.json").read_bytes()
UNIX_OFFSET_S = 1_795_000_000.0


def unix_end_s() -> float:
    return max(span.end_ns for span in read_spans(BODY)) * 1e-9


def arrival_s(delay_s: float = 0.05) -> float:
    """Return when the body comes on our clock, so long after its newest span ended."""
    return unix_end_s() - UNIX_OFFSET_S + delay_s


def joined(body: bytes = BODY, delay_s: float = 0.05, joiner: SpanJoiner | None = None):
    joiner = joiner or SpanJoiner(["al"])
    return joiner.take(read_spans(body), arrival_s(delay_s), UNIX_OFFSET_S)


def spans_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["resourceSpans"][0]["scopeSpans"][0]["spans"]


def test_each_request_through_the_alias_is_one_sample_with_the_model_that_served():
    samples = joined()
    assert len(samples) == 8
    assert {(s.alias, s.model) for s in samples} == {("al", "a")}


def test_a_direct_request_to_a_variant_is_no_sample():
    traces = {span.trace for span in read_spans(BODY) if span.name == "compute"}
    assert (len(traces), len(joined())) == (9, 8)


def test_latency_is_the_aliass_and_holds_queue_and_compute():
    for sample in joined():
        assert sample.queue_s is not None
        assert sample.compute_s is not None
        assert 0.004 < sample.compute_s < sample.latency_s < 0.1
        assert sample.queue_s + sample.compute_s < sample.latency_s


def test_requests_of_one_batch_are_known_despite_a_jitter_of_nanoseconds():
    starts = [s.events["COMPUTE_START"] for s in read_spans(BODY) if s.name == "compute"]
    shared = [s for s in starts if sum(abs(s - t) < 1000 for t in starts) > 1]
    assert len(set(shared)) > 1  # the recorded batch has the jitter that this is about
    counts = [sample.batch_requests for sample in joined()]
    assert counts.count(len(shared)) == len(shared)
    assert counts.count(1) == len(counts) - len(shared)


def test_start_is_on_our_monotonic_clock():
    for sample in joined(delay_s=0.05):
        assert sample.start_s + sample.latency_s <= arrival_s(0.0) + 1e-6
        assert sample.start_s > arrival_s(0.0) - 1.0


def test_an_export_that_cuts_between_child_and_parent_joins_all_the_same():
    whole = joined()
    document = json.loads(BODY)
    spans = spans_of(document)
    for cut in range(1, len(spans)):
        first, second = copy.deepcopy(document), copy.deepcopy(document)
        first["resourceSpans"][0]["scopeSpans"][0]["spans"] = spans[:cut]
        second["resourceSpans"][0]["scopeSpans"][0]["spans"] = spans[cut:]
        joiner = SpanJoiner(["al"])
        parts = joined(json.dumps(first).encode(), joiner=joiner)
        parts += joined(json.dumps(second).encode(), joiner=joiner)
        assert [(s.start_s, s.latency_s, s.model) for s in parts] == [
            (s.start_s, s.latency_s, s.model) for s in whole
        ]


def test_an_alias_whose_variant_is_not_known_still_tells_its_latency():
    document = json.loads(BODY)
    spans = spans_of(document)
    spans[:] = [s for s in spans if s["name"] == "al"]
    samples = joined(json.dumps(document).encode())
    assert samples
    assert {(s.model, s.queue_s, s.compute_s) for s in samples} == {(None, None, None)}


def test_a_span_from_the_future_is_not_believed():
    joiner = SpanJoiner(["al"])
    assert joined(delay_s=-5.0, joiner=joiner) == []
    assert joiner.counts.from_the_future > 0
    assert joined(delay_s=0.05, joiner=joiner) != []  # nor does it move the clock for others


def test_a_span_of_long_ago_is_not_believed():
    joiner = SpanJoiner(["al"])
    assert joined(delay_s=3600.0, joiner=joiner) == []
    assert joiner.counts.stale > 0


@pytest.mark.parametrize("skew_s", [-90.0, 200.0])
def test_a_server_on_another_clock_is_mapped_onto_ours_after_a_few_bodies(skew_s):
    joiner = SpanJoiner(["al"])
    for _ in range(10):
        samples = joined(delay_s=skew_s + 0.05, joiner=joiner)
    newest_s = max(sample.start_s + sample.latency_s for sample in samples)
    assert abs(newest_s - arrival_s(skew_s + 0.05)) < 0.1


def test_one_body_cannot_move_the_clock():
    clock = ClockMap()
    for _ in range(20):
        clock.observe(0.05)
    clock.observe(-1e9)
    assert clock.correction_s == 0.0


def test_memory_is_bounded_whatever_comes():
    joiner = SpanJoiner(["al"])
    document = json.loads(BODY)
    compute = next(s for s in spans_of(document) if s["name"] == "compute")
    for number in range(3):
        many = []
        for index in range(10_000):
            span = copy.copy(compute)
            span["parentSpanId"] = f"{number * 10_000 + index + 1:016x}"
            many.append(span)
        document["resourceSpans"][0]["scopeSpans"][0]["spans"] = many
        joined(json.dumps(document).encode(), joiner=joiner)
    assert len(joiner._children) <= 8192
    assert sum(len(batches) for batches in joiner._batches.values()) <= 256


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"resourceSpans": 1}',
        b'{"resourceSpans": [1]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": ["x"]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}]}',
        b"[" * 100_000,
        b'{"resourceSpans": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_otlp_is_refused_with_a_reason(body):
    with pytest.raises(MalformedTraceError):
        read_spans(body)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("traceId", "not hexadecimal"),
        ("spanId", 7),
        ("parentSpanId", ["x"]),
        ("endTimeUnixNano", "-1"),
        ("endTimeUnixNano", "99999999999999999999"),
        ("endTimeUnixNano", 1.5),
        ("endTimeUnixNano", None),
        ("events", {"name": "x"}),
        ("events", [{"name": "REQUEST_START", "timeUnixNano": True}]),
        ("attributes", [{"key": "triton.model_name", "value": "al"}]),
        ("attributes", [{"key": "triton.model_name", "value": {"stringValue": "\ud800"}}]),
        ("attributes", [{"key": "triton.model_name", "value": {"stringValue": "x" * 600}}]),
    ],
)
def test_a_span_with_a_wrong_field_is_refused(key, value):
    document = json.loads(BODY)
    spans_of(document)[0][key] = value
    with pytest.raises(MalformedTraceError):
        read_spans(json.dumps(document).encode())


def test_an_empty_post_is_accepted():
    assert joined(b'{"resourceSpans": []}') == []
