"""The daemon as a process: its signals and its log.

Owns what a process gives and takes from outside. It must not hold the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Final

from controller.daemon.loop import Daemon, Options
from controller.policy.model import Policy

_FORCED: Final = 130
_PRIORITIES: Final[Mapping[int, int]] = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


async def serve(policy: Policy, options: Options) -> None:
    """Govern until SIGTERM or SIGINT; the second one ends the process at once.

    Raises AdminSocketError when the socket cannot be opened.
    """
    daemon = Daemon(policy, options)
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            os._exit(_FORCED)
        asked = True
        daemon.stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    await daemon.run()


class _ForJournald(logging.Formatter):
    """Puts the syslog priority before each line, as sd-daemon(3) describes; no time of its own."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def start_log(level: str) -> None:
    """Log to stderr, for a person or for journald."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_ForJournald("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
