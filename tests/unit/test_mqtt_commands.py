"""From a message to the daemon's answer, with the daemon's port played by a recorder."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from controller.interfaces.control import CommandResult
from controller.interfaces.mqtt_commands import CommandTaker
from controller.interfaces.mqtt_messages import Topics


class Daemon:
    """Records what it was asked; `pin` can be told to fail or hang."""

    def __init__(self, pin: Callable[[], Any] | None = None) -> None:
        self.asked: list[tuple] = []
        self._pin = pin

    async def pin(self, model, variant, *, for_s, why, who):
        self.asked.append(("pin", model, variant, for_s, why, str(who)))
        if self._pin is not None:
            await self._pin()
        return CommandResult(ok=True, message=f"{model} stays on {variant}")

    async def unpin(self, model, *, who):
        self.asked.append(("unpin", model, str(who)))
        return CommandResult(ok=True, message="chosen again")

    async def pause(self, model, *, for_s, why, who):
        self.asked.append(("pause", model, for_s, why, str(who)))
        return CommandResult(ok=True, message="paused")

    async def release(self, model, *, on, why, who):
        self.asked.append(("release", model, on, why, str(who)))
        return CommandResult(ok=True, message="released")

    async def adopt(self, model, *, who):
        self.asked.append(("adopt", model, str(who)))
        return CommandResult(ok=True, message="adopted")

    async def resume(self, model, *, who):
        self.asked.append(("resume", model, str(who)))
        return CommandResult(ok=False, message="it was not paused")


class Now:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def taker(daemon: Daemon, now: Now | None = None, **settings: Any) -> CommandTaker:
    settings = {"per_s": 2.0, "burst": 3, "deadline_s": 30.0, **settings}
    names = ["digits", "a/b"]
    return CommandTaker(daemon, Topics("p", "n"), lambda: names, now_s=now or Now(), **settings)


def command(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        (
            {"command": "pin", "variant": "wide", "for_s": 5, "why": "test"},
            ("pin", "digits", "wide", 5, "test", "mqtt"),
        ),
        ({"command": "unpin"}, ("unpin", "digits", "mqtt")),
        ({"command": "pause", "for_s": 2.5}, ("pause", "digits", 2.5, None, "mqtt")),
        ({"command": "resume"}, ("resume", "digits", "mqtt")),
        ({"command": "release"}, ("release", "digits", None, None, "mqtt")),
        (
            {"command": "release", "variant": "wide", "why": "leaving"},
            ("release", "digits", "wide", "leaving", "mqtt"),
        ),
        ({"command": "adopt"}, ("adopt", "digits", "mqtt")),
    ],
)
async def test_each_command_reaches_the_daemon_with_what_it_carries(fields, asked) -> None:
    daemon = Daemon()
    sender_id, result = await taker(daemon).obey("digits", command(id="7", **fields))
    assert daemon.asked == [asked]
    assert sender_id == "7"
    assert result.message


async def test_the_daemon_s_refusal_is_passed_on() -> None:
    _, result = await taker(Daemon()).obey("digits", command(command="resume"))
    assert result == CommandResult(ok=False, message="it was not paused")


async def test_a_model_whose_name_needs_encoding_is_found() -> None:
    daemon = Daemon()
    await taker(daemon).obey("a%2Fb", command(command="unpin"))
    assert daemon.asked == [("unpin", "a/b", "mqtt")]


@pytest.mark.parametrize("level", ["DIGITS", "a", "%64igits"])
async def test_an_unknown_model_is_refused_without_asking_the_daemon(level: str) -> None:
    daemon = Daemon()
    _, result = await taker(daemon).obey(level, command(command="unpin"))
    assert not result.ok
    assert "no model" in result.message
    assert daemon.asked == []


async def test_more_commands_than_allowed_are_refused_until_time_has_passed() -> None:
    daemon, now = Daemon(), Now()
    bus = taker(daemon, now)
    results = [await bus.obey("digits", command(command="unpin")) for _ in range(5)]
    assert [result.ok for _, result in results] == [True] * 3 + [False] * 2
    assert "2 commands a second" in results[-1][1].message
    now.s += 0.5
    _, result = await bus.obey("digits", command(command="unpin"))
    assert result.ok
    assert len(daemon.asked) == 4


async def test_a_daemon_that_fails_is_told_to_the_sender_and_raises_nothing() -> None:
    async def fail() -> None:
        raise RuntimeError("no such luck")

    _, result = await taker(Daemon(fail)).obey("digits", command(command="pin", variant="a"))
    assert result == CommandResult(ok=False, message="failed: RuntimeError: no such luck")


async def test_a_daemon_that_never_answers_is_given_up_after_the_deadline() -> None:
    bus = taker(Daemon(asyncio.Event().wait), deadline_s=0.01)
    _, result = await bus.obey("digits", command(command="pin", variant="a"))
    assert not result.ok
    assert "did not answer" in result.message


async def test_a_daemon_that_stops_refuses_what_still_comes():
    daemon = Daemon()
    one = taker(daemon)
    one.close()
    sender_id, result = await one.obey("digits", command(command="unpin", id=7))
    assert (sender_id, result.ok) == (7, False)
    assert "stops" in result.message
    assert daemon.asked == []


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "release", "for_s": 5},  # it lasts until `adopt`
        {"command": "adopt", "variant": "wide"},
        {"command": "adopt", "why": "now"},
    ],
)
async def test_a_release_takes_no_time_and_an_adoption_nothing(fields) -> None:
    daemon = Daemon()
    _, result = await taker(daemon).obey("digits", command(**fields))
    assert not result.ok
    assert daemon.asked == []
