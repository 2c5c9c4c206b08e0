"""What install-service copies of a policy, what the service may read, and what is a package's."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.policy.checks import SECRETS
from controller.policy.compose import Seen
from controller.policy.load import load_policy, parse_policy
from controller.service import steps
from controller.service.install import install, notes
from controller.service.layout import Layout
from controller.service.packaged import PackagedError, check_install, check_uninstall
from controller.service.policies import PlaceError, may_read, outside, placed, there
from controller.service.steps import carry_out
from controller.service.uninstall import left, uninstall

REPOSITORY = Path(__file__).parents[2]
POLICY = """\
version: 1
triton: {grpc: "127.0.0.1:8001"}
models:
  m:
    objective: {latency: 60ms, percentile: 99}
    variants: {a: {model: m_a, quality: 0.9}}
"""


@pytest.fixture
def image(tmp_path: Path) -> Layout:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc/group").write_text(f"triton-governor:x:{os.getgid()}:\n")
    return Layout(root)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A policy that includes another one, of a folder below its own."""
    folder = tmp_path / "fleet"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts/base.yaml").write_text(POLICY)
    (folder / "box.yaml").write_text("include: [parts/base.yaml]\nmode: advise\n")
    return folder / "box.yaml"


def seen_of(policy: Path) -> list[str]:
    seen: Seen = {}
    load_policy(policy, seen=seen)
    return list(seen)


# -- files -----------------------------------------------------------------------------------------


