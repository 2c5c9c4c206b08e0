"""What is set of a variant's config: the limits of Triton's queue, its GPUs, its instances.

Owns which fields of a config follow from the policy, or the planners, and the override that puts
them there (`controller.actuation.places` knows how GPUs are named, `instances` numbers). It must
not load anything: the queue is Triton's, and `controller.actuation.warm` loads.

A change of the queue is a full reload, so it is made when a variant is loaded or idle, never while
it serves, and in calm. So are instances moved, added and taken away; only a variant that is its
model's only one is given another number where it serves, which reloads nothing. Of what else
Triton does by itself `model_warmup` is left to the config in the folder: a request of it that fails
ends Triton 2.51 (a Python model, std::bad_alloc), and every variant is proven by a request anyhow
before it serves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from controller.actuation.alias import instances_of
from controller.actuation.instances import is_alone, with_number
from controller.actuation.places import (
    GROUPS,
    folder_number,
    gpus_of,
    is_placed,
    place_of,
    placed_groups,
)
from controller.actuation.placing import aim_of, is_lost
from controller.actuation.remembered import Override
from controller.actuation.room import short_of
from controller.actuation.state import Server, Variant
from controller.policy.model import QueuePolicy

_LOG = logging.getLogger(__name__)
_US: Final = 1e6
_AGAIN_S: Final = 600.0  # before a queue is tried again that was refused
_BATCHING: Final = "dynamic_batching"


def unset(config: Mapping[str, Any], queue: QueuePolicy | None) -> str | None:
    """Return why a config cannot have the queue that the policy wants; None: it can."""
    if queue is None or _BATCHING in config:
        return None
    return (
        f"its config.pbtxt has no {_BATCHING}, without which Triton's queue has no limits: "
        f"add `{_BATCHING} {{}}`"
    )


def queue_view(server: Server, variant: Variant) -> str | None:
    """Return what people are told of a policy's queue; None: the policy wants none."""
    if variant.queue is None:
        return None
    if variant.refused == variant.wanted and not _has_queue(variant, variant.queue):
        return f"Triton does not load it with that: {variant.queue_error}"
    if variant.model not in server.acted_on():
        return "not set: only advised on, or released"
    why = None if variant.config is None else unset(variant.config, variant.queue)
    if why is None and (variant.reapply or is_pending(server, variant, _BATCHING)):
        why = "pending: it is reloaded when it does not serve"
    return why or "set"


def is_pending(server: Server, variant: Variant, field: str | None = None) -> bool:
    """Return whether a variant's config, or one field, is not what the policy makes of it."""
    override = _override(server, variant)
    if override is None or field is None:
        return override is not None
    base = override.disk if variant.override is None else variant.override.sent
    return override.sent.get(field) != base.get(field)


def may_reload(server: Server, variant: Variant) -> bool:
    """Return whether an idle variant may be reloaded now for what the policy makes of it.

    It is a way out for clients, and where an alias may be put back to: so only in calm, where
    nothing is under way, there is memory for two of it, and it is not the only way out. One on a
    GPU that is lost is no way out for anybody, and cannot be proven either.
    """
    lost = is_lost(server, variant)
    if not variant.ready or not (variant.proven or lost) or not is_pending(server, variant):
        return False
    if variant.model not in server.acted_on():
        return False
    if variant.model in server.serving() and not _is_resized(server, variant):
        return False
    now_s = server.clock()
    for alias in server.users(variant.model):
        busy = alias.switching or alias.unsettled is not None or alias.proof is not None
        if busy or alias.held is not None or not alias.known or not alias.ready:
            return False
        if lost or variant.model not in alias.order or alias.target not in alias.order:
            continue
        faster = alias.order[: alias.order.index(alias.target)]
        others = (server.variants[name] for name in faster if name != variant.model)
        spared = any(other.proven and other.operation is None for other in others)
        calm = alias.since_s is not None and now_s - alias.since_s >= server.timing.calm_s
        if variant.model in faster and not (spared or calm):
            return False
    return short_of(server, variant) is None


