"""The warm pool in the daemon: planned beside the ticks, handed to the actuator.

Owns when a plan is made and where. It must not choose what is loaded: `controller.planning.pool`
does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from controller.planning.budget import Budget, Room
from controller.planning.pool import Pool, PoolPlan, Wish
from controller.policy.model import Policy
from controller.telemetry.observation import MemoryReading, ModelReading, Observation, VariantMemory

if TYPE_CHECKING:
    from controller.actuation.actuator import Actuator
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore

_LOG = logging.getLogger("governor")

_FIRST_S: Final = 3.0  # that GPUs are waited for, before what they hold is guessed
_EVERY_S: Final = 5.0  # a plan, while nothing of the last one is left to do
_SOON_S: Final = 1.0  # while there is
_CAUTION: Final = 2.0
_HOUR_S: Final = 3600.0


class WarmPool:
    """Keeps what is loaded as it is worth the most.

    Args:
        core: knows what variants are worth.
        actuator: loads and unloads.
        journal: is told of every change.
    """

    def __init__(self, core: GovernorCore, actuator: Actuator, journal: Journal) -> None:
        self._core = core
        self._actuator = actuator
        self._journal = journal
        self._planning: asyncio.Task[None] | None = None
        self._due_s = 0.0
        self._began_s: float | None = None
        self._renewals = 0
        self._paused = False
        self._loads_s: deque[float] = deque()  # when loads were asked for that are limited
        self._asked: frozenset[str] = frozenset()
        self._keep: frozenset[str] = frozenset()
        self._most: int | None = None
        self._told: frozenset[str] | None = None
        self.plan: PoolPlan | None = None
        self.memory: MemoryReading | None = None

    def renew(self) -> None:
        """Plan at the next tick: the policy is another."""
        self._due_s = 0.0
        self._renewals += 1

    def after_tick(self, observation: Observation | None, policy: Policy) -> None:
        """Plan anew when that is due."""
        if observation is None or observation.memory is None:
            self.plan = self.memory = None
            return
        self.memory = observation.memory
        if self._began_s is None:
            self._began_s = observation.now_s
        waits = observation.now_s - self._began_s < _FIRST_S and not observation.gpus
        if waits and policy.memory.limits_gpus:
            return
        busy = self._planning is not None and not self._planning.done()
        if busy or observation.now_s < self._due_s:
            return
        self._paused = all(reading.paused for reading in observation.models.values())
        # Read here, as the ticks go on while it is planned.
        wishes = self._core.wishes(observation.now_s)
        load_s = self._core.costs.load_s(self.memory.variants)
        keep = self._kept(observation, self.memory, policy, wishes)
        self._keep, self._most = frozenset(keep), policy.memory.max_loads_per_hour
        disturbed = self._core.costs.disturbances.share("load")
        in_use = _in_use(observation, policy)
        work = _search(wishes, load_s, disturbed, self.memory, in_use, keep)
        self._planning = asyncio.create_task(self._plan(work, observation.now_s, self._renewals))

    def _kept(
        self,
        observation: Observation,
        memory: MemoryReading,
        policy: Policy,
        wishes: list[Wish],
    ) -> list[str]:
        """Return what is pinned and each model's fastest, those of the busiest model first."""
        found: list[tuple[float, list[str]]] = []
        absent = {name: one for name, one in memory.variants.items() if not one.held}
        stuck = self._stuck(observation, policy)
        for model, wish in zip(policy.models, wishes, strict=True):
            rate_rps = float(wish.rate_rps.sum())
            name_of = {variant.name: variant.model for variant in model.variants}.__getitem__
            order = self._core.speed_order(model.name)
            able = [
                name
                for name in order
                if model.lets(model.variant(name))
                and not (name_of(name) in absent and absent[name_of(name)].blocked)
            ]
            # One that fails to load is no way out; but if there is no other, it is tried.
            able.sort(key=lambda name: name_of(name) in absent and absent[name_of(name)].humble)
            able.sort(key=lambda name: name_of(name) in stuck)
            reading = observation.models.get(model.name)
            pinned = None if reading is None else reading.pinned
            names = [v.name for v in model.variants]
            first = [pinned] if pinned in names else []
            found.append((rate_rps, [name_of(name) for name in [*first, *able[:1]]]))
        busiest = sorted(found, key=lambda one: -one[0])
        return [name for _, names in busiest for name in names]

    def _stuck(self, observation: Observation, policy: Policy) -> frozenset[str]:
        """Return the variants on a GPU that is lost which the policy lets go nowhere else."""
        lost = self._core.lost
        fixed = {v.model for model in policy.models for v in model.variants if v.gpus is None}
        places = observation.placement.items()
        return frozenset(k for k, gpus in places if k in fixed and not lost.isdisjoint(gpus))

    async def _plan(self, work: Callable[[], PoolPlan], now_s: float, renewals: int) -> None:
        try:
            plan = await asyncio.to_thread(work)
        except Exception:  # noqa: BLE001 - a plan that fails leaves everything loaded as it is
            _LOG.exception("the pool could not be planned")
            self._due_s = now_s + _EVERY_S
            return
        if renewals != self._renewals:
            return  # the policy that this was for is another's past
        if not self._paused:
            plan = self._limited(plan, now_s)
        self.plan = plan
        left = plan.load or plan.unload is not None
        self._due_s = now_s + (_SOON_S if left else _EVERY_S)
        if plan.wanted != self._told:
            self._told = plan.wanted
            details = {"wanted": sorted(plan.wanted), "gain": round(plan.gain, 5)}
            self._journal.event("pool", None, "what is to stay loaded changed", details)
            _LOG.info("to stay loaded: %s", ", ".join(sorted(plan.wanted)))
        if not self._paused:  # and where it may only advise this does nothing
            self._actuator.set_pool(plan)

    def _limited(self, plan: PoolPlan, now_s: float) -> PoolPlan:
        """Return what of a plan may be done by the most loads in an hour."""
        while self._loads_s and now_s - self._loads_s[0] >= _HOUR_S:
            self._loads_s.popleft()
        new = [name for name in plan.load if name not in self._asked and name not in self._keep]
        left = len(new) if self._most is None else max(self._most - len(self._loads_s), 0)
        if left < len(new):
            # What was asked for before stays so, and what is needed to serve at all.
            cut = frozenset(new[left:])
            load = tuple(name for name in plan.load if name not in cut)
            unload = plan.unload if self._must_unload(plan) else None
            plan, new = replace(plan, load=load, unload=unload), new[:left]
        self._loads_s.extend(now_s for _ in new)
        self._asked = frozenset(plan.load)
        return plan

    def _must_unload(self, plan: PoolPlan) -> bool:
        """Return whether room is needed for more than what is worth more."""
        memory = self.memory
        if memory is None:
            return False
        held = [name for name, one in memory.variants.items() if one.held]
        full = not budget_of(memory).fits(held)
        return full or any(not memory.variants[name].held for name in self._keep & plan.wanted)

    def view(self) -> dict[str, Any] | None:
        """Return the budget and what is under it, JSON-ready; None: there is no budget."""
        memory, plan = self.memory, self.plan
        if memory is None:
            return None
        held = [name for name, one in memory.variants.items() if one.held]
        total = budget_of(memory).total(held)
        gpus = {
            str(gpu): _place(limit, total.of(at))
            for at, (gpu, limit) in enumerate(
                zip(memory.gpus, memory.gpu_limits_bytes, strict=True)
            )
        }
        limited = [one for one in gpus.values() if one is not None]
        fullest = min(limited, key=lambda one: one["limit_bytes"] - one["held_bytes"], default=None)
        return {
            "gpu": fullest if gpus else _place(memory.gpu_limit_bytes, total.gpu_bytes),
            "gpus": gpus,
            "host": _place(memory.host_limit_bytes, total.host_bytes),
            "held": sorted(held),
            "wanted": [] if plan is None else sorted(plan.wanted),
            "loading": [] if plan is None else list(plan.load),
            "unloading": None if plan is None else plan.unload,
            "variants": {
                name: {
                    "gpu_bytes": one.gpu_bytes,
                    "host_bytes": one.host_bytes,
                    "guessed": one.guessed,
                    "host_guessed": one.host_guessed,
                }
                for name, one in memory.variants.items()
            },
        }


