import numpy as np
import pytest

from controller.actuation.client import Fault, TritonError, check_name, classify, probe_inputs


@pytest.mark.parametrize("name", ["a", "Model-1.2_b", "0", "..a"])
def test_names_of_letters_digits_and_three_signs_may_be_sent(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "a\n", "ä", "a\x00", "a:1"])
def test_other_names_never_reach_the_server(name):
    with pytest.raises(TritonError) as refused:
        check_name(name)
    assert refused.value.fault is Fault.INVALID


@pytest.mark.parametrize(
    ("code", "message", "fault"),
    [
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", Fault.UNREACHABLE),
        ("StatusCode.UNAVAILABLE", "Socket closed", Fault.UNREACHABLE),
        ("StatusCode.UNAVAILABLE", "in ensemble 'a', Exceeds maximum queue size", Fault.OVERLOADED),
        ("StatusCode.UNAVAILABLE", "This protocol is restricted, expecting header", Fault.REFUSED),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", Fault.UNKNOWN),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'a' is not found", Fault.NOT_FOUND),
        ("StatusCode.INTERNAL", "in ensemble 'c', Request for unknown model: 'a'", Fault.NOT_FOUND),
        (
            "StatusCode.UNAVAILABLE",
            "explicit model load / unload is not allowed if polling is enabled",
            Fault.REFUSED,
        ),
        ("StatusCode.INVALID_ARGUMENT", "load failed for model 'a': version 1", Fault.INVALID),
        ("StatusCode.INTERNAL", "failed to load 'chat', failed to poll", Fault.INVALID),
        ("", "", Fault.INVALID),
    ],
)
def test_errors_are_told_apart_by_code_and_by_triton_s_words(code, message, fault):
    assert classify(code, message) is fault


@pytest.mark.parametrize(
    ("fault", "message", "open_"),
    [
        (Fault.UNREACHABLE, "failed to connect to all addresses", False),
        (Fault.UNREACHABLE, "Socket closed", True),
        (Fault.UNKNOWN, "Deadline Exceeded", True),
        (Fault.INVALID, "no", False),
    ],
)
def test_only_a_call_that_left_may_have_happened(fault, message, open_):
    assert TritonError(fault, message).may_have_happened is open_


def config(data_type, dims, *, max_batch_size=8, **more):
    tensor = {"name": "IN", "data_type": data_type, "dims": dims, **more}
    return {"name": "m", "max_batch_size": max_batch_size, "input": [tensor]}


@pytest.mark.parametrize(
    ("data_type", "kind"),
    [
        ("TYPE_FP32", "FP32"),
        ("TYPE_FP16", "FP16"),
        ("TYPE_BF16", "BF16"),
        ("TYPE_INT64", "INT64"),
        ("TYPE_UINT8", "UINT8"),
        ("TYPE_BOOL", "BOOL"),
        ("TYPE_STRING", "BYTES"),
    ],
)
def test_a_probe_has_the_tensors_that_the_model_takes(data_type, kind):
    (tensor,) = probe_inputs(config(data_type, ["-1", "3"]))
    assert (tensor.name(), tensor.datatype(), tensor.shape()) == ("IN", kind, [1, 1, 3])


def test_a_probe_of_a_model_that_does_not_batch_has_no_batch_dimension():
    (tensor,) = probe_inputs(config("TYPE_FP32", ["2"], max_batch_size=0))
    assert tensor.shape() == [2]


def test_a_probe_is_of_zeros():
    (tensor,) = probe_inputs(config("TYPE_FP32", ["5"]))
    assert not np.frombuffer(tensor._get_content(), np.float32).any()


def test_optional_inputs_are_left_out_of_a_probe():
    assert probe_inputs(config("TYPE_FP32", ["1"], optional=True)) == []


def test_a_type_that_has_no_zeros_is_said():
    with pytest.raises(TritonError, match="no zeros of type"):
        probe_inputs(config("TYPE_CURIOUS", ["1"]))
