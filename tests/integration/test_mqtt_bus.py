"""What the bus does on a working broker: always a small one, the real mosquitto where installed."""

import asyncio
import dataclasses
import time

import pytest
from mqtt_support import (
    MOSQUITTO,
    QUICK,
    AmqttBroker,
    Mosquitto,
    free_port,
    running_bus,
    until,
    watching,
)

from controller import __version__

without_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
ONLINE = {"state": "online", "version": __version__}


@pytest.fixture(
    params=["amqtt", pytest.param("mosquitto", marks=[pytest.mark.broker, without_mosquitto])]
)
async def broker(request: pytest.FixtureRequest, tmp_path):
    port = free_port()
    broker = {"amqtt": AmqttBroker, "mosquitto": Mosquitto}[request.param](port, tmp_path)
    await broker.start()
    yield broker
    await broker.stop()


async def test_who_comes_later_finds_status_and_states_retained(broker) -> None:
    async with running_bus(broker.port) as bus:
        await bus.up()
        await asyncio.sleep(0.2)  # by then everything was said, and only what is retained is heard
        async with watching(broker.port) as watcher:
            assert await watcher.hears("status") == ONLINE
            assert await watcher.hears("models/digits/state") == {
                "name": "digits",
                "variant": "wide",
            }
            assert all(retained for _, _, retained in watcher.seen[:2])
    assert bus.bus.health() == {"up": False, "broker": f"127.0.0.1:{broker.port}", "error": None}


async def test_a_stop_says_offline_and_keeps_the_will_back(broker) -> None:
    async with watching(broker.port) as watcher:
        async with running_bus(broker.port) as bus:
            await bus.up()
            await bus.bus.stop()
            assert bus.task.done()
            assert bus.task.exception() is None
        gone = {"state": "offline", "version": __version__, "reason": "stopped"}
        assert await watcher.hears("status", lambda status: status["state"] == "offline") == gone
        await asyncio.sleep(0.3)
        assert watcher.said("status")[-1] == gone


async def test_a_lost_connection_makes_the_broker_say_offline(broker) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        await bus.up()
        await bus.lose_connection()
        said = await watcher.hears("status", lambda status: status["state"] == "offline")
        assert said["reason"] == "connection lost"


async def test_commands_get_their_results_by_id(broker) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        await bus.up()
        assert await watcher.ask(id="1", command="pin", variant="narrow", for_s=5) == {
            "id": "1",
            "ok": True,
            "message": "digits stays on narrow",
        }
        for number, name in enumerate(("unpin", "pause", "resume"), start=2):
            assert (await watcher.ask(id=number, command=name))["ok"] is True
        assert bus.daemon.asked == [
            ("pin", "digits", "narrow"),
            ("unpin", "digits"),
            ("pause", "digits"),
            ("resume", "digits"),
        ]
    async with watching(broker.port) as late:
        await late.hears("status")
        await asyncio.sleep(0.2)
        assert late.said("models/digits/result") == []  # results are not retained


async def test_a_retained_command_is_ignored_also_after_a_reconnect(broker) -> None:
    async with watching(broker.port) as watcher:
        await watcher.command({"id": "old", "command": "pause"}, retain=True)
        async with running_bus(broker.port) as bus:
            await bus.up()
            # Its answer would have come before the one to this.
            await watcher.ask(id="new", command="unpin")
            assert bus.daemon.asked == [("unpin", "digits")]


@pytest.mark.parametrize(
    "payload", [b"", b"\xff\x00", b"[" * 3000, b"x" * 100_000, b'{"command": "reboot"}']
)
async def test_garbage_is_answered_and_the_bus_goes_on(broker, payload: bytes) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        await bus.up()
        await watcher.command(payload)
        if payload:  # a broker may drop an empty one
            result = await watcher.hears("models/digits/result")
            assert result["ok"] is False
            assert "refused" in result["message"]
        assert (await watcher.ask(id="after", command="unpin"))["ok"] is True
        assert bus.bus.health()["up"] is True


async def test_a_command_for_a_model_that_is_not_here_is_refused(broker) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        await bus.up()
        result = await watcher.ask("other", id="7", command="unpin")
        assert result["ok"] is False
        assert bus.daemon.asked == []


async def test_a_change_is_said_a_sameness_only_now_and_then_and_the_newest_wins(broker) -> None:
    timing = dataclasses.replace(QUICK, state_every_s=0.3, repeat_every_s=1.0)
    async with watching(broker.port) as watcher, running_bus(broker.port, timing) as bus:
        await bus.up()
        await watcher.hears("models/digits/state")
        began_s = time.monotonic()
        for number in range(60):
            bus.bus.publish_state([{"name": "digits", "number": number}])
            await asyncio.sleep(0.01)
        await watcher.hears("models/digits/state", lambda state: state.get("number") == 59)
        took_s = time.monotonic() - began_s
        assert len(watcher.said("models/digits/state")) <= took_s / 0.3 + 2
        count = len(watcher.said("models/digits/state"))
        await until(lambda: len(watcher.said("models/digits/state")) > count)
        assert watcher.said("models/digits/state")[-1] == {"name": "digits", "number": 59}


async def test_a_model_that_left_the_policy_leaves_the_bus(broker) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        await watcher.hears("models/digits/state")
        bus.bus.publish_state([])
        await watcher.hears("models/digits/state", lambda state: state is None)


async def test_a_state_that_is_not_json_is_reported_and_the_others_are_said(broker) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        bus.bus.publish_state([{"name": "bad", "value": object()}, {"name": "good"}])
        await watcher.hears("models/good/state")
        await until(lambda: bus.bus.health()["error"] is not None)
        assert "models/bad/state" in bus.bus.health()["error"]
        assert bus.bus.health()["up"] is True
        bus.bus.publish_state([{"name": "good"}])
        await until(lambda: bus.bus.health()["error"] is None)


async def test_a_hundred_models_are_said_within_seconds(broker) -> None:
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        bus.bus.publish_state([{"name": f"m{number}"} for number in range(100)])
        await watcher.hears("models/m99/state")


async def test_a_broker_that_comes_late_and_goes_away_gets_everything_again(broker) -> None:
    await broker.stop()
    async with running_bus(broker.port) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert bus.bus.health()["up"] is False
        await broker.start()
        await bus.up()
        assert bus.bus.health()["error"] is None
        await broker.stop()
        await until(lambda: not bus.bus.health()["up"])
        bus.bus.publish_state([{"name": "digits", "variant": "meanwhile"}])
        await broker.start()
        async with watching(broker.port) as watcher:
            assert await watcher.hears("status", lambda status: status == ONLINE)
            assert (
                await watcher.hears(
                    "models/digits/state", lambda state: state.get("variant") == "meanwhile"
                )
            ) is not None
            assert (await watcher.ask(id="after", command="unpin"))["ok"] is True