def _place(limit: float, held: float) -> dict[str, float] | None:
    return None if limit == float("inf") else {"limit_bytes": limit, "held_bytes": held}


def _in_use(observation: Observation, policy: Policy) -> frozenset[str]:
    """Return what must not be unloaded: what serves, and all of a model that is left alone."""
    found = set()
    for model in policy.models:
        reading = observation.models.get(model.name) or ModelReading(model.name, None)
        if reading.serving is not None:
            found.add(reading.serving)
        if reading.held or reading.paused or reading.advised:
            found |= _held(observation) & {variant.model for variant in model.variants}
    memory = observation.memory
    kept = () if memory is None else memory.variants.items()
    return frozenset(found) | {name for name, one in kept if one.kept}


def _held(observation: Observation) -> frozenset[str]:
    memory = observation.memory
    if memory is None:
        return frozenset()
    return frozenset(name for name, one in memory.variants.items() if one.held)


def budget_of(memory: MemoryReading, cautious_beside: list[str] | None = None) -> Budget:
    """Return the budget, with what each variant holds or would.

    Args:
        memory: as the actuator tells it.
        cautious_beside: the fastest of each model. One that was never measured is then taken for
            twice as large as the largest that was, or, if that is less, for all that is left
            beside these; of a GPU as of the host. None: for as large as it is told.
    """
    needs = {
        name: Room(0.0, one.host_bytes, one.on_bytes)
        if one.on_bytes
        else Room(one.gpu_bytes, one.host_bytes)
        for name, one in memory.variants.items()
    }
    limit = Room(memory.gpu_limit_bytes, memory.host_limit_bytes, memory.gpu_limits_bytes)
    if cautious_beside is not None:
        left = limit.plus(Budget(limit, needs).total(set(cautious_beside)), -1.0)
        for name, one in memory.variants.items():
            if not one.held and name not in cautious_beside:
                needs[name] = _cautious(one, needs[name], left)
    return Budget(limit, needs)


def _cautious(one: VariantMemory, need: Room, left: Room) -> Room:
    """Return what a variant needs, with guesses that are surer not to be too little.

    They stay within what is left.
    """

    def more(size: float, of: float) -> float:
        return max(size, min(_CAUTION * size, of))

    if one.guessed:
        on = tuple(more(size, left.on[at]) for at, size in enumerate(need.on))
        need = need._replace(gpu_bytes=more(need.gpu_bytes, left.gpu_bytes), on=on)
    if one.host_guessed:
        need = need._replace(host_bytes=more(need.host_bytes, left.host_bytes))
    return need


def _search(
    wishes: list[Wish],
    load_s: dict[str, float],
    disturbed: float,
    memory: MemoryReading,
    serving: frozenset[str],
    keep: list[str],
) -> Callable[[], PoolPlan]:
    """Return the search, to be run anywhere."""

    def search() -> PoolPlan:
        return Pool(wishes, budget_of(memory, keep), load_s, disturbed).plan(
            held=[name for name, one in memory.variants.items() if one.held],
            serving=serving,
            keep=keep,
            blocked=[name for name, one in memory.variants.items() if one.blocked],
            humble=[name for name, one in memory.variants.items() if one.humble],
        )

    return search
