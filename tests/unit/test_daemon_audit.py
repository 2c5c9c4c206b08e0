"""Who gave a command is kept with it, whether it was carried out or refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from controller.daemon.control import DaemonControl
from controller.daemon.operator import OperatorWishes
from controller.interfaces.control import Caller
from controller.policy.load import parse_policy

ADA = Caller("ada", "socket", 1000, 100, 4711)
POLICY = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    variants:
      wide: {model: digits_wide, quality: 0.9}
"""


class Journal:
    def __init__(self) -> None:
        self.events: list[tuple[str, str | None, dict[str, Any]]] = []

    def event(self, kind, model, message, data) -> None:
        self.events.append((kind, model, data))

    def save_learned(self, key, value) -> None:
        self.saved = value


@pytest.fixture
def daemon() -> SimpleNamespace:
    return SimpleNamespace(
        policy=parse_policy(POLICY, "p.yaml"),
        wishes=OperatorWishes(lambda: 0.0),
        journal=Journal(),
        readings={},
    )


async def give(daemon, command: str, *names: str | None, **given: Any) -> bool:
    control = DaemonControl(daemon)
    return (await getattr(control, command)(*names, **given, who=ADA)).ok


@pytest.mark.parametrize(
    ("command", "names", "given", "before"),
    [
        ("pin", ("digits", "wide"), {"for_s": None, "why": "an exam"}, None),
        ("unpin", ("digits",), {}, "pin"),
        ("pause", (None,), {"for_s": 60.0, "why": "an exam"}, None),
        ("resume", (None,), {}, "pause"),
    ],
)
async def test_a_command_is_kept_with_user_group_and_process(daemon, command, names, given, before):
    if before == "pin":
        daemon.wishes.pin("digits", "wide", None, None, "bob")
    if before == "pause":
        daemon.wishes.pause(None, None, None, "bob")
    assert await give(daemon, command, *names, **given)
    (event,) = daemon.journal.events
    assert event == (
        command,
        names[0],
        {
            "who": "ada",
            "via": "socket",
            "uid": 1000,
            "gid": 100,
            "pid": 4711,
            "why": given.get("why"),
        },
    )


@pytest.mark.parametrize(
    ("command", "names", "given"),
    [
        ("pin", ("digits", "huge"), {"for_s": None, "why": None}),
        ("unpin", ("digits",), {}),
        ("pause", ("nobody",), {"for_s": None, "why": None}),
        ("resume", (None,), {}),
    ],
)
async def test_a_command_that_is_refused_is_kept_as_well(daemon, command, names, given):
    assert not await give(daemon, command, *names, **given)
    ((kind, model, data),) = daemon.journal.events
    assert (kind, model) == ("refused", names[0])
    assert (data["who"], data["uid"], data["pid"]) == ("ada", 1000, 4711)


async def test_the_log_tells_it_in_a_line(daemon, caplog):
    with caplog.at_level("INFO", logger="governor"):
        await give(daemon, "pin", "digits", "wide", for_s=None, why="an exam")
    assert "pin of digits by ada, uid 1000, gid 100, pid 4711: done" in caplog.text
    assert "an exam" in caplog.text
