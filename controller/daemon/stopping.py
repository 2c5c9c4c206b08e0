"""How long a part of the daemon may take to stop.

Owns that bound: whatever a part does, the next one is stopped. It must not know the parts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final

_LOG = logging.getLogger("governor")

_STOP_S: Final = 5.0  # each part has so long to stop


async def bounded(what: str, work: Awaitable[object]) -> None:
    """Wait until a part has stopped, but not long; log what went wrong. Never raises for it."""
    try:
        async with asyncio.timeout(_STOP_S):
            await work
    except TimeoutError:
        _LOG.warning("%s did not stop in %g s; left behind", what, _STOP_S)
    except Exception:  # noqa: BLE001 - the next part must still be stopped
        _LOG.exception("stopping %s failed", what)
