"""The bus's words: topics, commands and their checks.

Owns what is said over MQTT and what is accepted. It must not connect to anything.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_COMMAND_BYTES = 4096
_MAX_TOPIC_BYTES = 65_535  # MQTT's own
_LEVEL = re.compile(r"[^/+#\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Topics:
    """Where things are said, for one node.

    Raises:
        ValueError: the prefix or the node cannot be part of a topic; tells what to change.
    """

    prefix: str  # may have several levels
    node: str

    def __post_init__(self) -> None:
        levels = self.prefix.split("/")
        if not all(map(_LEVEL.fullmatch, levels)) or self.prefix.startswith("$"):
            raise ValueError(
                f"mqtt.topic_prefix {self.prefix!r} cannot begin a topic: no '+', '#', empty "
                "level or control character, and no '$' at its start"
            )
        if _LEVEL.fullmatch(self.node) is None:
            raise ValueError(
                f"mqtt.node {self.node!r} cannot be a level of a topic: no '/', '+', '#' or "
                "control character, and not empty"
            )
        if len(self.root.encode(errors="replace")) > _MAX_TOPIC_BYTES // 2:
            raise ValueError("mqtt.topic_prefix and mqtt.node are too long for a topic")

    @property
    def root(self) -> str:
        """Return what all topics of this node begin with."""
        return f"{self.prefix}/{self.node}"

    @property
    def status(self) -> str:
        """Return the topic of the node's own state."""
        return f"{self.root}/status"

    @property
    def commands(self) -> str:
        """Return the filter that matches the commands of all models."""
        return f"{self.root}/models/+/command"

    def level(self, model: str) -> str:
        """Return a model's name as a level: percent-encoded where a topic needs it."""
        return quote(model, safe=" :@")

    def state(self, model: str) -> str:
        """Return the topic of a model's state."""
        return f"{self.root}/models/{self.level(model)}/state"

    def result_of(self, command_topic: str) -> str:
        """Return where the answer to a command goes: beside it."""
        return command_topic.removesuffix("command") + "result"

    def level_of(self, command_topic: str) -> str | None:
        """Return the level that names the model, still encoded; None: not a command topic."""
        head, tail = f"{self.root}/models/", "/command"
        if not (command_topic.startswith(head) and command_topic.endswith(tail)):
            return None
        level = command_topic[len(head) : -len(tail)]
        return level if _LEVEL.fullmatch(level) else None


class Command(BaseModel):
    """One command, as it was sent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, Field(max_length=128)] | int | None = None
    command: Literal["pin", "unpin", "pause", "resume", "release", "adopt"]
    variant: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    for_s: Annotated[float, Field(gt=0, le=366 * 86_400, allow_inf_nan=False)] | None = None
    why: Annotated[str, Field(max_length=500)] | None = None

    @model_validator(mode="after")
    def _only_what_it_uses(self) -> Self:
        if self.command != "release" and (self.command == "pin") != (self.variant is not None):
            raise ValueError("'variant' goes with 'pin' and 'release', and 'pin' needs one")
        if self.command == "release" and self.for_s is not None:
            raise ValueError("'release' takes no 'for_s': it lasts until 'adopt'")
        takes_none = self.command in {"unpin", "resume", "adopt"}
        if takes_none and (self.for_s is not None or self.why is not None):
            raise ValueError(f"'{self.command}' takes neither 'for_s' nor 'why'")
        return self


class RefusedCommandError(Exception):
    """A payload is no command; the message says why, `sender_id` whose it is if that is known."""

    def __init__(self, message: str, sender_id: str | int | None = None) -> None:
        super().__init__(message)
        self.sender_id = sender_id


def parse_command(payload: bytes) -> Command:
    """Read a command.

    Raises:
        RefusedCommandError: with all that is wrong in one sentence.
    """
    if len(payload) > MAX_COMMAND_BYTES:
        raise RefusedCommandError(
            f"a command has at most {MAX_COMMAND_BYTES} bytes, and this has {len(payload)}"
        )
    try:
        return Command.model_validate_json(payload)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, item['loc'])) or 'command'}: {item['msg']}"
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise RefusedCommandError("; ".join(problems)[:1000], _id_of(payload)) from None


def _id_of(payload: bytes) -> str | int | None:
    """Return the id of an otherwise wrong command, so that its sender can match the answer."""
    try:
        found = json.loads(payload)["id"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    if isinstance(found, str):
        return found[:128]
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def encode(message: dict[str, Any]) -> bytes:
    """Write a message as JSON. What JSON cannot say (NaN, infinity) becomes null.

    Raises:
        TypeError: a value that is not JSON-ready.
        ValueError: it refers to itself.
    """
    try:
        text = json.dumps(message, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(message), allow_nan=False, separators=(",", ":"))
    return text.encode()


def _finite(value: Any, depth: int = 0) -> Any:
    if depth > 32:
        raise ValueError("nested deeper than a message should be")
    if isinstance(value, dict):
        return {key: _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, depth + 1) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
