"""Which GPUs a variant is on, and what it needs of each.

Owns what a config says of GPUs, and the arithmetic of needs by GPU. It must not read how much
memory there is, nor choose a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from controller.actuation.alias import instances_of

if TYPE_CHECKING:
    from controller.actuation.remembered import Override
    from controller.actuation.state import Variant

GROUPS: Final = "instance_group"  # the field of a config
_GPU: Final = "KIND_GPU"
HOST: Final = -1  # in a placement: an instance on the host's processors


def is_known(placed: tuple[int, ...]) -> bool:
    """Return whether a placement tells all that a variant may use: on the host it may use any."""
    return bool(placed) and HOST not in placed


def needs_by_gpu(
    gpus: Iterable[int],
    *,
    declared: int,
    measured: Mapping[str, int],
    placed: tuple[int, ...],
    aim: tuple[int, ...] = (),
) -> dict[int, int]:
    """Return what a variant needs of each of some GPUs, in bytes, where anything is known.

    A model without instances on GPUs may still use them (Python's do): what was measured counts
    wherever it was, and where nobody knows the place, what is declared counts everywhere.

    Args:
        gpus: to be told.
        declared: what it takes of each GPU that it is on; 0: nothing was declared.
        measured: what it was seen to take, by GPU.
        placed: where its instances are, or last were; (): not known.
        aim: where its next load puts them; (): where they were.
    """
    size = max([declared, *measured.values()])
    if aim:
        return {gpu: _at(gpu, declared, measured, size) if gpu in aim else 0 for gpu in gpus}
    known = is_known(placed)
    return {
        gpu: _at(gpu, declared, measured, size)
        if known and gpu in placed
        else measured.get(str(gpu), 0)
        if known
        else max(declared, measured.get(str(gpu), 0))
        for gpu in gpus
    }


def _at(gpu: int, declared: int, measured: Mapping[str, int], size: int) -> int:
    """Return what one takes where it is: on a GPU that it never was on, as much as elsewhere."""
    return max(declared, measured.get(str(gpu), 0) or size)


def moved(
    measured: Mapping[str, int], to: tuple[int, ...], seen: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return what a variant is known to hold that was moved, by GPU.

    Args:
        measured: what it was seen to take where it was, by GPU.
        to: where it is.
        seen: what it is seen to hold by now; what it left may not be free yet.
    """
    size, now = max(measured.values(), default=0), seen or {}
    gpus = {*measured, *map(str, to)}
    return {gpu: (now.get(gpu) or size) if int(gpu) in to else 0 for gpu in gpus}


def place_of(variant: Variant | None) -> tuple[int, ...]:
    """Return the GPUs that a variant has instances on, or last had; (): not known."""
    if variant is None:
        return ()
    config = variant.config
    if config is not None and config is not variant.placed_by:  # asked for at every tick
        variant.placed, variant.placed_by = gpus_of(config), config
    return variant.placed


def gpus_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the GPUs that a loaded model has instances on; -1: the host's processors.

    (): that cannot be told.
    """
    found = set()
    for group in config.get(GROUPS) or ():
        if group.get("kind") == "KIND_CPU":
            found.add(-1)
        elif group.get("gpus"):
            found |= {int(gpu) for gpu in group["gpus"]}
        else:
            return ()  # the model itself decides
    return tuple(sorted(found))


def placed_groups(disk: Mapping[str, Any], gpus: Sequence[int]) -> list[dict[str, Any]] | None:
    """Return a config's groups of instances on other GPUs; None: it has none that could move.

    Each group keeps its number of instances on each GPU, and everything else. Groups that differ
    in their GPUs alone become one.
    """
    found: list[dict[str, Any]] = []
    for group in disk.get(GROUPS) or ():
        moved = dict(group)
        if group.get("kind") == _GPU or group.get("gpus"):
            moved["kind"], moved["gpus"] = _GPU, list(gpus)
            same = [{**one, "name": None} for one in found]
            if {**moved, "name": None} in same:
                continue
        found.append(moved)
    return found if any(group.get("gpus") for group in found) else None


def folder_number(sent: Mapping[str, Any], disk: Mapping[str, Any]) -> int | None:
    """Return the instances on each device that a variant's folder says, wherever it was put.

    None: that is not one number.
    """
    number = instances_of(disk)
    if number is None:
        number = instances_of({GROUPS: placed_groups(disk, gpus_of(sent))})
    return number


def is_placed(override: Override) -> bool:
    """Return whether an override puts a variant on other GPUs than its folder does."""
    return GROUPS in override.of_policy and gpus_of(override.sent) != gpus_of(override.disk)
