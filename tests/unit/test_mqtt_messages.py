"""What is said on the bus, and what is accepted from it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.interfaces.mqtt_messages import (
    MAX_COMMAND_BYTES,
    RefusedCommandError,
    Topics,
    encode,
    parse_command,
)

TOPICS = Topics("fleet/triton", "edge-7")


def refusal(payload: bytes | dict) -> RefusedCommandError:
    with pytest.raises(RefusedCommandError) as caught:
        parse_command(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return caught.value


def test_topics_have_the_documented_shape() -> None:
    assert TOPICS.status == "fleet/triton/edge-7/status"
    assert TOPICS.state("digits") == "fleet/triton/edge-7/models/digits/state"
    assert TOPICS.commands == "fleet/triton/edge-7/models/+/command"
    command = "fleet/triton/edge-7/models/digits/command"
    assert TOPICS.level_of(command) == "digits"
    assert TOPICS.result_of(command) == "fleet/triton/edge-7/models/digits/result"


@pytest.mark.parametrize(
    "topic",
    [
        "fleet/triton/edge-7/models/command",
        "fleet/triton/edge-7/models//command",
        "fleet/triton/edge-7/models/a/b/command",
        "fleet/triton/edge-8/models/a/command",
        "fleet/triton/edge-7/models/a/result",
    ],
)
def test_other_topics_are_no_commands(topic: str) -> None:
    assert TOPICS.level_of(topic) is None


@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_model_name_becomes_one_level_that_comes_back_from_a_command(name: str) -> None:
    level = TOPICS.level(name)
    assert not set(level) & set("/+#\0")
    assert TOPICS.level_of(f"{TOPICS.root}/models/{level}/command") == level


@pytest.mark.parametrize("prefix", ["", "a//b", "/a", "a/", "a/+", "#", "$SYS", "a\n"])
def test_a_prefix_that_is_no_topic_is_refused_with_its_setting_named(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"mqtt\.topic_prefix"):
        Topics(prefix, "n")


@pytest.mark.parametrize("node", ["", "a/b", "+", "a#", "\0"])
def test_a_node_that_is_no_level_is_refused_with_its_setting_named(node: str) -> None:
    with pytest.raises(ValueError, match=r"mqtt\.node"):
        Topics("p", node)


def test_a_topic_longer_than_mqtt_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        Topics("p", "n" * 40_000)


@pytest.mark.parametrize(
    "message",
    [
        {"id": "1", "command": "pin", "variant": "fast", "for_s": 60, "why": "maintenance"},
        {"id": 2, "command": "unpin"},
        {"command": "pause", "for_s": 0.5},
        {"id": None, "command": "resume"},
    ],
)
def test_a_good_command_is_taken_as_it_is(message: dict) -> None:
    command = parse_command(json.dumps(message).encode())
    assert command.model_dump(exclude_unset=True) == message


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"id": "7", "command": "reboot"}, "command"),
        ({"id": "7", "command": "pin"}, "'pin' needs one"),
        ({"id": "7", "command": "pause", "variant": "fast"}, "goes with 'pin'"),
        ({"id": "7", "command": "resume", "for_s": 5}, "takes neither"),
        ({"id": "7", "command": "pin", "variant": "a", "for_s": 0}, "for_s"),
        ({"id": "7", "command": "pin", "variant": "a", "for_s": "5"}, "for_s"),
        ({"id": "7", "command": "pin", "variant": "a", "for_s": 1e300}, "for_s"),
        ({"id": "7", "command": "pin", "variant": "x" * 257}, "variant"),
        ({"id": "7", "command": "pin", "variant": "a", "mode": "fast"}, "mode"),
        ({"id": "7"}, "command"),
    ],
)
def test_a_bad_command_is_refused_with_what_is_wrong_and_its_id(message: dict, told: str) -> None:
    error = refusal(message)
    assert told in str(error)
    assert error.sender_id == "7"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"pin",
        b"\xff\xfe",
        b"[]",
        b'"pin"',
        b"null",
        b"[" * 4000,
        b'{"id":true,"command":"x"}',
        b'{"command":"pin","variant":"a","for_s":NaN}',
        b"1e999",
    ],
)
def test_what_is_no_command_at_all_is_refused_without_an_id(payload: bytes) -> None:
    error = refusal(payload)
    assert error.sender_id is None
    assert str(error)


def test_a_command_beyond_the_size_limit_is_not_even_read() -> None:
    message = {"id": "7", "command": "pause", "why": "x" * MAX_COMMAND_BYTES}
    error = refusal(message)
    assert str(MAX_COMMAND_BYTES) in str(error)


@given(st.binary(max_size=200))
def test_no_payload_causes_anything_but_a_refusal(payload: bytes) -> None:
    try:
        parse_command(payload)
    except RefusedCommandError as error:
        assert len(str(error)) <= 1000  # noqa: PT017 - both outcomes are right


def test_numbers_that_json_lacks_become_null() -> None:
    state = {"p99_s": float("nan"), "load": [1.0, float("inf")], "note": "ok"}
    assert json.loads(encode(state)) == {"p99_s": None, "load": [1.0, None], "note": "ok"}


def test_a_message_that_contains_itself_is_an_error_and_no_endless_loop() -> None:
    state: dict = {"load": float("nan")}
    state["self"] = state
    with pytest.raises(ValueError, match="nested"):
        encode(state)
