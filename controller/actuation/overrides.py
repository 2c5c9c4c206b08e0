"""What becomes of an override: a config that a variant is to have instead of that in its folder.

Owns whether it is on the server, lost and to be put back, or no longer wanted. It must not load.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from controller.actuation.remembered import Override
from controller.actuation.state import Server, Variant
from controller.actuation.state_file import differ_as_allowed

_LOG = logging.getLogger(__name__)


def judge(server: Server, variant: Variant, override: Override, seen: dict[str, Any]) -> None:
    """Decide what becomes of an override that is not, or not known to be, on the server."""
    ours = not override.expected
    if ours and override.is_met_by(seen):
        confirm(server, variant, seen)  # its load's answer was lost, or we died
    elif not differ_as_allowed(override.sent, seen):
        # It came from a file, or the folder changed: nothing else of a config is ours to set.
        _LOG.warning("%s has another config than its override was made for", variant.model)
        drop(server, variant)
    elif ours or seen == override.disk:
        variant.reapply = True
    else:
        drop(server, variant)


def confirm(server: Server, variant: Variant, seen: dict[str, Any]) -> None:
    """Take note that a variant has the config that it is to have, as the server tells it."""
    override = variant.override
    if override is None:
        return
    variant.reapply = False
    if override.sent == override.disk:  # none is wanted any more
        drop(server, variant)
        return
    variant.override = variant.met = replace(override, expected=seen)
    server.memory.override(variant.model, variant.override)


def drop(server: Server, variant: Variant) -> None:
    """Want a variant as it stands in its folder."""
    variant.override, variant.met, variant.reapply = None, None, False
    server.memory.override(variant.model, None)
