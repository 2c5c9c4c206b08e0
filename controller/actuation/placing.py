"""Where a choice of GPUs puts a variant.

Owns where the next load of a variant puts it, and what people are told of that. It must not choose
a GPU (`controller.planning.placing` does) nor load.

The groups stand in the config of the folder, which is not known before a variant was loaded once:
that first load goes as the folder says, on every GPU that it names. From then on, also after a
restart of ours or of Triton, a load goes where it was chosen to be.
"""

from __future__ import annotations

from controller.actuation.places import place_of, placed_groups
from controller.actuation.state import Server, Variant


def aim_of(server: Server, variant: Variant) -> tuple[int, ...]:
    """Return the GPUs that were chosen for a variant; (): none, or Triton refused it there."""
    aim = server.aims.get(variant.model, ())
    refused = aim == variant.refused_aim and server.clock() < variant.queue_retry_s
    return () if refused else aim


def next_place(server: Server, name: str) -> tuple[int, ...]:
    """Return where the next load of a variant puts it; (): where it was, or as its folder says."""
    variant = server.variants.get(name)
    if variant is None:
        return ()
    disk = variant.config if variant.override is None else variant.override.disk
    aim = aim_of(server, variant)
    return aim if aim and disk is not None and placed_groups(disk, aim) is not None else ()


def place_view(server: Server, variant: Variant) -> str | None:
    """Return what people are told of a choice of GPUs; None: there is none."""
    aim = server.aims.get(variant.model)
    if not aim:
        return None
    gpus = ", ".join(map(str, aim))
    disk = variant.config if variant.override is None else variant.override.disk
    if disk is not None and placed_groups(disk, aim) is None:
        return "its config.pbtxt has no instances on GPUs: it is left where it is"
    if place_of(variant) == aim and variant.ready:
        return f"on GPU {gpus}"
    if aim == variant.refused_aim:
        return f"Triton does not load it on GPU {gpus}: {variant.queue_error}"
    return f"pending: GPU {gpus}, when it is loaded or does not serve"


def is_lost(server: Server, variant: Variant) -> bool:
    """Return whether a variant is on a GPU that is lost."""
    watch = server.free_memory
    lost = frozenset() if watch is None else watch.lost
    return not lost.isdisjoint(place_of(variant))
