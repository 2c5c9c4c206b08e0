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

from controller.actuation.host_memory import FADES, HostMemory
from controller.actuation.places import is_known, needs_by_gpu
from controller.actuation.remembered import of_gpus
from controller.planning.budget import NO_LIMIT, Budget, Room
from controller.policy.model import Policy
from controller.policy.units import format_bytes
from controller.telemetry.observation import GpuReading, HostReading

_RETURNED: Final = 0.5  # of what is needed: other programs take and give meanwhile
_STEPS: Final = 64  # of the budget, in which it is counted what Triton holds beside its variants


class Used(NamedTuple):
    """What is used of a GPU."""

    everybody: int | None
    triton: int | None  # None: no process of its is there, or the driver does not tell


class MemoryWatch(HostMemory):
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
        super().__init__(policy, processes)
        self._host = host
        self._gpus = gpus
        self.placed: Callable[[str], tuple[int, ...]] = _nowhere  # where a variant is, or last was
        self.aims: Callable[[str], tuple[int, ...]] = _nowhere  # where its next load puts it
        self.avoided: frozenset[int] = frozenset()  # GPUs that were lost until a moment ago
        self._beyond: dict[int, int] = {}  # bytes of each GPU that are no variant's
        # By GPU: what variants seem to hold of which nothing is known.
        self._found: dict[str, dict[int, int]] = {}
        self._seen: frozenset[int] = frozenset()  # the GPUs that ever told anything

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
        told = {
            gpu.index: gpu.triton_memory_bytes
            for gpu in self._gpus()
            if gpu.triton_memory_bytes is not None
        }
        unknown = [model for model in held if self.is_to_be_measured(model)]
        known = [self._on(model, told) for model in held]
        for gpu, own in told.items():
            beyond = max(0, own - sum(on[gpu] for on in known))
            for model in unknown:
                self._found.setdefault(model, {})[gpu] = beyond // len(unknown)
            before = self._beyond.get(gpu, 0)
            step = max((self._memory.gpu_limit_bytes(gpu) or 0) // _STEPS, 1)
            if not unknown and not before - 2 * step < beyond <= before:
                self._beyond[gpu] = -(-beyond // step) * step
        if told and not unknown:
            self._found = {}

    @property
    def lost(self) -> frozenset[int]:
        """Return the GPUs that cannot be used, as far as it is known, or are not to be yet."""
        return self.avoided.union(gpu.index for gpu in self._gpus() if gpu.lost)

    @property
    def gpus(self) -> tuple[int, ...]:
        """Return the GPUs that are told apart: those that ever told anything, and named ones."""
        self._seen |= {gpu.index for gpu in self._gpus()}
        return tuple(sorted(self._seen | {gpu for gpu, _ in self._memory.gpu_budgets_bytes}))

    def budget(self) -> Budget:
        """Return what may be held in all, of each GPU in the order of `gpus`."""
        memory, limit, gpus, hosts = self._memory, NO_LIMIT, self.gpus, self._needs_of_host()
        if memory.host_budget_bytes is not None:
            limit = limit._replace(host_bytes=float(memory.host_budget_bytes))
        if not memory.limits_gpus or not gpus:
            # Where no GPU tells anything, nothing can be measured: what is declared has to do.
            limit = limit._replace(gpu_bytes=self._left(None))
            needs = {}
            for model in self._variants:
                needs[model] = Room(float(self._declared(model)[1]), hosts[model])
            return Budget(limit, needs)
        limit = limit._replace(on=tuple(map(self._left, gpus)))
        known = {model: self._on(model, gpus) for model in self._variants}
        largest = max(max(on.values()) for on in known.values())
        alone = {gpu: self._left(gpu) if self._seen else 0.0 for gpu in gpus}
        # What nobody limits is no size: it would be infinite.
        alone = {gpu: left if left < NO_LIMIT.gpu_bytes else 0.0 for gpu, left in alone.items()}
        needs, loads = {}, {}
        for model, on in known.items():
            aim, guess, host = self.aims(model), dict[int, float](), hosts[model]
            if self.is_to_be_measured(model):
                found = self._found.get(model, {})
                guess = {gpu: found.get(gpu) or largest or alone[gpu] for gpu in gpus}
            needs[model] = _room(host, _within(guess, self.placed(model)) or on)
            if aim:
                aimed = _within(guess, aim) or self._on(model, gpus, aim)
                loads[model] = _room(host, aimed)
        if len(gpus) == 1:  # nothing is to be told apart
            limit = limit._replace(gpu_bytes=limit.on[0], on=())
        return Budget(limit, needs, loads)

    def _left(self, gpu: int | None) -> float:
        """Return what of a GPU there is for variants; None: of one of which nothing is known."""
        limit = self._memory.gpu_budget_bytes if gpu is None else self._memory.gpu_limit_bytes(gpu)
        beyond = max([0, *self._beyond.values()]) if gpu is None else self._beyond.get(gpu, 0)
        return NO_LIMIT.gpu_bytes if limit is None else float(max(limit - beyond, 0))

    def _on(self, model: str, gpus: Collection[int], aim: tuple[int, ...] = ()) -> dict[int, int]:
        """Return what is known of what a model needs of some GPUs; 0: nothing is."""
        return needs_by_gpu(
            gpus,
            declared=self._declared(model)[1],
            measured=of_gpus(self.measured.get(model, {})),
            placed=self.placed(model),
            aim=aim,
        )

    # -- before a load, and after --------------------------------------------------------------

    def why_not(self, model: str, held: Collection[str] = ()) -> str | None:
        """Return why a Triton model must not be loaded now; None: nothing speaks against it.

        A variant that is loaded already needs its memory once more: Triton keeps the old instances
        until the new ones are ready.

        Args:
            model: Triton's name.
            held: what is loaded, or may be.
        """
        aim = self.aims(model)
        lost = self._why_lost(aim or self.placed(model))
        if lost is not None:
            return lost
        for where, need, free in self._needs(model, aim):
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
        wants, total, limit = budget.takes(model), budget.total(held), budget.limit
        again = " once more while it is reloaded" if model in held else ""
        key, rooms = "memory.host_budget", [room.host_bytes for room in (wants, total, limit)]
        place = ""
        if total.gpu_bytes + wants.gpu_bytes > limit.gpu_bytes:
            key, rooms = self._key(*self.gpus), [room.gpu_bytes for room in (wants, total, limit)]
        for at, (gpu, left) in enumerate(zip(self.gpus, limit.on, strict=False)):
            if total.of(at) + wants.of(at) > left:
                key = self._key(gpu)
                rooms = [wants.of(at), total.of(at), left]
                place = f" of GPU {gpu}" if len(limit.on) > 1 else ""
                break
        asked, taken, left = rooms
        besides = "" if key == "memory.host_budget" else ", less what Triton holds besides"
        return (
            f"the memory budget is full: it needs {_rounded(asked)}{again}, and of {_rounded(left)}"
            f"{place} ({key}{besides}) {_rounded(taken)} are held"
        )

    def _why_lost(self, goes_to: tuple[int, ...]) -> str | None:
        """Return which of some GPUs cannot be used, and why; None: all can."""
        for reading in self._gpus():
            if reading.lost and reading.index in goes_to:
                return f"GPU {reading.index} is lost: {reading.error}"
        left = self.avoided.intersection(goes_to)
        return f"GPU {min(left)} was lost, and is left alone for a while" if left else None

    def _key(self, *gpus: int) -> str:
        """Return which key of the policy limits some GPUs."""
        named = dict(self._memory.gpu_budgets_bytes).keys()
        return "memory.gpu_budgets" if not named.isdisjoint(gpus) else "memory.gpu_budget"

    def is_to_be_measured(self, model: str) -> bool:
        """Return whether there is a budget of GPU memory, and nothing is known of a model."""
        unknown = not self._declared(model)[1] and not of_gpus(self.measured.get(model, {}))
        return self._memory.limits_gpus and unknown

    def size(self, model: str) -> float:
        """Return what a model is known to need of a GPU that it is on; 0: nothing is."""
        measured = of_gpus(self.measured.get(model, {}))
        return float(max([self._declared(model)[1], *measured.values()]))

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
        now, found, placed = self.used_bytes(), dict[str, int](), self.placed(model)
        declared, measured = self._declared(model)[1], self.measured.get(model, {})
        for gpu, used in before.items():
            after = now.get(gpu)
            if after is None:
                continue
            elsewhere = is_known(placed) and gpu not in placed
            if after.triton is not None:
                took = after.triton - (used.triton or 0)
            elif elsewhere:
                took = 0  # whoever takes more there, it is not this one
            elif declared or used.triton is not None or None in (after.everybody, used.everybody):
                continue  # others take and give: the operator knows better
            else:
                took = (after.everybody or 0) - (used.everybody or 0)
                took = min(took, self._memory.gpu_limit_bytes(gpu) or took)
            before_bytes = 0 if elsewhere else measured.get(str(gpu), 0)
            found[str(gpu)] = max(took, round(FADES * before_bytes), 0)
        return found or None

    def grown_bytes(self, model: str, before: Mapping[int, Used]) -> dict[str, int] | None:
        """Return what a model is now known to hold that was loaded before, with other instances.

        By GPU. None: that cannot be told, as nothing was known of it.
        """
        now, known = self.used_bytes(), of_gpus(self.measured.get(model, {}))
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

    def _needs(
        self, model: str, aim: tuple[int, ...] = (), *, of_host: bool = True
    ) -> Iterator[tuple[str, int, int]]:
        """Yield (where, bytes needed, bytes free) for what can be compared.

        Args:
            model: Triton's name.
            aim: where a load puts it; (): where it is.
            of_host: also what was measured of the host. After an unload nobody waits for that: a
                process may keep for later what it frees, and other programs take and give.
        """
        host = self._known_of_host(model) if of_host else self._declared(model)[0]
        if host:
            free = _free(self._host())
            if free is not None:
                yield "the host", host, free
        for reading in self._gpus():
            gpu, free = self._on(model, (reading.index,), aim)[reading.index], _free(reading)
            if gpu and free is not None:
                yield f"GPU {reading.index}", gpu, free


def _room(host_bytes: float, on: Mapping[int, float]) -> Room:
    sizes = tuple(map(float, on.values()))
    return Room(sizes[0], host_bytes) if len(sizes) == 1 else Room(0.0, host_bytes, sizes)


def _within(sizes: Mapping[int, float], gpus: tuple[int, ...]) -> dict[int, float]:
    """Return what is needed of each GPU of a variant that is on some; not known: on all."""
    known = is_known(gpus)
    return {gpu: size if gpu in gpus or not known else 0.0 for gpu, size in sizes.items()}


def _nowhere(_model: str) -> tuple[int, ...]:
    return ()


def _free(reading: HostReading | GpuReading | None) -> int | None:
    if reading is None or reading.memory_total_bytes is None or reading.memory_used_bytes is None:
        return None
    return reading.memory_total_bytes - reading.memory_used_bytes


def _rounded(count: float) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count, 0) / 2**20:.0f} MiB"
