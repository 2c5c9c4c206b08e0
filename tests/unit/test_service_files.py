"""The service's files: both units agree, and what is installed is what is shipped."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from controller.policy.load import parse_policy
from controller.service import program as programs
from controller.service.install import install, notes, unit_text
from controller.service.layout import SHIPPED_PROGRAM, Layout, shipped
from controller.service.program import ProgramError, check_program, why_hidden, why_out_of_reach
from controller.service.steps import Step, StepError, carry_out, put, remove, run, write
from controller.service.uninstall import left, uninstall

UNIT = "triton-governor.service"
TEMPLATE = "triton-governor@.service"
# All that the template says otherwise, beside comments.
DIFFERENCES = {
    "Description=Triton Governor": "Description=Triton Governor of %i",
    "After=network.target nvidia-persistenced.service tritonserver.service": (
        "After=network.target nvidia-persistenced.service tritonserver.service"
        " tritonserver@%i.service"
    ),
    f"ExecStart={SHIPPED_PROGRAM} run --policy /etc/triton-governor/policy.yaml": (
        f"ExecStart={SHIPPED_PROGRAM} run --policy /etc/triton-governor/%i.yaml"
    ),
    "StateDirectory=triton-governor": "StateDirectory=triton-governor-%i",
    "RuntimeDirectory=triton-governor": "RuntimeDirectory=triton-governor-%i",
}
POLICY = """\
version: 1
triton: {grpc: "127.0.0.1:8001"}
models:
  m:
    objective: {latency: 60ms, percentile: 99}
    variants: {a: {model: m_a, quality: 0.9}}
