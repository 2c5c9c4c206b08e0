"""Is there memory for a load, and has an unload given back what it held?

Owns the comparison of what variants are declared to need with what is free. A load that runs out
of memory fails late and leaks; so it is refused beforehand. What nobody declared or nobody can
read refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from controller.policy.model import Policy, VariantPolicy
from controller.policy.units import format_bytes
from controller.telemetry.observation import GpuReading, HostReading

_RETURNED: Final = 0.5  # of what is declared: other programs take and give meanwhile


class MemoryWatch:
    """Compares declared needs with free memory.

    Args:
        policy: what variants need, and how much stays free.
        host: returns the newest reading of the host; None: there is none.
        gpus: returns the newest reading of every GPU that is watched.
    """

    def __init__(
        self,
        policy: Policy,
        host: Callable[[], HostReading | None],
        gpus: Callable[[], Sequence[GpuReading]],
    ) -> None:
        self._host = host
        self._gpus = gpus
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Follow a new policy."""
        self._reserve_bytes = policy.memory.reserve_bytes
        self._variants: dict[str, list[VariantPolicy]] = {}
        for model in policy.models:
            for variant in model.variants:
                self._variants.setdefault(variant.model, []).append(variant)

    def why_not(self, model: str) -> str | None:
        """Return why a Triton model must not be loaded now; None: nothing speaks against it.

        A variant that is loaded already needs its memory once more: Triton keeps the old instances
        until the new ones are ready.
        """
        for where, need, free in self._needs(model):
            if free - need < self._reserve_bytes:
                return (
                    f"memory is short: it needs {format_bytes(need)} of {where}, "
                    f"{format_bytes(self._reserve_bytes)} must stay free (memory.reserve), and "
                    f"there are {_rounded(free)}"
                )
        return None

    def free_bytes(self, model: str) -> dict[str, int]:
        """Return what is free now where a model is declared to need something."""
        return {where: free for where, _, free in self._needs(model)}

    def is_back(self, model: str, before: Mapping[str, int]) -> bool:
        """Return whether a model's memory is free again.

        Args:
            model: Triton's name.
            before: what `free_bytes` said before its unload; {}: nothing is known.
        """
        return all(
            free - before[where] >= need * _RETURNED
            for where, need, free in self._needs(model)
            if where in before
        )

    def _needs(self, model: str) -> Iterator[tuple[str, int, int]]:
        """Yield (where, bytes needed, bytes free) for what can be compared."""
        listed = self._variants.get(model, [])  # by one model or by several: the most counts
        host = max((v.host_memory_bytes or 0 for v in listed), default=0)
        gpus = max((v.gpu_memory_bytes or 0 for v in listed), default=0)
        if host:
            free = _free(self._host())
            if free is not None:
                yield "the host", host, free
        if gpus:
            for gpu in self._gpus():
                free = _free(gpu)
                if free is not None:
                    yield f"GPU {gpu.index}", gpus, free


def _free(reading: HostReading | GpuReading | None) -> int | None:
    if reading is None or reading.memory_total_bytes is None or reading.memory_used_bytes is None:
        return None
    return reading.memory_total_bytes - reading.memory_used_bytes


def _rounded(count: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count, 0) / 2**20:.0f} MiB"
