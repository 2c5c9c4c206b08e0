"""`governor install-service` and `uninstall-service` on a real systemd, and several services."""

import json
import time

import pytest
from machine import GOVERNOR, POLICY, UNIT, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(180, func_only=True)]

SECRET = "only-root-may-read-this"  # noqa: S105 - not one
# Listens once as a broker would, and keeps what it is told.
BROKER = """\
import socket
with socket.create_server(("127.0.0.1", 1883)) as server:
    open("/run/broker.ready", "w").close()
    said = server.accept()[0].recv(4096)
    open("/run/broker.told", "w").write(ascii(said))
"""


def test_a_run_does_what_its_dry_run_tells_and_uninstalling_leaves_policy_and_state(
    bare: Machine,
) -> None:
    before = bare.files()
    words = ("install-service", "--policy", "/root/policy.yaml", "--start")
    would = bare.governor(*words, "--dry-run").stdout.splitlines()
    assert bare.files() == before
    did = bare.governor(*words).stdout.splitlines()
    assert [line.removeprefix("would").strip() for line in would] == [
        line.removeprefix("done").strip() for line in did
    ]
    again = bare.governor(*words).stdout.splitlines()
    assert all(line.startswith("as it is") for line in again), again
    assert bare.systemctl("is-enabled", UNIT) == "enabled"
    assert bare.systemctl("is-active", UNIT) == "active"
    assert "nologin" in bare.run("getent", "passwd", "triton-governor").stdout
    policy = bare.run("stat", "-c", "%U %G %a", "/etc/triton-governor/policy.yaml").stdout
    assert policy.split() == ["root", "triton-governor", "640"]
    # And out again.
    told = bare.governor("uninstall-service").stdout
    assert "stays     /etc/triton-governor" in told
    users = {"passwd", "group", "shadow", "gshadow", "subuid", "subgid"}
    accounts = {f"etc/{name}{end}" for name in users for end in ("", "-")} | {"etc/.pwd.lock"}
    left = {path for path in bare.files() - before - accounts if "/systemd/timers/" not in path}
    assert "etc/triton-governor/policy.yaml" in left
    assert "var/lib/triton-governor/journal.sqlite3" in left
    assert all(path.startswith(("etc/triton-gov", "var/lib/triton-gov")) for path in left), left
    assert bare.systemctl("list-units", "--all", "--plain", "--no-legend", "triton-gov*") == ""
    assert bare.run("test", "-e", "/run/triton-governor", check=False).returncode != 0
    bare.governor("uninstall-service", "--purge")
    left = {path for path in bare.files() - before - accounts if "/systemd/timers/" not in path}
    assert left == set()
    assert bare.run("getent", "passwd", "triton-governor", check=False).returncode != 0


def test_a_policy_that_is_there_is_kept_and_another_unit_is_replaced(bare: Machine) -> None:
    bare.governor("install-service", "--policy", "/root/policy.yaml")
    kept = POLICY.replace("60ms", "70ms")
    bare.write("/etc/triton-governor/policy.yaml", kept, "600")  # as by an editor with a umask
    bare.run("sed", "-i", "s/WatchdogSec=.*/WatchdogSec=1h/", f"/etc/systemd/system/{UNIT}")
    told = bare.governor("install-service", "--policy", "/root/policy.yaml").stdout
    assert "is there, differs from /root/policy.yaml and stays" in told
    assert f"done      replace /etc/systemd/system/{UNIT}" in told
    assert bare.run("cat", "/etc/triton-governor/policy.yaml").stdout == kept
    assert "WatchdogSec=10s" in bare.run("cat", f"/etc/systemd/system/{UNIT}").stdout


