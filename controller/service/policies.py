"""A policy's files on their way into the service's folder: the policy, and what it includes.

Owns which file goes where, and whether the service may read it there. It must not know what a
policy says beyond the files that it includes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from controller.service.layout import USER, Layout
from controller.service.program import why_out_of_reach

POLICY_MODE = 0o640
FOLDER_MODE = 0o750

Files = Mapping[Path, bytes | None]  # by where they go; None: it is there


class PlaceError(Exception):
    """A file that cannot go where the policy would look for it; the text says why."""


def placed(layout: Layout, policy: Path, seen: Iterable[str]) -> Files:
    """Return a policy's files, each for the same place beside the policy as now, it last.

    Args:
        layout: where the policy goes; it is not there yet.
        policy: the file.
        seen: it and all that it includes, as they were looked for.

    Raises PlaceError, and OSError where a file cannot be read.
    """
    found: dict[Path, bytes | None] = {}
    for file in map(Path, seen):
        if file == policy:
            continue
        name = file.relative_to(policy.parent) if file.is_relative_to(policy.parent) else file
        if name.is_absolute() or ".." in name.parts:
            raise PlaceError(
                f"it includes {file}, which is not below {policy.parent}: only what is can lie"
                f" below {layout.inside(layout.policies)} in the same way"
            )
        target = layout.policies / name
        text = file.read_bytes()
        if target == layout.policy:
            raise PlaceError(
                f"it includes {file}, and that name is the policy's own in"
                f" {layout.inside(layout.policies)}: give that file another one"
            )
        if not target.exists():
            found[target] = text
        elif target.read_bytes() == text:
            found[target] = None
        else:
            raise PlaceError(
                f"it includes {file}, and {target} is there and differs; that is not overwritten:"
                " other policies may include it. Make them the same, or give one another name"
            )
    return {**found, layout.policy: policy.read_bytes()}


def there(layout: Layout, seen: Iterable[str]) -> Files:
    """Return the files of a policy that is there, those outside of its folder left out."""
    files = [path for path in map(Path, seen) if is_inside(layout, path)]
    return dict.fromkeys([*files, layout.policy], None)


def outside(layout: Layout, seen: Iterable[str]) -> Iterator[str]:
    """Yield what the service could not read of the files that lie elsewhere, and why."""
    for path in map(Path, seen):
        if path != layout.policy and not is_inside(layout, path):
            reason = why_out_of_reach(path.absolute())
            if reason is not None:
                yield (
                    f"the policy includes {path}, which the service could not read: {reason}; move"
                    f" it below {layout.inside(layout.policies)}"
                )


def is_inside(layout: Layout, path: Path) -> bool:
    """Return whether a file lies in the folder of policies, links followed."""
    return path.resolve().is_relative_to(layout.policies.resolve())


def may_read(layout: Layout, path: Path, group: int | None) -> bool:
    """Return whether the service's group may read a file there, and enter the folders above."""
    needed = [(path, stat.S_IRGRP), *((folder, stat.S_IXGRP) for folder in _folders(layout, path))]
    for one, bit in needed:
        found = one.stat()
        others = one != path and found.st_mode & stat.S_IXOTH
        if not others and (found.st_gid != group or not found.st_mode & bit):
            return False
    return True


def open_to(layout: Layout, path: Path, group: int) -> None:
    """Let the service's group read a file there, and enter the folders above. Raises OSError."""
    for folder in _folders(layout, path):
        os.chown(folder, 0, group)
        folder.chmod(FOLDER_MODE)
    os.chown(path, 0, group)
    path.chmod(POLICY_MODE)


def _folders(layout: Layout, path: Path) -> list[Path]:
    """Return the folders between the policies' own, which tmpfiles.d makes, and a file."""
    own = layout.policies.resolve()
    return [folder for folder in path.resolve().parents if folder != own and own in folder.parents]


def shown(path: Path) -> str:
    """Return what a step says of a file."""
    return f"{path}, root:{USER} {POLICY_MODE:04o}"