def test_what_a_policy_includes_goes_to_the_same_place_beside_it(
    image: Layout, fleet: Path
) -> None:
    files = placed(image, fleet, seen_of(fleet))
    base = image.policies / "parts/base.yaml"
    assert files == {base: POLICY.encode(), image.policy: fleet.read_bytes()}
    assert list(files)[-1] == image.policy  # there is no policy until it is complete
    told = [step.what for step in install(image, Path("/x"), files, start=False)]
    writes = [what for what in told if what.startswith("write") and "etc/triton-governor" in what]
    assert [what.split(",")[0] for what in writes] == [f"write {base}", f"write {image.policy}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
def test_the_copies_are_the_service_s_to_read_and_are_the_same_policy(
    image: Layout, fleet: Path
) -> None:
    files = placed(image, fleet, seen_of(fleet))
    plan = [step for step in install(image, Path("/x"), files, start=False) if "yaml" in step.what]
    old = os.umask(0o077)
    try:
        image.policies.mkdir()
        list(carry_out(plan, dry=False))
    finally:
        os.umask(old)
    assert stat.S_IMODE((image.policies / "parts").stat().st_mode) == 0o750
    assert stat.S_IMODE((image.policies / "parts/base.yaml").stat().st_mode) == 0o640
    assert load_policy(image.policy, host="h") == load_policy(fleet, host="h")
    # Again: all is there, and can be read.
    again = there(image, seen_of(image.policy))
    assert set(again) == set(files)
    plan = [step for step in install(image, Path("/x"), again, start=False) if "yaml" in step.what]
    assert all(line.startswith("as it is") for line in carry_out(plan, dry=True))
    # An edit with a umask closed the included file: that is seen, and mended.
    (image.policies / "parts/base.yaml").chmod(0o600)
    said = list(carry_out(plan, dry=False))
    opened = [line.split(",")[0] for line in said if line.startswith("done")]
    assert opened == [f"done      let the service read {image.policies}/parts/base.yaml"]
    assert may_read(image, image.policies / "parts/base.yaml", os.getgid())


def test_an_included_file_that_is_there_stays_and_another_text_is_refused(
    image: Layout, fleet: Path
) -> None:
    (image.policies / "parts").mkdir(parents=True)
    base = image.policies / "parts/base.yaml"
    base.write_text(POLICY)
    assert placed(image, fleet, seen_of(fleet))[base] is None
    base.write_text(POLICY.replace("60ms", "70ms"))
    with pytest.raises(PlaceError, match="is there and differs"):
        placed(image, fleet, seen_of(fleet))


def test_a_file_beside_the_folder_or_of_the_policy_s_name_cannot_be_copied(
    image: Layout, fleet: Path
) -> None:
    inner = fleet.parent / "parts/inner.yaml"
    (fleet.parent / "policy.yaml").write_text(POLICY)
    inner.write_text("include: [../policy.yaml]\n")
    with pytest.raises(PlaceError, match="is not below"):
        placed(image, inner, seen_of(inner))
    fleet.write_text("include: [policy.yaml]\n")
    with pytest.raises(PlaceError, match="that name is the policy's own"):
        placed(image, fleet, seen_of(fleet))


def test_what_lies_elsewhere_and_cannot_be_read_is_told(
    image: Layout, fleet: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(POLICY)
    image.policies.mkdir()
    image.policy.write_text("include: [../../../elsewhere.yaml]\n")
    files = seen_of(image.policy)
    assert list(there(image, files)) == [image.policy]
    told = list(outside(image, files))
    assert len(told) == 1
    assert "elsewhere.yaml, which the service could not read" in told[0]


def test_the_command_checks_for_the_host_and_with_all_that_is_included(
    image: Layout,
    fleet: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("controller.service.program.check_program", lambda *_: None)
    monkeypatch.setattr("controller.service.program.running_program", lambda: Path("/x"))
    fleet.write_text(fleet.read_text() + "hosts: {box-1: {interval: nonsense}}\n")
    words = ["install-service", "--prefix", str(image.root), "--policy", str(fleet), "--dry-run"]
    assert main([*words, "--host", "box-2"]) == 0
    assert f"would     write {image.policies}/parts/base.yaml" in capsys.readouterr().out
    assert main([*words, "--host", "box-1"]) == 1
    assert "box.yaml:3:27: interval" in capsys.readouterr().err


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SECRETS, ids=lambda path: ".".join(map(str, path)))
def test_every_secret_that_a_policy_may_name_has_its_note(
    image: Layout, path: tuple[str, ...]
) -> None:
    def policy(value: str) -> str:
        tls = f"ca_file: '{value}', cert_file: '{value}', key_file: '{value}'"
        mqtt = ", ".join(f"tls_{one}" for one in tls.split(", "))
        return POLICY.replace(
            '8001"',
            f"8001\", restricted_key_file: '{value}', tls: {{{tls}}},"
            f" metrics: 'https://t:8002/metrics', metrics_tls: {{{tls}}}",
        ) + (f"mqtt: {{host: b, username: u, password_file: '{value}', {mqtt}}}\n")

    key = ".".join(path)
    given = list(notes(image, parse_policy(policy("credential:c"), "policy.yaml")))
    assert [note for note in given if note.startswith(f"{key} is credential:c: run")]
    hidden = list(notes(image, parse_policy(policy("/home/eve/c"), "policy.yaml")))
    assert [note for note in hidden if note.startswith(f"{key}: /home/eve/c is under /home")]
    assert len(given) == len(hidden) == len(SECRETS)


# -- a package's -----------------------------------------------------------------------------------


@pytest.fixture
def packaged(image: Layout) -> Layout:
    """An image with what the Debian package brings, as dpkg knows it."""
    folder = image.root / "usr/lib/systemd/system"
    folder.mkdir(parents=True)
    for name in ("triton-governor.service", "triton-governor@.service"):
        (folder / name).touch()
    info = image.root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info.parent / "status").write_text(
        "Package: triton-governor\nStatus: install ok installed\nVersion: 1\n"
        "Architecture: all\nMaintainer: m\nDescription: d\n\n"
    )
    (info.parent / "updates").mkdir()
    (info / "format").write_text("1\n")
    (info / "triton-governor.list").write_text(
        "/.\n/usr/lib/systemd/system/triton-governor.service\n"
        "/usr/lib/systemd/system/triton-governor@.service\n"
    )
    return image


def has_dpkg() -> bool:
    return any(Path(folder, "dpkg-query").exists() for folder in ("/usr/bin", "/bin"))


@pytest.mark.skipif(not has_dpkg(), reason="asks dpkg")
@pytest.mark.parametrize("purge", [False, True])
def test_the_debian_package_s_service_is_apt_s_to_remove(packaged: Layout, purge: bool) -> None:
    with pytest.raises(PackagedError, match="is the Debian package triton-governor's") as caught:
        check_uninstall(packaged, purge=purge)
    assert "sudo apt remove triton-governor" in caught.value.advice
    assert "sudo apt purge triton-governor" in caught.value.advice


def test_a_unit_of_ours_would_hide_the_package_s(packaged: Layout) -> None:
    with pytest.raises(PackagedError, match="would hide it") as caught:
        check_install(packaged)
    assert f"FILE {packaged.policy}; then sudo systemctl" in caught.value.advice
    one = replace(packaged, instance="edge")
    with pytest.raises(PackagedError) as caught:
        check_install(one)
    assert caught.value.advice.endswith("enable triton-governor@edge.service")


def test_a_unit_that_hides_the_package_s_may_go_and_the_policy_stays(packaged: Layout) -> None:
    packaged.unit_file.parent.mkdir(parents=True)
    packaged.unit_file.touch()
    with pytest.raises(PackagedError, match="there is one"):
        check_install(packaged)
    check_uninstall(packaged, purge=False)
    packaged.policies.mkdir()
    stays = left(packaged, purge=False)
    assert any("a package's, which no other hides now: sudo systemctl" in line for line in stays)
    assert str(packaged.policies) in stays  # and no advice to purge, which is refused:
    with pytest.raises(PackagedError):
        check_uninstall(packaged, purge=True)


def test_one_instance_of_the_package_s_is_disabled_and_not_apt_s(packaged: Layout) -> None:
    with pytest.raises(PackagedError) as caught:
        check_uninstall(replace(packaged, instance="edge"), purge=True)
    assert "disable triton-governor@edge.service" in caught.value.advice
    assert "apt" not in caught.value.advice


def test_without_a_package_nothing_is_refused(image: Layout) -> None:
    check_install(image)
    check_uninstall(image, purge=True)


def test_the_command_refuses_before_anything_is_touched(
    packaged: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged.policies.mkdir()
    packaged.policy.write_text(POLICY)
    words = ["--prefix", str(packaged.root), "--dry-run"]
    assert main(["uninstall-service", "--purge", *words]) == 1
    assert main(["install-service", *words]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("usr/lib/systemd/system/triton-governor.service is ") == 2


# -- what runs -------------------------------------------------------------------------------------


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a systemd would answer, by its verb."""
    answers: dict[str, str] = {}

    def ask(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, answers.get(command[1], ""), "")

    monkeypatch.setattr(steps, "ask", ask)
    return answers


def test_a_service_that_runs_is_stopped_wherever_its_unit_lies(systemd: dict[str, str]) -> None:
    layout = Layout(Path("/"), "never-installed-here")
    for active, enabled, expected in (
        ("active", "enabled", ["stop", "disable"]),
        ("activating", "", ["stop"]),
        ("inactive", "enabled", ["disable"]),
        ("failed", "disabled", []),
        ("inactive", "not-found", []),
    ):
        systemd |= {"is-active": active, "is-enabled": enabled}
        plan = uninstall(layout, purge=False)[:2]
        assert [step.what.split()[2] for step in plan if step.why_not() is None] == expected


def test_a_link_that_enables_a_unit_whose_file_is_gone_goes_too(image: Layout) -> None:
    link = image.root / "etc/systemd/system/multi-user.target.wants/triton-governor.service"
    link.parent.mkdir(parents=True)
    link.symlink_to(image.unit_file)
    assert f"remove {link}" in [step.what for step in uninstall(image, purge=False)]
    image.unit_file.touch()  # else systemctl does it
    assert f"remove {link}" not in [step.what for step in uninstall(image, purge=False)]


# -- the package's scripts -------------------------------------------------------------------------


@pytest.fixture
def postinst(tmp_path: Path) -> Callable[[str], list[str]]:
    """Run what the Debian package does after an upgrade, with a unit that starts so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    start = tmp_path / "start"

    def program(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\n{text}\n')
        path.chmod(0o755)
        return path

    unit = "triton-governor.service loaded active"
    program("systemctl", f"case $1 in list-units) echo {unit};; show) cat {start};; esac")
    governor = program("governor", "true")
    text = (REPOSITORY / "packaging/deb/postinst").read_text()
    functions = text.partition('case "$1"')[0]
    script = functions.replace("/opt/triton-governor/bin/governor", str(governor))

    def run(argv: str) -> list[str]:
        start.write_text(
            f"{{ path=/x/governor ; argv[]=/x/governor run {argv} ; ignore_errors=no ; }}"
        )
        calls.write_text("")
        environment = {"PATH": f"{folder}:/usr/bin:/bin"}
        subprocess.run(["/bin/sh", "-c", f"{script}\nrestart_running"], check=True, env=environment)
        return calls.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("argv", "host"),
    [
        ("--policy /etc/p.yaml", os.uname().nodename),
        ("--policy /etc/p.yaml --host box-7 --log-format json", "box-7"),
        ("--host=box-8 --policy=/etc/p.yaml", "box-8"),
    ],
)
def test_an_upgrade_asks_for_the_policy_as_the_daemon_reads_it(
    postinst: Callable[[str], list[str]], argv: str, host: str
) -> None:
    calls = postinst(argv)
    assert f"governor policy check --host {host} /etc/p.yaml" in calls
    assert calls[-1] == "systemctl restart triton-governor.service"


def test_a_purge_takes_the_journals_of_all_instances(tmp_path: Path) -> None:
    for name in ("var/lib/triton-governor", "var/lib/triton-governor-edge", "var/lib/triton-other"):
        (tmp_path / name).mkdir(parents=True)
    text = (REPOSITORY / "packaging/deb/postrm").read_text()
    text, paths = re.subn(r"(?<![\w/])/(?=(opt|var|etc|run)/)", f"{tmp_path}/", text)
    assert paths == text.count(f"{tmp_path}/") == text.count("/triton-governor") + 1
    subprocess.run(["/bin/sh", "-c", text, "postrm", "purge"], check=True)
    assert [path.name for path in (tmp_path / "var/lib").iterdir()] == ["triton-other"]