def _is_resized(server: Server, variant: Variant) -> bool:
    """Return whether a model's only variant is to have another number of instances, where it is.

    That alone is done then: the rest would be a reload. Nor may it have lost what it was to have.
    """
    if variant.reapply:
        return False
    override, config = _override(server, variant, stays=True), variant.config
    if override is None or config is None or not is_alone(server, variant.model):
        return False
    before = config if variant.override is None else variant.override.sent
    wanted, has = (
        {**one, GROUPS: with_number(one.get(GROUPS) or (), 1)} for one in (override.sent, before)
    )
    return has[GROUPS] is not None and wanted == has


def set_up(server: Server, variant: Variant, *, stays: bool = False) -> bool:
    """Want of a variant what the policy says; return whether that takes a load.

    The caller saves the server's memory before he sends it.

    Args:
        server: where.
        variant: that is to be loaded.
        stays: on its GPUs, wherever it is to be, and with the queue that it has: it serves.
    """
    override = _override(server, variant, stays=stays)
    if override is None:
        return False
    variant.override, variant.reapply = override, True
    server.memory.override(variant.model, override)
    return True


def look_at_folder(server: Server, variant: Variant) -> None:
    """Forget what a policy once set, so that the next load shows the config in the folder.

    Somebody may have edited that since. Only where clients are served meanwhile: it takes two
    loads then.
    """
    override = variant.override
    served = all(alias.ready for alias in server.users(variant.model))
    if override is None or is_placed(override):
        return  # as the folder says it may have no room
    if served and override.of_policy and not _of_others(override):
        variant.override, variant.reapply = None, False
        server.memory.override(variant.model, None)


def prepare(server: Server, variant: Variant, *, fresh: bool) -> bool:
    """Want of a variant what its load is to give it; return whether that is to be saved first.

    Args:
        server: where.
        variant: that is to be loaded.
        fresh: it is not there yet. It goes as its folder says where nothing is known of that, and
            else at once where it is to be: where it was there may be no room, or no GPU.
    """
    if not fresh:
        return set_up(server, variant, stays=variant.model in server.serving())
    look_at_folder(server, variant)
    return variant.override is not None and set_up(server, variant)


def want_again(server: Server, variant: Variant, before: Override | None, reapply: bool) -> bool:
    """Want of a loaded variant what was wanted before, as nothing was sent: no change."""
    variant.override, variant.reapply = before, reapply
    server.memory.override(variant.model, before)
    return False


def take_back(server: Server, variant: Variant, override: Override, error: str) -> None:
    """Want of a variant what it had, as Triton does not load it with this.

    That is what it was last loaded with; where that is not known, or is this, what it is without
    the policy.
    """
    others, before = _of_others(override), variant.met
    if before is None or before.disk != override.disk or before.sent == override.sent:
        before = Override({**override.disk, **others}, {}, override.disk) if others else None
    was = override.disk if before is None else before.sent
    what = []
    if override.sent.get(_BATCHING) != was.get(_BATCHING):
        what.append("queue")
    number = instances_of(was) or folder_number(override.sent, override.disk)
    if instances_of(override.sent) != number:
        what.append("instances")
    if what:
        variant.refused = variant.wanted
    if gpus_of(override.sent) != gpus_of(was):
        what.append("GPUs")
        variant.refused_aim = server.aims.get(variant.model, ())
        variant.placed, variant.placed_by = (), None  # as its config says, if that is known
    variant.override, variant.reapply, variant.queue_error = before, False, error
    variant.queue_retry_s = server.clock() + _AGAIN_S  # it may have been for another reason
    server.memory.override(variant.model, before)
    named = " and ".join(what)
    _LOG.error("%s is loaded without the %s that it was to have: %s", variant.model, named, error)


