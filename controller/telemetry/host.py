"""The host as psutil sees it.

Owns one blocking sample of load and memory. It must not decide what the numbers mean, and what
the system does not tell is None.
"""

import psutil

from controller.telemetry.observation import HostReading
from controller.telemetry.source import Clock, Ledger, ThreadSource, silence_s

CADENCE_S = 1.0


def read_memory() -> HostReading:
    """Read only what memory there is and what of it is used, at once."""
    memory = psutil.virtual_memory()
    return HostReading(
        memory_used_bytes=int(memory.total - memory.available),
        memory_total_bytes=int(memory.total),
    )


class HostSampler:
    """Samples the host; CPU load is that since the sample before."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)  # sets the base

    def sample(self) -> HostReading:
        """Read the host once."""
        percent = psutil.cpu_percent(interval=None)
        memory = psutil.virtual_memory()
        return HostReading(
            cpu_ratio=min(percent / 100.0, 1.0),
            cpu_count=psutil.cpu_count(),
            memory_used_bytes=int(memory.total - memory.available),
            memory_total_bytes=int(memory.total),
            load_1m=_load(),
        )


def _load() -> float | None:
    try:
        return float(psutil.getloadavg()[0])
    except OSError:
        return None


def host_source(*, clock: Clock) -> ThreadSource[HostReading]:
    """Return the source, not yet started."""
    ledger: Ledger[HostReading] = Ledger("host", clock=clock, silent_s=silence_s(CADENCE_S))
    return ThreadSource(ledger, HostSampler().sample, cadence_s=CADENCE_S)
