"""Batch profiles in a policy: what they mean, and what is wrong with one."""

from __future__ import annotations

import pytest

from controller.policy.compare import changes
from controller.policy.load import PolicyError, parse_policy
from controller.policy.model import VariantPolicy
from controller.policy.render import policy_to_yaml

POLICY = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    client_max_batch: 2
    variants:
      wide:
        model: digits_wide
        quality: 0.927
        memory: {gpu: 1GiB}
        max_batch: 8
        profiles:
          b2: {model: digits_wide_b2, max_batch: 2}
          b4: {model: digits_wide_b4, max_batch: 4}
      narrow: {model: digits_narrow, quality: 0.884}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_a_profile_is_a_variant_of_the_same_quality_and_memory() -> None:
    variants = parse_policy(POLICY, "p.yaml").models[0].variants
    gib = 1024**3
    assert variants == (
        VariantPolicy("wide", "digits_wide", 0.927, None, gib, 8),
        VariantPolicy("wide.b2", "digits_wide_b2", 0.927, None, gib, 2, "wide"),
        VariantPolicy("wide.b4", "digits_wide_b4", 0.927, None, gib, 4, "wide"),
        VariantPolicy("narrow", "digits_narrow", 0.884),
    )


def test_written_out_it_reads_back_as_the_same_and_differences_name_the_profile() -> None:
    policy = parse_policy(POLICY, "p.yaml")
    again = parse_policy(policy_to_yaml(policy), "again.yaml")
    assert again.models == policy.models
    other = parse_policy(POLICY.replace("max_batch: 4", "max_batch: 8"), "p.yaml")
    found = [(one.path, one.before, one.after) for one in changes(policy, other)]
    assert found == [("models.digits.variants.wide.profiles.b4.max_batch", 4, 8)]


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("max_batch: 2}", "max_batch: 1}", "14:50", "is less than client_max_batch, 2"),
        ("max_batch: 2}", "max_batch: 0}", "14:50", "at least 1"),
        ("b2: {model: digits_wide_b2, max_batch: 2}", "b2: {model: x}", "14:11", "is missing"),
        ("        max_batch: 8\n", "", "12:9", "need the variant's own max_batch"),
        ("max_batch: 8", "max_batch: 1", "12:20", "is less than client_max_batch, 2"),
        ("digits_wide_b4", "digits_wide_b2", "15:23", "is the variant 'wide.b2' already"),
        ("digits_wide_b4", "digits_wide", "15:23", "is the variant 'wide' already"),
        ("digits_wide_b4", "digits", "15:23", "the alias would point at itself"),
        ("      narrow:", "      wide.b4:", "15:11", "as is another variant"),
        ("quality: 0.927\n", "quality: 0.927\n        profile: 4\n", "11:9", "unknown key"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said_in_its_place(
    old: str, new: str, where: str, what: str
) -> None:
    assert old in POLICY
    found = problems(POLICY.replace(old, new, 1))
    assert len(found) == 1, found
    assert found[0].startswith(f"p.yaml:{where}:"), found
    assert what in found[0].replace('"', "'"), found


def test_two_profiles_of_one_name_are_refused() -> None:
    text = POLICY.replace(
        "      narrow: {model: digits_narrow, quality: 0.884}\n",
        "      wide.b4:\n"
        "        {model: x, quality: 0.5, max_batch: 8, profiles: {c: {model: y, max_batch: 2}}}\n",
    ).replace("          b4: {", "          b4.c: {")
    found = problems(text)
    assert len(found) == 1, found
    assert "is called 'wide.b4.c' everywhere else, as is a profile of 'wide'" in found[0].replace(
        '"', "'"
    )
