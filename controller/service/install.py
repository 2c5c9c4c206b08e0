"""The steps that put the service on a machine, or into an image.

Owns their order: user, folder, policy and unit before systemd is told. Each can be done again.
"""

from __future__ import annotations

import grp
import stat
from collections.abc import Iterator
from pathlib import Path

from controller.policy.checks import SECRETS
from controller.policy.credentials import PREFIX, is_credential
from controller.policy.model import Policy
from controller.policy.problems import Path as KeyPath
from controller.policy.problems import format_path
from controller.service import policies, steps
from controller.service.layout import SHIPPED_PROGRAM, USER, Layout, shipped
from controller.service.policies import FOLDER_MODE, Files
from controller.service.program import why_hidden
from controller.service.steps import Step, StepError


def unit_text(layout: Layout, program: Path) -> str:
    """Return the shipped unit, starting this program."""
    text = shipped(layout.shipped_unit)
    start = f"ExecStart={SHIPPED_PROGRAM} run "
    if text.count(start) != 1:
        raise ValueError(f"{layout.shipped_unit} does not start {SHIPPED_PROGRAM}")
    return text.replace(start, f"ExecStart={program} run ")


def install(layout: Layout, program: Path, files: Files, *, start: bool) -> list[Step]:
    """Return the steps.

    Args:
        layout: where.
        program: what the unit starts.
        files: the policy and what it includes.
        start: whether the service is started, or started anew where it is not as the unit says.
    """
    unit = steps.write(layout.unit_file, unit_text(layout, program))
    changes = unit.why_not() is None
    # By name: with --root= systemd looks for names inside, and takes a path for one outside.
    plan = [
        steps.write(layout.users, shipped(layout.users.name.replace(".conf", ".sysusers.conf"))),
        steps.run(
            layout.command("systemd-sysusers", layout.users.name),
            lambda: None if _group(layout) is None else "is there",
            f"makes the user {USER}",
        ),
        steps.write(
            layout.folders, shipped(layout.folders.name.replace(".conf", ".tmpfiles.conf"))
        ),
        steps.run(
            layout.command("systemd-tmpfiles", "--create", layout.folders.name),
            lambda: _why_not_folder(layout),
            f"makes {layout.policies}, root:{USER} {FOLDER_MODE:04o}",
        ),
        *(_policy_step(layout, path, text) for path, text in files.items()),
        unit,
    ]
    if layout.live:
        plan.append(
            steps.run(
                ["systemctl", "daemon-reload"], lambda: None if changes else "no unit changed"
            )
        )
    plan.append(
        steps.run(
            layout.command("systemctl", "enable", "--quiet", layout.unit),
            lambda: "is enabled" if _is_enabled(layout) else None,
            "starts with the machine",
        )
    )
    if start:
        plan.append(_start_step(layout, anew=changes))
    return plan


def _policy_step(layout: Layout, path: Path, text: bytes | None) -> Step:
    if text is None:
        kept = "can, and a policy is never overwritten"
        return Step(
            f"let the service read {policies.shown(path)}",
            lambda: kept if policies.may_read(layout, path, _group(layout)) else None,
            lambda: policies.open_to(layout, path, _needed_group(layout)),
        )

    def do() -> None:
        group = _needed_group(layout)
        steps.put(path, text, policies.POLICY_MODE, group)
        policies.open_to(layout, path, group)

    return Step(f"write {policies.shown(path)}", lambda: None, do)


def _why_not_folder(layout: Layout) -> str | None:
    try:
        found = layout.policies.stat()
    except FileNotFoundError:
        return None
    right = stat.S_IMODE(found.st_mode) == FOLDER_MODE and found.st_gid == _group(layout)
    return "is so" if right and found.st_uid == 0 else None


def _start_step(layout: Layout, *, anew: bool) -> Step:
    def why_not() -> str | None:
        runs = steps.ask(["systemctl", "is-active", layout.unit]).stdout.strip() == "active"
        return "runs, with this unit" if runs and not anew else None

    def do() -> None:
        done = steps.ask(["systemctl", "restart", layout.unit])
        if done.returncode != 0:
            logged = steps.ask(
                ["journalctl", "--no-pager", "--output=cat", "--lines=8", "--unit", layout.unit]
            )
            raise StepError(f"{done.stderr.strip()}\nthe end of its log:\n{logged.stdout.rstrip()}")

    return Step(
        f"run systemctl restart {layout.unit} (starts it, and waits until it is ready)", why_not, do
    )


def _is_enabled(layout: Layout) -> bool:
    asked = steps.ask(layout.command("systemctl", "is-enabled", layout.unit))
    return asked.stdout.strip() == "enabled"


def _needed_group(layout: Layout) -> int:
    group = _group(layout)
    if group is None:
        raise StepError(f"there is no group {USER}: systemd-sysusers should have made it")
    return group


def _group(layout: Layout) -> int | None:
    """Return the number of the service's group on the machine, or in the image."""
    if layout.live:
        try:
            return grp.getgrnam(USER).gr_gid
        except KeyError:
            return None
    file = layout.root / "etc/group"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        name, _, rest = line.partition(":")
        if name == USER:
            return int(rest.split(":")[1])
    return None


def notes(layout: Layout, policy: Policy) -> Iterator[str]:
    """Yield what else has to be done so that the service can have what the policy names."""
    given = _credentials_of(layout)
    for path in SECRETS:
        key, file = format_path(path), _named(policy, path)
        if file is None:
            continue
        if is_credential(file):
            name = file.removeprefix(PREFIX)
            if name not in given:
                yield (
                    f"{key} is {file}: run `systemctl edit {layout.unit}` and give it, under"
                    f" [Service], LoadCredential={name}:/path/of/the/secret"
                )
        else:
            hidden = why_hidden(Path(file))
            if hidden is not None:
                yield f"{key}: {hidden}; move it to {layout.inside(layout.policies)}"
    journal = policy.journal.path
    state = layout.inside(layout.state)
    if journal is not None and not Path(journal).is_relative_to(state):
        yield (
            f"journal.path {journal} is outside of {state}, where alone the service may write: run"
            f" `systemctl edit {layout.unit}` and give it ReadWritePaths={Path(journal).parent}"
        )


def _named(policy: Policy, path: KeyPath) -> str | None:
    """Return what a policy says at a path of its keys, which its fields are named after."""
    found: object = policy
    for key in path:
        found = None if found is None else getattr(found, str(key))
    return found if isinstance(found, str) else None


def _credentials_of(layout: Layout) -> set[str]:
    """Return the names of the credentials that drop-ins give the service."""
    found = set()
    folders = {layout.drop_ins, layout.unit_file.with_name(f"{layout.shipped_unit}.d")}
    for file in [file for folder in folders for file in folder.glob("*.conf")]:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.strip().partition("=")
            if key.strip() in {
                "LoadCredential",
                "LoadCredentialEncrypted",
                "SetCredential",
                "SetCredentialEncrypted",
            }:
                found.add(value.strip().partition(":")[0])
    return found
