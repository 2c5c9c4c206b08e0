"""The daemon as a process: its signals.

Owns what a process is told from outside. It must not hold the loop; the log is
`controller.daemon.log`'s.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from controller.daemon.loop import Daemon, Options
from controller.policy.model import Policy

_FORCED: Final = 130


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
