"""What only a real mosquitto can tell: access lists, passwords, TLS, persistence, floods."""

import asyncio
import dataclasses
import gc
import shutil
import subprocess
import warnings
from pathlib import Path

import aiomqtt
import pytest
from certificates import Authority
from mqtt_support import MOSQUITTO, QUICK, Mosquitto, free_port, running_bus, until, watching

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
]
needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificates"
)
PASSWORDS = shutil.which("mosquitto_passwd")


@pytest.fixture
async def start(tmp_path: Path):
    brokers = []

    async def start_with(settings: str) -> Mosquitto:
        broker = Mosquitto(free_port(), tmp_path, settings)
        brokers.append(broker)
        await broker.start()
        return broker

    yield start_with
    for broker in brokers:
        await broker.stop()


@pytest.fixture
def collected():
    """Collect garbage here: the MQTT library leaves a socket to it when a handshake fails."""
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


def passwords(folder: Path) -> str:
    """Write a password file for edge-7 and operator; return mosquitto's settings for it."""
    assert PASSWORDS is not None
    file = folder / "passwords"
    file.touch(mode=0o600)
    for user in ("edge-7", "operator"):
        subprocess.run([PASSWORDS, "-b", file, user, f"{user}-secret"], check=True)
    return f"allow_anonymous false\npassword_file {file}\n"


async def test_a_login_is_taken_from_the_file_also_after_it_was_renewed(start, tmp_path) -> None:
    broker = await start(passwords(tmp_path))
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    login = {"username": "edge-7", "password_file": str(secret)}
    async with running_bus(broker.port, **login) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert "uthori" in bus.bus.health()["error"]  # "Not authorized", however it is spelled
        secret.write_text("edge-7-secret\n")
        await bus.up()
        assert bus.bus.health()["error"] is None


async def test_a_node_without_the_right_to_commands_still_tells_its_state(start, tmp_path) -> None:
    rights = tmp_path / "acl"
    rights.write_text(
        "user edge-7\ntopic write triton-governor/edge-7/status\n"
        "topic write triton-governor/edge-7/models/+/state\n"
        "user operator\ntopic readwrite triton-governor/#\n"
    )
    broker = await start(passwords(tmp_path) + f"acl_file {rights}")
    secret = tmp_path / "secret"
    secret.write_text("edge-7-secret")
    operator = {"username": "operator", "password": "operator-secret"}
    async with (
        watching(broker.port, **operator) as watcher,
        running_bus(broker.port, username="edge-7", password_file=str(secret)) as bus,
    ):
        await watcher.hears("status", lambda status: status["state"] == "online")
        await watcher.hears("models/digits/state")
        await watcher.command({"id": "1", "command": "pause"})
        await asyncio.sleep(0.3)
        assert bus.daemon.asked == []
        assert watcher.said("models/digits/result") == []


async def test_a_retained_state_outlives_the_broker_with_persistence(start, tmp_path) -> None:
    broker = await start(
        f"allow_anonymous true\npersistence true\npersistence_location {tmp_path}/\n"
        "autosave_interval 1\nautosave_on_changes true"
    )
    async with running_bus(broker.port) as bus:
        await bus.up()
        await asyncio.sleep(0.3)
        await broker.stop()
        bus.bus.publish_state([])  # left the policy while the broker was away
        await broker.start()
        await bus.up()
        await asyncio.sleep(0.3)
    async with watching(broker.port) as late:
        await late.hears("status")
        await asyncio.sleep(0.2)
        assert late.said("models/digits/state") == []


async def test_a_killed_client_s_will_is_said_and_a_new_one_replaces_it(start) -> None:
    broker = await start("allow_anonymous true")
    async with watching(broker.port) as watcher:
        async with running_bus(broker.port) as bus:
            await bus.up()
            await bus.lose_connection()
            await watcher.hears("status", lambda status: status["state"] == "offline")
        async with running_bus(broker.port) as bus:
            await bus.up()
            await until(lambda: watcher.said("status")[-1]["state"] == "online")


