import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.actuation import alias as shape
from controller.actuation.alias import Marker, Misfit
from controller.actuation.places import gpus_of


def tensor(name="IN", data_type="TYPE_FP32", dims=(4,), **more):
    # 64-bit numbers are strings in what the server sends.
    return {"name": name, "data_type": data_type, "dims": [str(size) for size in dims], **more}


def model(name="a", *, inputs=None, outputs=None, max_batch_size=8, **more):
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch_size,
        "input": inputs or [tensor()],
        "output": outputs or [tensor("OUT")],
        **more,
    }


def misfits(alias, variant):
    return {problem.misfit for problem in shape.fits(alias, variant)}


def test_an_alias_points_at_its_first_variant_and_fits_it():
    alias = shape.build("chat", [model("a"), model("b")], client_max_batch=4)
    assert shape.target_of(alias) == "a"
    assert alias["max_batch_size"] == 4
    assert not shape.fits(alias, model("a"))
    assert not shape.fits(alias, model("b"))


def test_an_alias_promises_no_more_rows_than_some_variant_takes():
    assert shape.build("chat", [model(max_batch_size=2)], client_max_batch=8)["max_batch_size"] == 2


def test_no_more_rows_are_promised_than_a_dispatcher_takes_of_one_client():
    """It takes many requests in one call, so its own limit is larger."""
    dispatcher = model("late", max_batch_size=32)
    dispatcher["parameters"] = {"client_max_batch": {"string_value": "4"}}
    assert shape.max_batch(dispatcher) == 4
    assert shape.fits(shape.build("chat", [model()], client_max_batch=8), dispatcher)
    assert not shape.fits(shape.build("chat", [model()], client_max_batch=4), dispatcher)


def test_an_alias_points_at_a_variant_that_takes_the_rows_clients_were_promised():
    variants = [model("small", max_batch_size=2), model("large", max_batch_size=8)]
    alias = shape.build("chat", variants, client_max_batch=8)
    assert shape.target_of(alias) == "large"
    assert misfits(alias, variants[0]) == {Misfit.BATCH_LIMIT}


def test_a_model_that_does_not_batch_has_an_alias_that_does_not():
    alias = shape.build("chat", [model(max_batch_size=0)], client_max_batch=8)
    assert alias["max_batch_size"] == 0
    assert not shape.fits(alias, model(max_batch_size=0))
    assert misfits(alias, model(max_batch_size=8)) == {Misfit.BATCHING}


def test_the_promise_is_what_all_variants_can_keep():
    free = model("a", inputs=[tensor(dims=(-1, 3))], outputs=[tensor("OUT"), tensor("EXTRA")])
    fixed = model("b", inputs=[tensor(dims=(7, 3))])
    alias = shape.build("chat", [free, fixed], client_max_batch=1)
    assert alias["input"][0]["dims"] == [7, 3]
    assert [output["name"] for output in alias["output"]] == ["OUT"]
    assert not shape.fits(alias, free)
    assert not shape.fits(alias, fixed)


def test_a_variant_that_contradicts_the_target_does_not_change_the_promise():
    alone = shape.build("chat", [model()], client_max_batch=1)
    odd = model("odd", inputs=[tensor(data_type="TYPE_INT8")])
    assert shape.build("chat", [model(), odd], client_max_batch=1) == alone


@pytest.mark.parametrize(
    ("variant", "misfit"),
    [
        (model(max_batch_size=4), Misfit.BATCH_LIMIT),
        (model(max_batch_size=0), Misfit.BATCHING),
        (model(inputs=[tensor(data_type="TYPE_INT32")]), Misfit.INPUT),
        (model(inputs=[tensor("OTHER")]), Misfit.INPUT),
        (model(inputs=[tensor(), tensor("MORE")]), Misfit.INPUT),
        (model(inputs=[tensor(dims=(5,))]), Misfit.INPUT),
        (model(inputs=[tensor(dims=(4, 1))]), Misfit.INPUT),
        (model(outputs=[tensor("OTHER")]), Misfit.OUTPUT),
        (model(outputs=[tensor("OUT", "TYPE_FP16")]), Misfit.OUTPUT),
        (model(outputs=[tensor("OUT", dims=(-1,))]), Misfit.OUTPUT),
        (model(model_transaction_policy={"decoupled": True}), Misfit.DECOUPLED),
        (model(sequence_batching={}), Misfit.SEQUENCE),
        (model(response_cache={"enable": True}), Misfit.RESPONSE_CACHE),
    ],
)
def test_a_variant_that_cannot_keep_the_promise_does_not_fit(variant, misfit):
    alias = shape.build("chat", [model()], client_max_batch=8)
    problems = shape.fits(alias, variant)
    assert misfit in {problem.misfit for problem in problems}
    assert all(str(problem) for problem in problems)


