"""What lies where: the service's files, below a folder that stands for `/`.

Owns the paths and the shipped texts. It must not write anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.interfaces.paths import SERVICE, service_name

USER: Final = SERVICE
UNITS: Final = "etc/systemd/system"
PACKAGED: Final = ("usr/lib/systemd/system", "lib/systemd/system")  # of packages, never ours
SHIPPED_PROGRAM: Final = "/opt/triton-governor/bin/governor"  # what the shipped units start


def shipped(name: str) -> str:
    """Return the text of a shipped file: from the wheel, or from the checkout."""
    carried = Path(__file__).parent / "shipped" / name
    checkout = Path(__file__).parents[2] / "systemd" / name
    return (carried if carried.is_file() else checkout).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one service.

    Args:
        root: stands for `/`; another folder is an image or a package in the making.
        instance: the server's name where there are several; None: the only one.

    Raises ValueError on use for what is no instance's name.
    """

    root: Path
    instance: str | None = None

    @property
    def live(self) -> bool:
        """Whether this is the machine that runs, and not an image."""
        return self.root == Path("/")

    @property
    def unit(self) -> str:
        """Return what systemctl calls it."""
        return (
            f"{SERVICE}.service" if self.instance is None else f"{SERVICE}@{self.instance}.service"
        )

    @property
    def unit_file(self) -> Path:
        """Return the unit, or the template of all instances."""
        return self.root / UNITS / self.shipped_unit

    @property
    def shipped_unit(self) -> str:
        """Return the name of the shipped unit."""
        return f"{SERVICE}.service" if self.instance is None else f"{SERVICE}@.service"

    @property
    def packaged(self) -> Path | None:
        """Return the unit that a package brought, or None: that is not ours to take away."""
        found = (self.root / folder / self.shipped_unit for folder in PACKAGED)
        return next((path for path in found if path.is_file()), None)

    @property
    def drop_ins(self) -> Path:
        """Return the folder of what an administrator changed of it."""
        return self.root / UNITS / f"{self.unit}.d"

    @property
    def users(self) -> Path:
        """Return what systemd-sysusers makes the user from."""
        return self.root / "etc/sysusers.d" / f"{SERVICE}.conf"

    @property
    def folders(self) -> Path:
        """Return what systemd-tmpfiles makes the folder of policies from."""
        return self.root / "etc/tmpfiles.d" / f"{SERVICE}.conf"

    @property
    def policies(self) -> Path:
        """Return the folder of policies."""
        return self.root / "etc" / SERVICE

    @property
    def policy(self) -> Path:
        """Return the policy's file."""
        return self.policies / f"{self.instance or 'policy'}.yaml"

    @property
    def state(self) -> Path:
        """Return the folder of the journal."""
        return self.root / "var/lib" / service_name(self.instance)

    def inside(self, path: Path) -> Path:
        """Return a path as the machine itself will see it."""
        return Path("/") / path.relative_to(self.root)

    def command(self, program: str, *words: str) -> list[str]:
        """Return a command of systemd's for this machine, or for this image."""
        return [program, *(() if self.live else (f"--root={self.root}",)), *words]

    def links(self) -> list[Path]:
        """Return the links by which it is enabled to start, also those that lead nowhere."""
        found = (folder / self.unit for folder in (self.root / UNITS).glob("*.wants"))
        return sorted(path for path in found if path.is_symlink())

    def instances(self) -> list[str]:
        """Return the instances that are enabled to start."""
        found = (self.root / UNITS).glob(f"*.wants/{SERVICE}@?*.service")
        return sorted(
            {path.name.removeprefix(f"{SERVICE}@").removesuffix(".service") for path in found}
        )
