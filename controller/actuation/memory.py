"""Is there memory for a load, what does a variant hold, and has an unload given it back?

Owns the comparison of what variants need with what is free and with the policy's budget. A load
that runs out of memory fails late and leaks; so it is refused beforehand. What a variant needs is
what the policy declares or what its last loads took, whichever is more. What nobody declared or
nobody can read refuses nothing, unless there is a budget: then a variant is taken for as large as
the largest that is known, and the first one of all is loaded alone. Of the host that is so where
Triton's processes can be seen; where not, what is declared has to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from controller.planning.budget import NO_LIMIT, Budget, Room
from controller.policy.model import Policy, VariantPolicy
from controller.policy.units import format_bytes
from controller.telemetry.observation import GpuReading, HostReading

_RETURNED: Final = 0.5  # of what is needed: other programs take and give meanwhile
_STEPS: Final = 64  # of the budget, in which it is counted what Triton holds beside its variants
HOST: Final = "host"  # beside the numbers of GPUs, in what was measured
_FADES: Final = 0.9  # of what a variant took at its loads before, where it takes less now


class Used(NamedTuple):
    """What is used of a GPU."""

    everybody: int | None
    triton: int | None  # None: no process of its is there, or the driver does not tell


class MemoryWatch:
    """Compares needs with free memory and with the budget.

    Args:
        policy: what variants need, how much stays free, and the budget.
        host: returns the newest reading of the host; None: there is none.
        gpus: returns the newest reading of every GPU that is watched.
        processes: returns what Triton's processes hold of the host; None: that cannot be told.
            Blocking. None: there is nobody to ask.
    """

    def __init__(
        self,
        policy: Policy,
        host: Callable[[], HostReading | None],
        gpus: Callable[[], Sequence[GpuReading]],
        processes: Callable[[], int | None] | None = None,
    ) -> None:
        self._host = host
        self._gpus = gpus
        self.measured: Mapping[str, Mapping[str, int]] = {}  # bytes, by Triton's name and place
        self._beyond = 0  # bytes of a GPU that are no variant's
        self._found: dict[str, int] = {}  # that variants seem to hold of which nothing is known
        self._processes = processes
        self._sees_host = False  # what Triton holds of the host was read last time
        self._found_host: dict[str, int] = {}
        self.look_s = float("-inf")  # not before: what of the host is to be shared out
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Follow a new policy."""
        self._memory = policy.memory
        self._reserve_bytes = policy.memory.reserve_bytes
        self._variants: dict[str, list[VariantPolicy]] = {}
        for model in policy.models:
            for variant in model.variants:
                self._variants.setdefault(variant.model, []).append(variant)

    # -- the budget ------------------------------------------------------------------------

    @property
    def is_limited(self) -> bool:
        """Return whether there is a budget, so that not every variant may be loaded."""
        return self._memory.is_limited

    def look(self, held: Collection[str]) -> None:
        """Take note of what Triton's processes hold beyond their variants, while nothing moves.

        Contexts and caches do, and what failed loads left behind. Where nothing is known of
        variants that are loaded, it is taken for theirs. It rises at once and falls only by much:
        a full pool should not move for what comes and goes. While a GPU does not tell, what it
        told before holds.

        Args:
            held: what is loaded, for long enough that GPUs have been read since.
        """
        seen = [gpu.triton_memory_bytes for gpu in self._gpus()]
        told = [own for own in seen if own is not None]
        if not told or len(told) < len(seen):
            return
        known = sum(self._known(model)[0] for model in held)
        beyond = max([0, *(own - known for own in told)])
        unknown = [model for model in held if self.is_to_be_measured(model)]
        if unknown:
            self._found = dict.fromkeys(unknown, beyond // len(unknown))
            return
        self._found = {}
        step = max((self._memory.gpu_budget_bytes or 0) // _STEPS, 1)
        if not self._beyond - 2 * step < beyond <= self._beyond:
            self._beyond = -(-beyond // step) * step

    def budget(self) -> Budget:
        """Return what may be held in all."""
        memory, limit = self._memory, NO_LIMIT
        needs = {model: Room(*map(float, self._known(model))) for model in self._variants}
        if memory.host_budget_bytes is not None:
            limit = limit._replace(host_bytes=float(memory.host_budget_bytes))
            largest = max(need.host_bytes for need in needs.values()) or limit.host_bytes
            for model in filter(self.is_host_guessed, self._variants):
                guess = float(self._found_host.get(model, largest))
                needs[model] = needs[model]._replace(host_bytes=guess)
        if memory.gpu_budget_bytes is not None:
            left = float(max(memory.gpu_budget_bytes - self._beyond, 0))
            limit = limit._replace(gpu_bytes=left)
            # Where no GPU tells anything, nothing can be measured: what is declared has to do.
            alone = left if self._gpus() else 0.0
            largest = max(need.gpu_bytes for need in needs.values()) or alone
            for model in self._variants:
                if self.is_to_be_measured(model):
                    guess = float(self._found.get(model, 0)) or largest
                    needs[model] = needs[model]._replace(gpu_bytes=guess)
        return Budget(limit, needs)

    def _known(self, model: str) -> tuple[int, int]:
        """Return what a model is known to need (of each GPU, of the host); 0: nothing is."""
        host, gpu = self._declared(model)
        measured = self.measured.get(model, {})
        return max([gpu, *_of_gpus(measured).values()]), max(host, measured.get(HOST, 0))

    def _declared(self, model: str) -> tuple[int, int]:
        listed = self._variants.get(model, [])  # by one model or by several: the most counts
        host = max((v.host_memory_bytes or 0 for v in listed), default=0)
        return host, max((v.gpu_memory_bytes or 0 for v in listed), default=0)

    # -- before a load, and after --------------------------------------------------------------

    def why_not(self, model: str, held: Collection[str] = ()) -> str | None:
        """Return why a Triton model must not be loaded now; None: nothing speaks against it.

        A variant that is loaded already needs its memory once more: Triton keeps the old instances
        until the new ones are ready.

        Args:
            model: Triton's name.
            held: what is loaded, or may be.
        """
        for where, need, free in self._needs(model):
            if free - need < self._reserve_bytes:
                return (
                    f"memory is short: it needs {format_bytes(need)} of {where}, "
                    f"{format_bytes(self._reserve_bytes)} must stay free (memory.reserve), and "
                    f"there are {_rounded(free)}"
                )
        if not self.is_limited:
            return None
        budget = self.budget()
        if budget.admits(model, held):
            return None
        wants, total, limit = budget.need(model), budget.total(held), budget.limit
        again = " once more while it is reloaded" if model in held else ""
        short_of_gpu = total.gpu_bytes + wants.gpu_bytes > limit.gpu_bytes
        less = "gpu_budget, less what Triton holds besides" if short_of_gpu else "host_budget"
        asked, taken, left = (room[0 if short_of_gpu else 1] for room in (wants, total, limit))
        return (
            f"the memory budget is full: it needs {_rounded(asked)}{again}, and of {_rounded(left)}"
            f" (memory.{less}) {_rounded(taken)} are held"
        )

    def is_to_be_measured(self, model: str) -> bool:
        """Return whether there is a budget of GPU memory, and nothing is known of a model."""
        unknown = not self._declared(model)[1] and not _of_gpus(self.measured.get(model, {}))
        return self._memory.gpu_budget_bytes is not None and unknown

    # -- of the host, by what Triton's processes hold ---------------------------------------------

    def read_host(self) -> int | None:
        """Return what Triton's processes hold of the host; None: nobody can tell. Blocking."""
        held = None if self._processes is None else self._processes()
        self._sees_host = held is not None
        return held

    def is_host_guessed(self, model: str) -> bool:
        """Return whether there is a budget of the host's memory, and nothing is known of a model.

        Where nobody can measure it, what is declared has to do: then it is not.
        """
        limited = self._memory.host_budget_bytes is not None and self._sees_host
        return limited and bool(self._unknown_of_host((model,)))

    def is_host_to_be_read(self, held: Collection[str]) -> bool:
        """Return whether what is loaded has to be shared out, as nobody saw it being loaded."""
        if self._memory.host_budget_bytes is None or self._processes is None:
            return False
        return any(model not in self._found_host for model in self._unknown_of_host(held))

    def share_host(self, held: Collection[str], host_bytes: int) -> None:
        """Take variants of which nothing is known for equal shares of what Triton holds.

        Args:
            held: what is loaded, while nothing moves.
            host_bytes: what Triton's processes hold.
        """
        unknown = self._unknown_of_host(held)
        left = host_bytes - sum(self._known(model)[1] for model in held)
        self._found_host = dict.fromkeys(unknown, max(left, 0) // max(len(unknown), 1))

    def _unknown_of_host(self, models: Collection[str]) -> list[str]:
        return [
            model
            for model in models
            if not self._declared(model)[0] and HOST not in self.measured.get(model, {})
        ]

    def took_host_bytes(self, model: str, before: int, after: int) -> int:
        """Return what a model is now known to hold of the host.

        Args:
            model: Triton's name; it was just loaded, and has answered a request.
            before: what Triton's processes held before that.
            after: what they hold now.
        """
        known = self.measured.get(model, {}).get(HOST, 0)
        return max(after - before, round(_FADES * known), 0)

    # -- of the GPUs ------------------------------------------------------------------------------

    def used_bytes(self) -> dict[int, Used]:
        """Return what is used of each GPU."""
        return {
            gpu.index: Used(gpu.memory_used_bytes, gpu.triton_memory_bytes)
            for gpu in self._gpus()
            if gpu.memory_used_bytes is not None or gpu.triton_memory_bytes is not None
        }

    def took_bytes(self, model: str, before: Mapping[int, Used]) -> dict[str, int] | None:
        """Return what a model is now known to hold, by GPU; None: that cannot be told.

        Args:
            model: Triton's name; it was just loaded, and has answered a request.
            before: what `used_bytes` said before that.
        """
        now, found = self.used_bytes(), dict[str, int]()
        declared, measured = self._declared(model)[1], self.measured.get(model, {})
        for gpu, used in before.items():
            after = now.get(gpu)
            if after is None:
                continue
            if after.triton is not None:
                took = after.triton - (used.triton or 0)
            elif declared or used.triton is not None or None in (after.everybody, used.everybody):
                continue  # others take and give: the operator knows better
            else:
                took = (after.everybody or 0) - (used.everybody or 0)
                took = min(took, self._memory.gpu_budget_bytes or took)
            found[str(gpu)] = max(took, round(_FADES * measured.get(str(gpu), 0)), 0)
        return found or None

    def grown_bytes(self, model: str, before: Mapping[int, Used]) -> dict[str, int] | None:
        """Return what a model is now known to hold that had another number of instances before.

        None: that cannot be told, as nothing was known of it, or of Triton's processes alone.
        """
        now, known = self.used_bytes(), self.measured.get(model)
        if not known:
            return None
        found = dict(known)
        for gpu, used in before.items():
            after = now.get(gpu)
            if after is not None and after.triton is not None and used.triton is not None:
                found[str(gpu)] = max(known.get(str(gpu), 0) + after.triton - used.triton, 0)
        return found

    def free_bytes(self, model: str) -> dict[str, int]:
        """Return what is free now where a model is known to need something."""
        return {where: free for where, _, free in self._needs(model, of_host=False)}

    def is_back(self, model: str, before: Mapping[str, int]) -> bool:
        """Return whether a model's memory is free again.

        Args:
            model: Triton's name.
            before: what `free_bytes` said before its unload; {}: nothing is known.
        """
        return all(
            free - before[where] >= need * _RETURNED
            for where, need, free in self._needs(model, of_host=False)
            if where in before
        )

    def _needs(self, model: str, *, of_host: bool = True) -> Iterator[tuple[str, int, int]]:
        """Yield (where, bytes needed, bytes free) for what can be compared.

        `of_host`: also what was measured of the host. After an unload nobody waits for that: a
        process may keep for later what it frees, and other programs take and give.
        """
        host, declared = self._declared(model)
        measured = self.measured.get(model, {})
        host = max(host, measured.get(HOST, 0)) if of_host else host
        if host:
            free = _free(self._host())
            if free is not None:
                yield "the host", host, free
        for reading in self._gpus():
            gpu, free = max(declared, measured.get(str(reading.index), 0)), _free(reading)
            if gpu and free is not None:
                yield f"GPU {reading.index}", gpu, free


def _of_gpus(measured: Mapping[str, int]) -> dict[str, int]:
    return {place: held for place, held in measured.items() if place != HOST}


def _free(reading: HostReading | GpuReading | None) -> int | None:
    if reading is None or reading.memory_total_bytes is None or reading.memory_used_bytes is None:
        return None
    return reading.memory_total_bytes - reading.memory_used_bytes


def _rounded(count: float) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count, 0) / 2**20:.0f} MiB"
