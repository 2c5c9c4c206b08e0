"""The steps that take the service off a machine, or out of an image.

Owns what goes and what stays: policies and journals, and the user whom they belong to, stay until
somebody says otherwise; what other instances need stays with them.
"""

from __future__ import annotations

from typing import Final

from controller.service import steps
from controller.service.layout import USER, Layout
from controller.service.packaged import enable
from controller.service.steps import Step

_NOT_RUNNING: Final = {"inactive", "failed", "unknown"}
_ENABLED: Final = {"enabled", "enabled-runtime"}


def uninstall(layout: Layout, *, purge: bool) -> list[Step]:
    """Return the steps.

    Args:
        layout: which service, where.
        purge: policy, journal and drop-ins go too, and with the last service the user.
    """
    others = _others(layout)
    alone = not others and not _other_states(layout)
    gone = not layout.unit_file.exists()
    plan = [_stop_step(layout)] if layout.live else []
    plan.append(_disable_step(layout))
    if gone:  # systemctl disables nothing whose file is gone
        plan += [steps.remove(link) for link in layout.links()]
    if layout.instance is None or not any("@" in unit for unit in others):
        plan.append(steps.remove(layout.unit_file))
    if purge:
        plan += [steps.remove(layout.drop_ins), steps.remove(layout.state)]
        plan.append(steps.remove(layout.policies if alone else layout.policy))
    if not others:
        plan += [steps.remove(layout.users), steps.remove(layout.folders)]
    if purge and alone:
        user = ["userdel", *(() if layout.live else ("--prefix", str(layout.root))), USER]
        plan.append(steps.run(user, lambda: None if _is_user(layout) else "is not there"))
    if layout.live:
        plan += [
            steps.run(["systemctl", "daemon-reload"], lambda: "no unit changed" if gone else None),
            steps.run(["systemctl", "reset-failed", layout.unit], lambda: _why_not_reset(layout)),
        ]
    return plan


def left(layout: Layout, *, purge: bool) -> list[str]:
    """Return what is there still, of what was not asked to go."""
    others = _others(layout)
    kept = [f"{unit}, and what it needs" for unit in others]
    if layout.packaged is not None:
        kept.append(f"{layout.packaged}, a package's, which no other hides now: {enable(layout)}")
    if not purge:
        found = [
            str(path) for path in (layout.policies, layout.state, layout.drop_ins) if path.exists()
        ]
        advice = "" if layout.packaged else " (uninstall-service --purge removes it)"
        kept += [f"{path}{advice}" for path in found]
        if found and not others:
            kept.append(f"the user {USER}, whom these belong to")
    return kept


def _stop_step(layout: Layout) -> Step:
    # systemd knows what runs, also of a unit whose file is gone, or lies elsewhere.
    def why_not() -> str | None:
        active = steps.ask(["systemctl", "is-active", layout.unit]).stdout.strip()
        return "does not run" if active in _NOT_RUNNING else None

    return steps.run(["systemctl", "stop", layout.unit], why_not)


def _disable_step(layout: Layout) -> Step:
    def why_not() -> str | None:
        enabled = steps.ask(layout.command("systemctl", "is-enabled", layout.unit)).stdout.strip()
        return None if enabled in _ENABLED else "is not enabled"

    return steps.run(layout.command("systemctl", "disable", "--quiet", layout.unit), why_not)


def _why_not_reset(layout: Layout) -> str | None:
    failed = steps.ask(["systemctl", "is-failed", layout.unit]).stdout.strip() == "failed"
    return None if failed else "has not failed"


def _others(layout: Layout) -> list[str]:
    """Return the services that are there beside this one."""
    found = [Layout(layout.root, name).unit for name in _instances(layout)]
    single = Layout(layout.root)
    if single.unit_file.exists():
        found.append(single.unit)
    return sorted(set(found) - {layout.unit})


def _instances(layout: Layout) -> list[str]:
    names = set(layout.instances())
    if layout.live:
        asked = steps.ask(
            ["systemctl", "list-units", "--plain", "--no-legend", f"{USER}@*.service"]
        )
        for line in asked.stdout.splitlines():
            unit = line.split()[0] if line.split() else ""
            if unit.startswith(f"{USER}@"):
                names.add(unit.removeprefix(f"{USER}@").removesuffix(".service"))
    return sorted(names)


def _is_user(layout: Layout) -> bool:
    file = layout.root / "etc/passwd"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return any(line.startswith(f"{USER}:") for line in text.splitlines())


def _other_states(layout: Layout) -> list[str]:
    """Return the journals' folders of services that were here, and kept theirs."""
    return sorted(
        str(path) for path in layout.state.parent.glob(f"{USER}*") if path != layout.state
    )
