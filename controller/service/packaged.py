"""A service that came with a package: what is the package manager's to do.

Owns when a unit is a package's and what to say then. It must not change anything.
"""

from __future__ import annotations

import shlex

from controller.service import steps
from controller.service.layout import USER, Layout
from controller.service.steps import StepError


class PackagedError(Exception):
    """The service is a package's; the text says so, `advice` what to do instead."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


def enable(layout: Layout) -> str:
    """Return the command that has the package's unit started."""
    return _systemctl(layout, "enable")


def check_install(layout: Layout) -> None:
    """Raise PackagedError where a unit of ours would hide one that a package brought."""
    if layout.packaged is None:
        return
    unit = layout.inside(layout.unit_file)
    message = (
        f"{layout.packaged} is {_whose(layout)}: a unit in {unit.parent} would hide it, and what"
        " the package's upgrades change in it"
    )
    if layout.unit_file.exists():
        raise PackagedError(
            f"{message}; there is one",
            f"remove {unit} with uninstall-service (policy and journal stay), then enable the"
            f" package's: {enable(layout)}",
        )
    raise PackagedError(
        message,
        f"put the policy, and what it includes, there yourself: sudo install -m 640 -g {USER} FILE"
        f" {layout.policy}; then {enable(layout)}",
    )


def check_uninstall(layout: Layout, *, purge: bool) -> None:
    """Raise PackagedError where what would go is a package's.

    A unit of ours that hides the package's may go; policy and journal are the package's service's.
    """
    if layout.packaged is None or (layout.unit_file.exists() and not purge):
        return
    message = f"{layout.packaged} is {_whose(layout)}, not install-service's: nothing was done"
    if layout.instance is not None:
        stop = _systemctl(layout, "disable")
        what = f"this service alone: {stop}; its policy is {layout.policy}, its journal in"
        raise PackagedError(message, f"{what} {layout.state}")
    if _is_dpkg(layout):
        apt = f"sudo apt remove {USER}"
        what = f"{apt} (stops it; policy and journal stay), sudo apt purge {USER} (journals go)"
    else:
        what = "remove it with the package manager that installed it"
    if layout.unit_file.exists():
        what += f"; before, uninstall-service without --purge for {layout.unit_file}"
    raise PackagedError(message, what)


def _whose(layout: Layout) -> str:
    return f"the Debian package {USER}'s" if _is_dpkg(layout) else "a package's"


def _is_dpkg(layout: Layout) -> bool:
    if layout.packaged is None:
        return False
    database = f"--admindir={layout.root / 'var/lib/dpkg'}"
    unit = str(layout.inside(layout.packaged))
    try:
        asked = steps.ask(["dpkg-query", database, "--search", unit])
    except StepError:  # no machine of Debian's
        return False
    return asked.returncode == 0 and asked.stdout.startswith(f"{USER}:")


def _systemctl(layout: Layout, verb: str) -> str:
    now = ["--now"] if layout.live else []
    return shlex.join(["sudo", *layout.command("systemctl", verb, *now, layout.unit)])
