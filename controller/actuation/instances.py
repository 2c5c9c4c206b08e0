"""How many instances a variant has, by its config, and with how many it could be loaded.

Owns the `instance_group` of a config. It must not load anything.

Only a variant whose config has one group is sized: of several, as on two kinds of devices, nobody
said which is to grow. A change of the number alone reloads nothing in Triton: the instances that
there are serve on, and another takes as long as a load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controller.actuation.alias import instances_of
from controller.actuation.places import GROUPS, folder_number
from controller.actuation.state import Alias, Server, Variant
from controller.telemetry.observation import Instances


def with_number(groups: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]] | None:
    """Return a config's group with another number of instances; None: it has several, or none."""
    if instances_of({GROUPS: groups}) is None:
        return None
    return [{**groups[0], "count": number}]


def is_alone(server: Server, model: str) -> bool:
    """Return whether a variant is the only one of every model that it serves."""
    return _are_alone(list(server.users(model)))


def instance_readings(server: Server) -> dict[str, Instances]:
    """Return how many instances each loaded variant has, by Triton's name."""
    serving = server.serving()
    users: dict[str, list[Alias]] = {}  # looked up once: this is asked at every tick
    for alias in server.aliases.values():
        for name in alias.order:
            users.setdefault(name, []).append(alias)
    found = {
        name: _reading(variant, users.get(name, []), serves=name in serving)
        for name, variant in server.variants.items()
    }
    return {name: own for name, own in found.items() if own is not None}


def _reading(variant: Variant, users: Sequence[Alias], *, serves: bool) -> Instances | None:
    """Return how many there are; None: it is not loaded, or not sized."""
    config = variant.config
    number = None if config is None else instances_of(config)
    if number is None or not variant.ready:
        return None
    override = variant.override
    folder = None if override is None else folder_number(override.sent, override.disk)
    least = folder or number
    serves = serves and not _are_alone(users)
    busy = variant.operation is not None or any(alias.switching for alias in users)
    return Instances(number, least, not (serves or busy or not variant.proven))


def _are_alone(users: Sequence[Alias]) -> bool:
    return bool(users) and all(len(alias.order) == 1 for alias in users)