"""


def settings(name: str) -> list[str]:
    return [line for line in shipped(name).splitlines() if line and not line.startswith("#")]


def test_the_template_differs_from_the_unit_in_names_alone() -> None:
    expected = [DIFFERENCES.get(line, line) for line in settings(UNIT)]
    assert settings(TEMPLATE) == expected
    assert set(DIFFERENCES) <= set(settings(UNIT))


def test_the_comments_of_both_agree_too() -> None:
    # Between the heads, which tell how each is used, and what is named after the instance.
    def body(name: str) -> list[str]:
        lines = shipped(name).partition("[Service]")[2].splitlines()
        return [line.replace("%i.", "").replace("policies", "policy") for line in lines]

    def comments(name: str) -> list[str]:
        return [
            line.replace("# The policy, and files they name", "# The policy, and files it names")
            for line in body(name)
            if line.startswith("#")
        ]

    assert comments(TEMPLATE) == comments(UNIT)


def test_the_layout_s_paths_are_those_of_the_units() -> None:
    for instance, name in ((None, UNIT), ("edge", TEMPLATE)):
        layout = Layout(Path("/"), instance)
        said = dict(
            line.replace("%i", instance or "").split("=", 1)
            for line in settings(name)
            if "=" in line
        )
        assert layout.policy.name in said["ExecStart"]
        assert layout.policies == Path("/etc", said["ConfigurationDirectory"])
        assert layout.state == Path("/var/lib", said["StateDirectory"])
        assert said["User"] in shipped("triton-governor.sysusers.conf")
        assert f"d {layout.policies} 0{said['ConfigurationDirectoryMode'][1:]} root" in shipped(
            "triton-governor.tmpfiles.conf"
        )


@pytest.mark.parametrize("instance", [None, "edge"])
def test_the_installed_unit_starts_the_program_that_runs(instance: str | None) -> None:
    layout = Layout(Path("/"), instance)
    text = unit_text(layout, Path("/srv/env/bin/governor"))
    assert "\nExecStart=/srv/env/bin/governor run --policy /etc/triton-governor/" in text
    shipped_lines = shipped(layout.shipped_unit).splitlines()
    differing = [a for a, b in zip(text.splitlines(), shipped_lines, strict=True) if a != b]
    assert len(differing) == 1


# -- the program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/home/eve/env/bin/governor", "/root/x", "/tmp/x", "/run/user/0"])  # noqa: S108
def test_what_the_unit_hides_is_named_with_its_setting(path: str) -> None:
    assert "=yes in its unit" in str(why_hidden(Path(path)))


def test_a_link_into_a_home_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    monkeypatch.setattr(programs, "_HIDDEN", {str(tmp_path / "home"): "ProtectHome=yes"})
    assert "ProtectHome" in str(why_out_of_reach(tmp_path / "link"))


def test_a_folder_that_is_closed_to_others_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_HIDDEN", {})
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o750)
    (closed / "governor").touch()
    reason = str(why_out_of_reach(closed / "governor"))
    assert "closed to others (mode 07" in reason


def test_nothing_is_wrong_with_a_system_program() -> None:
    assert why_out_of_reach(Path("/bin/sh")) is None


def test_an_image_needs_the_program_inside(tmp_path: Path) -> None:
    program = Path("/opt/triton-governor/bin/governor")
    with pytest.raises(ProgramError, match="install the governor in there first"):
        check_program(program, tmp_path)
    (tmp_path / "opt/triton-governor/bin").mkdir(parents=True)
    (tmp_path / "opt/triton-governor/bin/governor").touch()
    check_program(program, tmp_path)


def test_a_path_that_a_unit_reads_otherwise_is_refused() -> None:
    with pytest.raises(ProgramError, match="mean something else in a unit"):
        check_program(Path("/opt/a b%c/governor"), Path("/"))


# -- the steps -----------------------------------------------------------------------------------


def test_a_dry_run_tells_and_touches_nothing(tmp_path: Path) -> None:
    done: list[str] = []
    (tmp_path / "same").write_text("text")
    steps = [
        write(tmp_path / "new", "text"),
        write(tmp_path / "same", "text"),
        remove(tmp_path / "same"),
        Step("count", lambda: None, lambda: done.append("x")),
    ]
    said = list(carry_out(steps, dry=True))
    assert [line.split()[0] for line in said] == ["would", "as", "would", "would"]
    assert not done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same"]


def test_a_step_that_fails_ends_the_plan_and_says_which(tmp_path: Path) -> None:
    steps = [
        write(tmp_path / "new", "text"),
        run(["sh", "-c", "echo broken >&2; exit 3"], lambda: None),
        write(tmp_path / "never", "text"),
    ]
    said: list[str] = []
    with pytest.raises(StepError, match=r"could not run sh .*: broken$"):
        said.extend(carry_out(steps, dry=False))
    assert said == [f"done      write {tmp_path / 'new'}"]
    assert not (tmp_path / "never").exists()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no program systemd-nothing"):
        list(carry_out([run(["systemd-nothing"], lambda: None)], dry=False))


def test_a_file_is_put_with_its_mode_and_nothing_is_left_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "policy", b"x", 0o640, os.getgid())
    assert (tmp_path / "policy").stat().st_mode & 0o777 == 0o640

    def full(*_args: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        put(tmp_path / "policy", b"y", 0o640)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert (tmp_path / "policy").read_bytes() == b"x"


# -- the plans, in an image ------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Layout:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("root:x:0:\ntriton-governor:x:990:ann\n")
    return Layout(tmp_path)


def test_an_image_is_never_reloaded_nor_started(image: Layout) -> None:
    files = {image.policy: b""}
    told = [step.what for step in install(image, Path("/x"), files, start=False)]
    commands = [what for what in told if what.startswith("run ")]
    assert all(f"--root={image.root}" in what for what in commands)
    assert not any("daemon-reload" in what or "restart" in what for what in told)
    assert [
        Path(what.split()[1].rstrip(",")).name for what in told if what.startswith("write")
    ] == [
        "triton-governor.conf",
        "triton-governor.conf",
        "policy.yaml",
        "triton-governor.service",
    ]


def test_uninstalling_keeps_what_others_need(image: Layout) -> None:
    wants = image.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    for name in ("a", "b"):
        (wants / f"triton-governor@{name}.service").symlink_to("/nowhere")
    one = replace(image, instance="a")
    told = [step.what for step in uninstall(one, purge=True)]
    assert f"remove {one.policy}" in told
    assert f"remove {one.state}" in told
    assert not any(what.endswith(("@.service", ".conf", "etc/triton-governor")) for what in told)
    assert left(one, purge=True)[-1] == "triton-governor@b.service, and what it needs"


def test_purging_the_last_spares_the_user_of_another_journal(image: Layout) -> None:
    assert any("userdel" in step.what for step in uninstall(image, purge=True))
    (image.root / "var/lib/triton-governor-old").mkdir(parents=True)
    told = [step.what for step in uninstall(image, purge=True)]
    assert not any("userdel" in what for what in told)
    assert f"remove {image.policy}" in told


def test_what_the_policy_names_and_the_service_lacks_is_told(image: Layout) -> None:
    text = POLICY.replace('8001"', '8001", restricted_key_file: "credential:key"') + (
        "mqtt: {host: b, username: u, password_file: /root/mqtt}\n"
        "journal: {path: /srv/journal.sqlite3}\n"
    )
    policy = parse_policy(text, "policy.yaml")
    told = list(notes(image, policy))
    assert len(told) == 3
    assert "LoadCredential=key:/path/of/the/secret" in told[0]
    assert "/root/mqtt is under /root" in told[1]
    assert "ReadWritePaths=/srv" in told[2]
    image.drop_ins.mkdir(parents=True)
    (image.drop_ins / "x.conf").write_text("[Service]\nLoadCredential=key:/etc/key\n")
    assert len(list(notes(image, policy))) == 2
