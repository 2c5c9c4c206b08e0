"""Sends the synthetic requests that the core asks for, one at a time, off the tick.

Owns the request in flight. What it measures comes back through Triton's statistics.
"""

from __future__ import annotations

import asyncio
import logging
import time

from controller.actuation.actuator import Actuator
from controller.planning.core import GovernorCore
from controller.prediction.probing import Probe
from controller.telemetry.observation import ProbeDone

_LOG = logging.getLogger("governor")


class Prober:
    """At most one probe at a time."""

    def __init__(self, core: GovernorCore) -> None:
        self._core = core
        self._task: asyncio.Task[None] | None = None
        self._done: list[ProbeDone] = []

    @property
    def busy(self) -> bool:
        """Return whether a probe is under way."""
        return self._task is not None and not self._task.done()

    def send(self, probes: tuple[Probe, ...], actuator: Actuator) -> None:
        """Send the first probe unless one is still under way."""
        if not probes or self.busy:
            return
        self._task = asyncio.create_task(self._send(probes[0], actuator), name="probe")

    async def _send(self, probe: Probe, actuator: Actuator) -> None:
        began_s = time.monotonic()
        try:
            await actuator.probe(probe.model, probe.rows)
        except Exception as error:  # noqa: BLE001 - a probe that fails teaches nothing, no more
            _LOG.debug("probing %s with %d rows failed: %s", probe.model, probe.rows, error)
        else:
            self._done.append(ProbeDone(probe.model, probe.rows))
        now_s = time.monotonic()
        self._core.probe_spent(now_s - began_s, now_s)

    def take(self) -> tuple[ProbeDone, ...]:
        """Return the probes that ended since the last call."""
        done, self._done = tuple(self._done), []
        return done

    async def stop(self) -> None:
        """Give the probe in flight up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)