async def test_a_second_session_under_our_name_leaves_online_behind(start) -> None:
    """A connection that is half open when we come back: its will must not be the last word."""
    broker = await start("allow_anonymous true")
    will = aiomqtt.Will(
        "triton-governor/edge-7/status", b'{"state": "offline"}', qos=1, retain=True
    )
    old = aiomqtt.Client(
        "127.0.0.1", broker.port, identifier="triton-governor-edge-7", will=will, timeout=2
    )
    await old.__aenter__()
    async with watching(broker.port) as watcher, running_bus(broker.port) as bus:
        await bus.up()
        await watcher.hears("status", lambda status: status["state"] == "offline")
        await until(lambda: watcher.said("status")[-1]["state"] == "online")
    assert old._disconnected.exception() is not None  # the broker closed it
    old._client.reinitialise()


async def test_a_flood_of_commands_is_hung_up_on_and_found_in_the_health(start) -> None:
    broker = await start("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0")
    # It stays hung up until this test has looked, however slowly it gets to run.
    timing = dataclasses.replace(
        QUICK, flood_messages=100, flood_window_s=10.0, first_retry_s=60.0, longest_retry_s=60.0
    )
    async with watching(broker.port) as watcher, running_bus(broker.port, timing) as bus:
        await bus.up()
        await asyncio.gather(*(watcher.command({"command": "unpin"}) for _ in range(300)))
        await until(lambda: "more than 100 messages" in (bus.bus.health()["error"] or ""))
        assert len(bus.daemon.asked) <= timing.command_burst + 20
        await watcher.hears("status", lambda status: status["state"] == "offline")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate for a name or address."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    ask = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    extensions = ("-addext", f"subjectAltName={name}")
    subprocess.run(
        ["openssl", *ask.split(), *extensions, "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return key, cert


@needs_openssl
@pytest.mark.usefixtures("collected")
async def test_tls_verifies_the_broker_by_the_ca_and_its_name(start, tmp_path) -> None:
    key, cert = certificate(tmp_path, "IP:127.0.0.1")
    _, stranger = certificate(tmp_path, "DNS:elsewhere.example")
    broker = await start(f"allow_anonymous true\ncertfile {cert}\nkeyfile {key}")
    async with running_bus(broker.port, tls_ca_file=str(cert)) as bus:
        await bus.up()
    async with running_bus(broker.port, tls_ca_file=str(stranger)) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert "certificate" in bus.bus.health()["error"].lower()
        assert bus.bus.health()["up"] is False


@needs_openssl
@pytest.mark.usefixtures("collected")
async def test_tls_refuses_a_trusted_broker_with_another_name(start, tmp_path) -> None:
    key, cert = certificate(tmp_path, "DNS:elsewhere.example")
    broker = await start(f"allow_anonymous true\ncertfile {cert}\nkeyfile {key}")
    async with running_bus(broker.port, tls_ca_file=str(cert)) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert "127.0.0.1" in bus.bus.health()["error"]
        assert bus.bus.health()["up"] is False


@needs_openssl
@pytest.mark.usefixtures("collected")
async def test_a_broker_that_asks_is_told_who_we_are(start, tmp_path) -> None:
    authority = Authority(tmp_path / "certificates")
    authority.issue("broker", "127.0.0.1")
    authority.issue("us", "governor.example")
    cert, key = authority.files("broker").values()
    broker = await start(
        f"allow_anonymous true\nrequire_certificate true\ncafile {authority.file}\n"
        f"certfile {cert}\nkeyfile {key}"
    )
    ours = {f"tls_{name}": file for name, file in authority.files("us").items()}
    async with running_bus(broker.port, tls_ca_file=str(authority.file), **ours) as bus:
        await bus.up()
    async with running_bus(broker.port, tls_ca_file=str(authority.file)) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert bus.bus.health()["up"] is False
    swapped = {**ours, "tls_key_file": key}
    async with running_bus(broker.port, tls_ca_file=str(authority.file), **swapped) as bus:
        await until(lambda: bus.bus.health()["error"] is not None)
        assert "mqtt.tls_key_file" in bus.bus.health()["error"]
