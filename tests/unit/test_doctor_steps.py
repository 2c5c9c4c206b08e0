"""What the doctor says comes next: mend, advise, one model, all."""

from dataclasses import replace

import pytest

from controller.doctor.steps import next_steps
from controller.policy.model import (
    Mode,
    ModelPolicy,
    Objective,
    Policy,
    ProbingPolicy,
    TritonPolicy,
    VariantPolicy,
)


def a_policy(*modes: Mode | None, mode: Mode = Mode.ACT, probes: bool = True) -> Policy:
    models = tuple(
        ModelPolicy(f"m{i}", Objective(0.06, 99.0), (VariantPolicy("a", f"a{i}", 0.9),), mode=own)
        for i, own in enumerate(modes)
    )
    probing = ProbingPolicy(while_advising=probes)
    return Policy(TritonPolicy("t:1", None, None), models, mode=mode, probing=probing)


def steps(policy: Policy | None, *, runs: bool = False, failed: bool = False) -> list[str]:
    return next_steps(policy, "p.yaml", {} if runs else None, failed=failed)


def test_first_what_is_broken_is_mended():
    assert steps(a_policy(None), failed=True) == ["mend what is marked fail, then ask again"]


def test_without_a_policy_one_is_written():
    (step,) = steps(None)
    assert "mode: advise" in step


def test_advice_comes_before_one_model_and_that_before_all():
    told = steps(a_policy(None, None, mode=Mode.ADVISE))
    assert "`governor run --policy p.yaml`" in told[0]
    assert "changes nothing" in told[0]
    order = [
        next(i for i, t in enumerate(told) if words in t)
        for words in (
            "governor advice",
            "`mode: act` of models.m0",
            "then all",
        )
    ]
    assert order == sorted(order)


def test_the_next_model_is_one_that_is_only_advised_on():
    told = steps(a_policy(Mode.ACT, None, mode=Mode.ADVISE), runs=True)
    assert any("as m0 did well" in t and "models.m1" in t for t in told)
    assert not any("governor run" in t for t in told)


@pytest.mark.parametrize("probes", [True, False])
def test_advice_that_would_know_little_is_told_so(probes):
    told = steps(a_policy(None, mode=Mode.ADVISE, probes=probes))
    assert any("while_advising" in t for t in told) is not probes


def test_where_all_are_acted_on_the_way_out_is_named():
    told = steps(a_policy(None, None), runs=True)
    assert len(told) == 1
    assert "governor release" in told[0]
    assert steps(replace(a_policy(None), mode=Mode.ACT))[0].startswith("`governor run")
