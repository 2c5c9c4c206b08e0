"""How a server and its variants look from outside: JSON-ready dictionaries.

Owns what people and programs are told of the actuator's picture. It must not ask the server.
"""

from __future__ import annotations

import math
from typing import Any

from controller.actuation.placing import place_view
from controller.actuation.queueing import queue_view
from controller.actuation.state import Server, Variant


def variants_view(server: Server) -> dict[str, dict[str, Any]]:
    """Return each variant by Triton's name."""
    now_s = server.clock()
    return {variant.model: _variant(server, variant, now_s) for variant in server.variants.values()}


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
