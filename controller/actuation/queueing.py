"""What a policy sets of a variant's config: the limits of Triton's queue, and its GPUs.

Owns which fields of a config follow from the policy, and the override that puts them there (where
its instances go is `controller.actuation.placing`'s). It must not load anything: the queue is
Triton's, and `controller.actuation.warm` loads.

A change of them is a full reload, so it is made when a variant is loaded or idle, never while it
serves, and in calm. Of what else Triton does by itself `model_warmup` is left to the config in the
folder: a request of it that fails ends Triton 2.51 (a Python model, std::bad_alloc), and every
variant is proven by a request anyhow before it serves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from controller.actuation.places import GROUPS, place_of
from controller.actuation.placing import aim_of, is_lost, placed_groups
from controller.actuation.room import short_of
from controller.actuation.state import Override, Server, Variant
from controller.policy.model import QueuePolicy

_LOG = logging.getLogger(__name__)
_US: Final = 1e6
_AGAIN_S: Final = 600.0  # before a queue is tried again that was refused
_BATCHING: Final = "dynamic_batching"
_WORDS: Final = {_BATCHING: "queue", GROUPS: "GPUs"}


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
    if variant.refused_queue == variant.queue:
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
    if variant.model in server.serving() or variant.model not in server.acted_on():
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


def set_up(server: Server, variant: Variant) -> bool:
    """Want of a variant what the policy says; return whether that takes a reload.

    The caller saves the server's memory before he sends it.
    """
    override = _override(server, variant)
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
    if override is None or GROUPS in override.of_policy:
        return  # as the folder says it may have no room
    if served and override.of_policy and not _of_others(override):
        variant.override, variant.reapply = None, False
        server.memory.override(variant.model, None)


def take_back(server: Server, variant: Variant, override: Override, error: str) -> None:
    """Want of a variant what it was without the policy, with which Triton does not load it."""
    others = _of_others(override)
    before = Override({**override.disk, **others}, {}, override.disk) if others else None
    variant.override, variant.reapply = before, False
    variant.refused_queue, variant.queue_error = variant.queue, error
    if GROUPS in override.of_policy:
        variant.refused_aim, variant.placed = server.aims.get(variant.model, ()), ()
    variant.queue_retry_s = server.clock() + _AGAIN_S  # it may have been for another reason
    server.memory.override(variant.model, before)
    what = " and ".join(_WORDS[name] for name in override.of_policy)
    _LOG.error("%s is loaded without the %s of the policy: %s", variant.model, what, error)


def _override(server: Server, variant: Variant) -> Override | None:
    """Return the override that the policy makes of a variant's; None: it has that already."""
    before, queue, aim = variant.override, variant.queue, aim_of(server, variant)
    refused = queue is not None and queue == variant.refused_queue
    if refused and server.clock() < variant.queue_retry_s:
        return None
    if before is None and queue is None and not aim:
        return None  # as nearly always
    disk = variant.config if before is None else before.disk
    if disk is None:
        return None
    base = disk if before is None else before.sent
    fields: dict[str, Any] = {}
    if queue is not None and _BATCHING in disk:
        fields[_BATCHING] = _limited(disk[_BATCHING], queue)
    operators = before is not None and GROUPS in _of_others(before)
    groups = None if operators else placed_groups(disk, aim)
    # Where it is already it stays as it is, whatever else its groups say.
    if aim and groups is not None and (GROUPS in _policys(before) or place_of(variant) != aim):
        fields[GROUPS] = groups
    kept = {name: value for name, value in base.items() if name not in _policys(before)}
    own = {name: disk[name] for name in _policys(before) if name in disk}
    sent = {**kept, **own, **fields}
    return None if sent == base else Override(sent, {}, disk, tuple(fields))


def _policys(override: Override | None) -> tuple[str, ...]:
    return () if override is None else tuple(override.of_policy)


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
