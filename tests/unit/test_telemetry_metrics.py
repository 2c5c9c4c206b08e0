"""Triton's metrics page: what is taken from it, and how counters become increments."""

import math

import pytest

from controller.telemetry.triton_metrics import (
    MalformedPageError,
    ModelCounters,
    PageParser,
    difference,
)

PAGE = b"""\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="al",version="1"} 8
nv_inference_request_success{model="a",version="1"} 9
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="a",reason="OTHER",version="1"} 1
nv_inference_request_failure{model="a",reason="REJECTED",version="1"} 2
# TYPE nv_inference_count counter
nv_inference_count{model="a",version="1"} 14
nv_inference_exec_count{model="a",version="1"} 6
nv_inference_request_duration_us{model="a",version="1"} 109860
nv_inference_queue_duration_us{model="a",version="1"} 24299
nv_inference_compute_input_duration_us{model="a",version="1"} 509
nv_inference_compute_infer_duration_us{model="a",version="1"} 75028
nv_inference_compute_output_duration_us{model="a",version="1"} 9210
nv_inference_pending_request_count{model="a",version="1"} 3
nv_pinned_memory_pool_total_bytes 268435456
nv_cpu_utilization 0.2769230769230769
"""


def counters(**values: float) -> ModelCounters:
    return ModelCounters(**values)


def test_wanted_families_are_summed_per_model():
    models = PageParser().parse(PAGE)
    assert models["a"] == ModelCounters(
        pending_requests=3,
        completed_requests=9,
        failed_requests=1,
        rejected_requests=2,
        completed_rows=14,
        executions=6,
        queue_us=24299,
        compute_us=509 + 75028 + 9210,
    )
    assert models["al"].completed_requests == 8


def test_versions_and_devices_of_a_model_are_one():
    page = PAGE + (
        b'nv_inference_request_success{gpu_uuid="GPU-1",model="a",version="2"} 5\n'
        b'nv_inference_pending_request_count{gpu_uuid="GPU-1",model="a",version="2"} 4\n'
    )
    models = PageParser().parse(page)
    assert models["a"].completed_requests == 14
    assert models["a"].pending_requests == 7


def test_a_missing_pending_count_is_absent_and_not_zero():
    models = PageParser().parse(b'nv_inference_request_success{model="a",version="1"} 9\n')
    assert models["a"].pending_requests is None


def test_a_model_name_with_escapes_is_read_as_it_is():
    models = PageParser().parse(b'nv_inference_count{model="a\\"b\\\\c",version="1"} 1\n')
    assert list(models) == ['a"b\\c']


def test_a_label_that_ends_in_model_is_not_the_model():
    models = PageParser().parse(b'nv_inference_count{submodel="x",model="a",version="1"} 1\n')
    assert list(models) == ["a"]


def test_a_parser_gives_the_same_for_the_second_page_as_a_fresh_one():
    parser = PageParser()
    parser.parse(PAGE)
    later = PAGE.replace(b"} 9\n", b"} 1.2e+01\n")
    assert parser.parse(later) == PageParser().parse(later)
    assert parser.parse(later)["a"].completed_requests == 12


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>not found</html>",
        b"up 1\n",
        b'nv_inference_count{model="a",version="1"} many\n',
        b'nv_inference_count{model="a",version="1"} NaN\n',
        b'nv_inference_count{model="a",version="1"} -1\n',
        b'nv_inference_count{model="a",version="1"}\n# TYPE nv_x counter\nnv_inference_count{x} 1',
        b'nv_inference_count{version="1"} 1\n',
        b'nv_inference_count{model="a 1\n',
    ],
)
def test_a_page_that_is_not_tritons_is_refused(page):
    with pytest.raises(MalformedPageError):
        PageParser().parse(page)


def test_a_page_without_any_model_is_no_failure():
    assert PageParser().parse(b"# TYPE nv_inference_count counter\n") == {}


def test_the_series_a_parser_remembers_are_bounded():
    parser = PageParser()
    for start in range(0, 120_000, 30_000):
        lines = (f'nv_x{{model="m{n}"}} 1\n' for n in range(start, start + 30_000))
        parser.parse(b"# TYPE nv_x counter\n" + "".join(lines).encode())
    assert len(parser._known) <= 50_000


def test_increments_are_differences_in_seconds():
    before = counters(completed_requests=10, completed_rows=20, queue_us=1e6, compute_us=2e6)
    after = counters(
        pending_requests=4,
        completed_requests=13,
        completed_rows=29,
        queue_us=1.5e6,
        compute_us=4e6,
    )
    reading = difference("a", before, after, ready=True)
    assert (reading.pending_requests, reading.completed_requests) == (4, 3)
    assert reading.completed_rows == 9
    assert math.isclose(reading.queue_s, 0.5)
    assert math.isclose(reading.compute_s, 2.0)


def test_the_first_page_has_no_increments():
    reading = difference("a", None, counters(completed_requests=1000), ready=None)
    assert reading.completed_requests == 0


def test_a_counter_that_falls_restarted_from_zero_and_so_did_all_of_its_model():
    before = counters(completed_requests=100, completed_rows=100, queue_us=5e6, executions=90)
    after = counters(completed_requests=3, completed_rows=300, queue_us=6e6, executions=2)
    reading = difference("a", before, after, ready=True)
    assert reading.completed_requests == 3
    assert reading.completed_rows == 300
    assert reading.executions == 2
    assert math.isclose(reading.queue_s, 6.0)
