"""What a policy says of single GPUs: budgets, and where variants may go."""

import pytest

from controller.policy.load import PolicyError, parse_policy
from controller.policy.render import policy_to_yaml

GIB = 1 << 30
TEXT = """
version: 1
triton: {grpc: 127.0.0.1:8001}
gpu: {devices: [0, 1, 2]}
memory: {gpu_budget: 20GiB, gpu_budgets: {1: 10GiB}}
models:
  chat:
    objective: {latency: 80ms, percentile: 99}
    gpus: auto
    variants:
      best:
        model: chat_best
        quality: 0.9
        max_batch: 8
        profiles: {b4: {model: chat_best_b4, max_batch: 4}}
      fast: {model: chat_fast, quality: 0.8, gpus: [1, 2]}
  other:
    objective: {latency: 80ms, percentile: 99}
    variants:
      only: {model: other_only, quality: 0.9}
"""


def test_a_variant_goes_where_it_says_or_its_model_or_stays_as_configured():
    policy = parse_policy(TEXT, "p.yaml")
    assert {v.model: v.gpus for m in policy.models for v in m.variants} == {
        "chat_best": (),
        "chat_best_b4": (),
        "chat_fast": (1, 2),
        "other_only": None,
    }
    assert [policy.memory.gpu_limit_bytes(gpu) for gpu in range(3)] == [
        20 * GIB,
        10 * GIB,
        20 * GIB,
    ]
    assert policy.memory.limits_gpus


def test_it_is_written_out_as_it_is_read():
    policy = parse_policy(TEXT, "p.yaml")
    again = parse_policy(policy_to_yaml(policy), "p.yaml")
    assert again.models == policy.models
    assert again.memory == policy.memory


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gpus: auto", "gpus: any", "must be `auto` or a list"),
        ("gpus: auto", "gpus: []", "must be `auto` or a list"),
        ("gpus: auto", "gpus: [0, 0]", "twice"),
        ("gpus: [1, 2]", "gpus: [1, 7]", "names GPU 7, which gpu.devices does not"),
        ("{1: 10GiB}", "{7: 10GiB}", "names GPU 7, which gpu.devices does not"),
        ("{1: 10GiB}", "{first: 10GiB}", "NVML's index"),
        ("{1: 10GiB}", "{}", "at least one entry"),
        ("devices: [0, 1, 2]", "source: none", "`source: none` watches none"),
        ("[0, 1, 2]", "[0, 1, 2, {model: x}]", "list of NVML indices"),
        ("model: other_only", "model: chat_fast", "on other GPUs"),
        ("model: other_only", "max_instances: 2, model: chat_fast", "another max_instances"),
    ],
)
def test_what_cannot_be_meant_is_refused(old, new, words):
    with pytest.raises(PolicyError, match=words):
        parse_policy(TEXT.replace(old, new), "p.yaml")


def test_where_gpus_are_told_apart_no_one_of_them_has_to_hold_everything():
    declared = TEXT.replace("quality: 0.9}", "quality: 0.9, memory: {gpu: 15GiB}}").replace(
        "quality: 0.8,", "quality: 0.8, memory: {gpu: 15GiB},"
    )
    declared = declared.replace("quality: 0.9\n", "quality: 0.9\n        memory: {gpu: 16GiB}\n")
    assert parse_policy(declared, "p.yaml").models
    plain = declared.replace("gpus: auto", "weight: 1").replace(", gpus: [1, 2]", "")
    with pytest.raises(PolicyError, match="is too small"):
        parse_policy(plain.replace(", gpu_budgets: {1: 10GiB}", ""), "p.yaml")