def test_what_a_policy_includes_comes_with_it_and_the_service_reads_it(bare: Machine) -> None:
    bare.run("mkdir", "-p", "/root/fleet/parts")
    bare.write("/root/fleet/parts/base.yaml", POLICY, "600")
    bare.write("/root/fleet/box.yaml", "include: [parts/base.yaml]\nmode: advise\n", "600")
    bare.run("sh", "-ec", f"umask 077; {GOVERNOR} install-service --policy /root/fleet/box.yaml")
    bare.systemctl("start", UNIT)
    bare.run("test", "-f", "/etc/triton-governor/parts/base.yaml")
    assert "digits" in bare.governor("status").stdout
    # A service whose unit somebody took away still runs, and is stopped all the same.
    bare.run("rm", f"/etc/systemd/system/{UNIT}")
    bare.systemctl("daemon-reload")
    assert bare.systemctl("is-active", UNIT) == "active"
    bare.governor("uninstall-service", "--purge")
    assert bare.run("systemctl", "is-active", UNIT, check=False).stdout.strip() == "inactive"
    left = [path for path in bare.files() if "triton-governor" in path and path.startswith("etc/")]
    assert not left


def test_a_bad_policy_and_no_policy_change_nothing(bare: Machine) -> None:
    before = bare.files()
    bare.write("/root/bad.yaml", POLICY.replace("60ms", "sixty"))
    for words, code, told in (
        (("--policy", "/root/bad.yaml"), 1, "bad.yaml:6:"),
        ((), 1, "--policy FILE"),
        (("--policy", "/root/none.yaml"), 1, "No such file"),
        (("--policy", "/root/policy.yaml", "--instance", "a/b"), 2, "no name of an instance"),
    ):
        done = bare.governor("install-service", *words, check=False)
        assert done.returncode == code
        assert told in done.stderr
    assert bare.files() == before


def test_somebody_who_is_not_root_is_told_the_command(bare: Machine) -> None:
    before = bare.files()
    bare.write("/opt/policy.yaml", POLICY)
    words = ("install-service", "--policy", "/opt/policy.yaml")
    done = bare.run("runuser", "-u", "nobody", "--", GOVERNOR, *words, check=False)
    assert done.returncode == 1
    assert f"run: sudo {GOVERNOR} install-service --policy /opt/policy.yaml" in done.stderr
    dry = bare.run("runuser", "-u", "nobody", "--", GOVERNOR, *words, "--dry-run")
    assert f"would     write /etc/systemd/system/{UNIT}" in dry.stdout
    assert bare.files() == before


def test_a_program_in_a_home_is_refused_with_advice(bare: Machine) -> None:
    before = bare.files()
    bare.run("sh", "-ec", "mkdir -p /home/eve && cp -a /opt/triton-governor /home/eve/env")
    done = bare.run(
        *("/home/eve/env/bin/python", "-m", "controller.cli.main"),
        *("install-service", "--policy", "/root/policy.yaml"),
        check=False,
    )
    assert done.returncode == 1
    assert "/home/eve/env/bin/governor is under /home" in done.stderr
    assert "venv /opt/triton-governor" in done.stderr
    assert bare.files() == before


def test_an_image_gets_the_service_and_this_machine_does_not(bare: Machine) -> None:
    before = bare.files()
    image, program = "/srv/image", "/srv/image/opt/triton-governor/bin"
    bare.run("sh", "-ec", f"mkdir -p {program} {image}/etc && cp {GOVERNOR} {program}")
    bare.governor("install-service", "--prefix", image, "--policy", "/root/policy.yaml")
    found = bare.run("sh", "-ec", f"cd {image} && find etc -name 'triton*' -o -name policy.yaml")
    assert set(found.stdout.split()) == {
        "etc/sysusers.d/triton-governor.conf",
        "etc/tmpfiles.d/triton-governor.conf",
        "etc/triton-governor",
        "etc/triton-governor/policy.yaml",
        "etc/systemd/system/triton-governor.service",
        "etc/systemd/system/multi-user.target.wants/triton-governor.service",
    }
    group = bare.run(
        "sed", "-n", "s/^triton-governor:x:\\([0-9]*\\):.*/\\1/p", f"{image}/etc/group"
    )
    owners = bare.run("stat", "-c", "%u %g %a", f"{image}/etc/triton-governor/policy.yaml").stdout
    assert owners.split() == ["0", group.stdout.strip(), "640"]
    assert bare.files() == before
    bare.governor("uninstall-service", "--prefix", image, "--purge")
    left = bare.run("sh", "-ec", f"cd {image} && find etc -name 'triton*'; cat etc/passwd")
    assert "triton-governor" not in left.stdout