def _override(server: Server, variant: Variant, *, stays: bool = False) -> Override | None:
    """Return the override that the policy makes of a variant's; None: it has that already.

    `stays`: on its GPUs, wherever it is to be, and with the queue that it has: it serves.
    """
    aim = aim_of(server, variant)
    before, queue, number = variant.override, variant.queue, variant.instances
    refused = variant.refused == variant.wanted and server.clock() < variant.queue_retry_s
    if before is None and queue is None and number is None and not aim:
        return None  # as nearly always
    disk = variant.config if before is None else before.disk
    if disk is None:
        return None
    base = disk if before is None else before.sent
    former = () if before is None else tuple(before.of_policy)
    fields: dict[str, Any] = {}
    if refused:  # what it has of that stays; where it is may change
        number = instances_of(base) if GROUPS in former else None
    if refused or stays:
        fields = {name: base[name] for name in former if name == _BATCHING and name in base}
    elif queue is not None and _BATCHING in disk:
        fields[_BATCHING] = _limited(disk[_BATCHING], queue)
    if before is None or number is not None or GROUPS not in _of_others(before):
        stays = stays or aim != server.aims.get(variant.model, ())  # Triton refused it there
        groups = _groups(variant, disk, base, number, None if stays else aim)
        if groups != disk.get(GROUPS):
            fields[GROUPS] = groups
    kept = {name: value for name, value in base.items() if name not in former}
    own = {name: disk[name] for name in former if name in disk}
    sent = {**kept, **own, **fields}
    return None if sent == base else Override(sent, {}, disk, tuple(fields))


def _groups(
    variant: Variant,
    disk: Mapping[str, Any],
    base: Mapping[str, Any],
    number: int | None,
    aim: tuple[int, ...] | None,
) -> Sequence[Mapping[str, Any]] | None:
    """Return the groups of instances that a variant is to have: on these GPUs, so many on each.

    Args:
        variant: whose.
        disk: its config as it stands in the folder.
        base: as it is to be by now.
        number: of instances; None: as many as in the folder.
        aim: the GPUs; (): as in the folder; None: where it is.
    """
    if aim is None:
        found = base.get(GROUPS)
        number = folder_number(base, disk) if number is None else number
    else:
        found, former = disk.get(GROUPS), variant.override
        placed = placed_groups(disk, aim) if aim else None
        # Where it is already it stays as it is, whatever else its groups say.
        chosen = former is not None and GROUPS in former.of_policy
        if placed is not None and (chosen or place_of(variant) != aim):
            found = placed
    sized = None if found is None or number is None else with_number(found, number)
    return found if sized is None else sized


def _has_queue(variant: Variant, queue: QueuePolicy) -> bool:
    """Return whether a variant is to have a queue by the override that it has."""
    override = variant.override
    if override is None or _BATCHING not in override.disk:
        return False
    return bool(override.sent.get(_BATCHING) == _limited(override.disk[_BATCHING], queue))


def _of_others(override: Override) -> dict[str, Any]:
    """Return what an override changes that is not the policy's."""
    return {
        name: value
        for name, value in override.sent.items()
        if name not in override.of_policy and value != override.disk.get(name)
    }


def _limited(disk: Mapping[str, Any], queue: QueuePolicy) -> dict[str, Any]:
    """Return `dynamic_batching` as it stands in the folder, with the policy's queue."""
    found = dict(disk)
    limits = dict(disk.get("default_queue_policy", {}))
    if queue.timeout_s is not None:
        limits.pop("timeout_action", None)  # REJECT is its default, and is not told
        limits["default_timeout_microseconds"] = str(round(queue.timeout_s * _US))
    if queue.max_size is not None:
        limits["max_queue_size"] = queue.max_size
    if limits:
        found["default_queue_policy"] = limits
    if queue.max_delay_s is not None:
        found["max_queue_delay_microseconds"] = str(round(queue.max_delay_s * _US))
    if queue.priority_levels is not None:
        found["priority_levels"] = str(queue.priority_levels)
        found["default_priority_level"] = str(queue.default_priority_level or queue.priority_levels)
        found.pop("priority_queue_policy", None)  # its levels are those of other times
    return found
