"""What a policy says of a dispatcher, and what contradicts it."""

import pytest

from controller.policy.load import PolicyError, parse_policy
from controller.policy.model import DispatcherPolicy
from controller.policy.render import policy_to_yaml

TEXT = """
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  chat:
    objective: {latency: 80ms, percentile: 99}
    queue: {timeout: 60ms}
    dispatcher: {model: chat_late, key_file: /etc/chat.key}
    variants:
      best: {model: chat_best, quality: 0.9}
      fast: {model: chat_fast, quality: 0.8}
  other:
    objective: {latency: 80ms, percentile: 99}
    dispatcher: {model: other_late, key_file: /etc/other.key}
    variants:
      only: {model: other_only, quality: 0.9}
"""


def test_it_is_read_and_written_out_as_it_is():
    policy = parse_policy(TEXT, "p.yaml")
    assert policy.models[0].dispatcher == DispatcherPolicy("chat_late", "/etc/chat.key")
    assert parse_policy(policy_to_yaml(policy), "p.yaml").models == policy.models


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model: chat_late", "model: chat_best", "is a variant of 'chat'"),
        ("model: other_late", "model: chat_fast", "is a variant of 'chat'"),
        ("model: other_late", "model: chat_late", "the dispatcher of 'chat', too"),
        ("model: chat_late", "model: other", "is a model of this policy"),
        ("/etc/chat.key", "chat.key", "an absolute path"),
        ("timeout: 60ms", "timeout: 60ms, max_delay: 1ms", "wait in its own"),
        ("timeout: 60ms", "priority_levels: 3", "wait in its own"),
        ("best: {", "dispatcher: {", "what the dispatcher is called"),
        ("quality: 0.8", "quality: 0.8, max_instances: 2", "does nothing beside a dispatcher"),
        (", key_file: /etc/chat.key", "", "key_file"),
        ("{model: chat_late, key_file: /etc/chat.key}", "late", ""),
    ],
)
def test_a_contradiction_is_told_where_it_stands(old, new, words):
    with pytest.raises(PolicyError) as raised:
        parse_policy(TEXT.replace(old, new, 1), "p.yaml")
    assert words in str(raised.value).replace('"', "'"), raised.value
    assert "p.yaml:" in str(raised.value)
