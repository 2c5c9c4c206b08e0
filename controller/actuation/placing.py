"""Where a choice of GPUs puts a variant.

Owns where the next load of a variant puts it, and what people are told of that. It must not choose
a GPU (`controller.planning.placing` does) nor load.

The groups stand in the config of the folder, which is not known before a variant was loaded once:
that first load goes as the folder says, on every GPU that it names. From then on, also after a
restart of ours or of Triton, a load goes where it was chosen to be.
"""

from __future__ import annotations

from controller.actuation.places import GROUPS, HOST, place_of, placed_groups
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
    is_known = variant.config is not None or variant.override is not None
    return aim_of(server, variant) if is_known and why_fixed(variant) is None else ()


def gpus_now(variant: Variant) -> tuple[int, ...]:
    """Return the GPUs that a variant is on, or last was; (): not known, or none."""
    return tuple(gpu for gpu in place_of(variant) if gpu != HOST)


def why_fixed(variant: Variant) -> str | None:
    """Return why nobody chooses the GPUs of a variant; None: nothing is known against it."""
    override = variant.override
    disk = variant.config if override is None else override.disk
    if disk is not None and placed_groups(disk, (0,)) is None:
        return "its config.pbtxt has no instances on GPUs: it is left where it is"
    if override is None or GROUPS in override.of_policy or variant.instances is not None:
        return None
    if override.sent.get(GROUPS) == override.disk.get(GROUPS):
        return None
    return "its instances were set over the API: it is left where it is"


def place_view(server: Server, variant: Variant) -> str | None:
    """Return what people are told of a choice of GPUs; None: there is none."""
    aim = server.aims.get(variant.model)
    if variant.model not in server.placed:
        return None
    fixed = why_fixed(variant)
    if fixed is not None or not aim:
        return fixed
    gpus = ", ".join(map(str, aim))
    if gpus_now(variant) == aim and variant.ready:
        return f"on GPU {gpus}"
    if aim == variant.refused_aim:
        return f"Triton does not load it on GPU {gpus}: {variant.queue_error}"
    return f"pending: GPU {gpus}, when it is loaded or does not serve"


def is_lost(server: Server, variant: Variant) -> bool:
    """Return whether a variant is on a GPU that is lost."""
    watch = server.free_memory
    lost = frozenset() if watch is None else watch.lost
    return not lost.isdisjoint(place_of(variant))