def test_more_than_the_promise_does_no_harm():
    alias = shape.build("chat", [model()], client_max_batch=8)
    able = model(
        inputs=[tensor(dims=(-1,)), tensor("MORE", optional=True)],
        outputs=[tensor("OUT"), tensor("EXTRA")],
        max_batch_size=64,
    )
    assert not shape.fits(alias, able)


def test_an_alias_with_a_response_cache_has_no_variant_that_fits():
    alias = shape.build("chat", [model()], client_max_batch=8)
    cached = {**alias, "response_cache": {"enable": True}}
    assert misfits(cached, model()) == {Misfit.RESPONSE_CACHE}


def test_what_is_no_ensemble_of_one_step_is_no_alias():
    alias = shape.build("chat", [model()], client_max_batch=8)
    two = copy.deepcopy(alias)
    two["ensemble_scheduling"]["step"] *= 2
    assert shape.target_of(two) is None
    assert shape.steps_of(two) == ("a", "a")
    assert shape.target_of(model()) is None
    assert misfits(two, model()) == {Misfit.NOT_AN_ALIAS}


def test_an_alias_that_somebody_made_may_rename_tensors():
    alias = shape.build("chat", [model()], client_max_batch=8)
    alias["input"][0]["name"] = "question"
    alias["ensemble_scheduling"]["step"][0]["input_map"] = {"IN": "question"}
    assert not shape.fits(alias, model())
    assert misfits(alias, model(inputs=[tensor("question")])) == {Misfit.INPUT}


def test_pointing_elsewhere_changes_the_step_and_the_signature_and_nothing_else():
    alias = shape.build("chat", [model()], client_max_batch=8)
    before = copy.deepcopy(alias)
    there = shape.point(alias, "b", Marker("me:1", 7))
    assert alias == before
    assert shape.target_of(there) == "b"
    assert shape.marker_of(there) == Marker("me:1", 7)
    back = shape.point(there, "a", Marker("me:1", 8))
    del back["parameters"]
    assert back == before


@pytest.mark.parametrize("text", ["", "/", "me", "me/", "/3", "me/x", "me/-1"])
def test_a_signature_that_is_none_of_ours_is_no_signature(text):
    config = {"parameters": {"triton_governor": {"string_value": text}}}
    assert shape.marker_of(config) is None


sizes = st.lists(st.sampled_from([-1, 1, 4]), min_size=1, max_size=2)
types = st.sampled_from(["TYPE_FP32", "TYPE_STRING"])
tensors = st.builds(tensor, st.just("IN"), types, sizes)
models = st.builds(
    lambda name, put, got, limit, decoupled: model(
        name,
        inputs=[put],
        outputs=[{**got, "name": "OUT"}],
        max_batch_size=limit,
        model_transaction_policy={"decoupled": decoupled},
    ),
    st.sampled_from(["a", "b", "c"]),
    tensors,
    tensors,
    st.sampled_from([0, 1, 8]),
    st.booleans(),
)


@given(st.lists(models, min_size=1, max_size=4), st.integers(1, 16))
def test_an_alias_always_fits_its_target_and_never_promises_more_than_asked(variants, rows):
    alias = shape.build("chat", variants, client_max_batch=rows)
    target = next(v for v in variants if v["name"] == shape.target_of(alias))
    fitting = [v for v in variants if not shape.fits(alias, v)]
    assert any(v["name"] == target["name"] for v in fitting)
    assert alias["max_batch_size"] <= rows


@pytest.mark.parametrize(
    ("groups", "gpus"),
    [
        (
            [{"kind": "KIND_GPU", "count": 1, "gpus": [1]}, {"kind": "KIND_GPU", "gpus": [0]}],
            (0, 1),
        ),
        ([{"kind": "KIND_CPU", "count": 2}], (-1,)),
        ([{"kind": "KIND_MODEL", "count": 1}], ()),
        ([], ()),
    ],
)
def test_where_a_model_runs_is_read_from_its_config(groups, gpus):
    assert gpus_of({"instance_group": groups}) == gpus
