"""How a server, its aliases and its variants look from outside.

Owns what people, programs and the daemon's loop are told of the actuator's picture. It must not
ask the server.
"""

from __future__ import annotations

import math
from typing import Any

from controller.actuation.placing import place_view
from controller.actuation.queueing import queue_view
from controller.actuation.state import Server, Variant, unusable
from controller.telemetry.observation import ModelReading


def variants_view(server: Server) -> dict[str, dict[str, Any]]:
    """Return each variant by Triton's name, JSON-ready."""
    now_s = server.clock()
    return {variant.model: _variant(server, variant, now_s) for variant in server.variants.values()}


def alias_readings(server: Server, now_s: float) -> dict[str, ModelReading]:
    """Return each alias as it is known at a moment, by its name."""
    return {
        alias.name: ModelReading(
            name=alias.name,
            serving=None if alias.ready is False else alias.target,
            since_s=alias.since_s,
            ready=alias.ready if server.reachable else None,
            switching=alias.switching,
            held=alias.held if now_s < alias.held_until_s else None,
            unusable=unusable(server, alias),
        )
        for alias in server.aliases.values()
    }


def operations(server: Server) -> dict[str, str]:
    """Return what is under way on variants: load, reload or unload, by Triton's name.

    A load of one that is there already may reload it.
    """
    return {
        variant.model: "reload" if variant.operation == "load" and variant.ready else operation
        for variant in server.variants.values()
        if (operation := variant.operation) not in (None, "refresh")
    }


def _variant(server: Server, variant: Variant, now_s: float) -> dict[str, Any]:
    fresh_age_s = now_s - variant.refreshed_s
    return {
        "ready": variant.ready,
        "proven": variant.proven,
        "warm": variant.warm,
        "operation": variant.operation,
        "error": variant.error,
        "override": variant.override is not None,
        "queue": queue_view(server, variant),
        "gpus": place_view(server, variant),
        "fresh_age_s": fresh_age_s if math.isfinite(fresh_age_s) else None,
    }