def test_two_servers_have_services_sockets_and_journals_of_their_own(bare: Machine) -> None:
    for name, objective in (("left", "50ms"), ("right", "90ms")):
        policy = POLICY.replace("60ms", objective).replace("digits:", f"{name}:")
        bare.write("/root/of.yaml", policy)
        bare.governor("install-service", "--policy", "/root/of.yaml", "--instance", name)
    bare.systemctl("start", "triton-governor@left", "triton-governor@right")
    for name, goal_ms in (("left", 50), ("right", 90)):
        status = json.loads(bare.governor("status", "--json", "--instance", name).stdout)
        assert [model["name"] for model in status["models"]] == [name]
        assert status["daemon"]["policy_file"] == f"/etc/triton-governor/{name}.yaml"
        assert str(goal_ms) in json.dumps(status["models"])
        for file in (
            f"/run/triton-governor-{name}/governor.sock",
            f"/var/lib/triton-governor-{name}/journal.sqlite3",
        ):
            assert bare.run("stat", "-c", "%U", file).stdout.strip() == "triton-governor"
    unnamed = bare.governor("status", check=False)
    assert unnamed.returncode == 3
    assert "instances that run: left, right (--instance NAME)" in unnamed.stderr
    by_name = ("env", "TRITON_GOVERNOR_INSTANCE=left", GOVERNOR, "pause", "--why", "test")
    bare.run(*by_name)
    bare.until(lambda: "pause of everything by root" in bare.log("triton-governor@left.service"))
    assert "pause" not in bare.log("triton-governor@right.service")
    # One goes, and the other stays.
    told = bare.governor("uninstall-service", "--instance", "left").stdout
    assert "stays     triton-governor@right.service" in told
    assert bare.run("test", "-e", "/run/triton-governor-left", check=False).returncode != 0
    assert bare.systemctl("is-active", "triton-governor@right") == "active"
    assert "right" in bare.governor("status").stdout  # the only one there is needs no name
    down = bare.governor("status", "--json", "--instance", "left", check=False)
    assert down.returncode == 3
    assert [model["name"] for model in json.loads(down.stdout)["last"]] == ["left"]
    bare.governor("uninstall-service", "--instance", "right")
    assert not any("systemd/system/triton-gov" in path for path in bare.files())


def test_the_daemon_has_a_secret_that_only_root_may_read(bare: Machine) -> None:
    named = POLICY + "mqtt: {host: 127.0.0.1, username: u, password_file: 'credential:mqtt'}\n"
    bare.write("/root/named.yaml", named)
    told = bare.governor("install-service", "--policy", "/root/named.yaml").stdout
    assert "LoadCredential=mqtt:/path/of/the/secret" in told
    bare.systemctl("start", "--no-block", UNIT)  # without it, the daemon says what is missing where
    missing = "policy.yaml:10:53: mqtt.password_file: this process was given no credentials"
    bare.until(lambda: missing in bare.log())
    bare.systemctl("stop", UNIT)
    bare.write("/etc/triton-governor/mqtt-password", SECRET + "\n", "600")
    drop_in = "[Service]\nLoadCredential=mqtt:/etc/triton-governor/mqtt-password\n"
    bare.write(f"/etc/systemd/system/{UNIT}.d/secret.conf", drop_in)
    bare.systemctl("daemon-reload")
    bare.write("/run/broker.py", BROKER)
    bare.run("systemd-run", "--quiet", "/opt/triton-governor/bin/python", "/run/broker.py")
    bare.until(lambda: bare.run("test", "-e", "/run/broker.ready", check=False).returncode == 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    told = bare.governor("install-service", "--start").stdout
    assert "LoadCredential" not in told
    bare.until(lambda: SECRET in bare.run("cat", "/run/broker.told", check=False).stdout)
    pid = bare.show("MainPID")
    assert SECRET not in bare.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline").stdout
    assert SECRET not in bare.governor("status", "--json").stdout
    assert SECRET not in bare.log(UNIT, "--since", since)
    bare.run(
        "runuser",
        "-u",
        "triton-governor",
        "--",
        "test",
        "!",
        "-r",
        "/etc/triton-governor/mqtt-password",
    )
