"""Which GPUs a variant is on, and what it needs of each.

Owns what a config says of GPUs, and the arithmetic of needs by GPU. It must not read how much
memory there is, nor choose a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from controller.actuation.state import Variant

GROUPS: Final = "instance_group"  # the field of a config
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


def moved(measured: Mapping[str, int], to: tuple[int, ...]) -> dict[str, int]:
    """Return what a variant is known to hold that was moved, by GPU."""
    size = max(measured.values(), default=0)
    return {gpu: size if int(gpu) in to else 0 for gpu in {*measured, *map(str, to)}}


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
    for group in config.get("instance_group") or ():
        if group.get("kind") == "KIND_CPU":
            found.add(-1)
        elif group.get("gpus"):
            found |= {int(gpu) for gpu in group["gpus"]}
        else:
            return ()  # the model itself decides
    return tuple(sorted(found))
