"""Places in the daemon: planned beside the ticks, handed to the actuator.

Owns when it is planned where variants go, and on which GPUs they may. It must not choose one:
`controller.planning.placing` does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from controller.planning.placing import Placeable, PlacePlan, Places, Standing, placeables
from controller.policy.model import Policy
from controller.telemetry.observation import GpuReading, Observation

if TYPE_CHECKING:
    from controller.actuation.actuator import Actuator
    from controller.journal.journal import Journal
    from controller.planning.core import GovernorCore

_LOG = logging.getLogger("governor")

_EVERY_S: Final = 5.0


class Placer:
    """Keeps variants on the GPUs where they are in nobody's way.

    Args:
        core: knows what variants are asked.
        actuator: loads them where they are to be.
        journal: is told of every change.
    """

    def __init__(self, core: GovernorCore, actuator: Actuator, journal: Journal) -> None:
        self._core = core
        self._actuator = actuator
        self._journal = journal
        self._planning: asyncio.Task[None] | None = None
        self._due_s = -math.inf
        self._lost: frozenset[int] = frozenset()
        self._renewals = 0
        self.plan: PlacePlan | None = None

    def renew(self) -> None:
        """Plan at the next tick: the policy is another."""
        self._due_s = -math.inf
        self._renewals += 1

    def after_tick(self, observation: Observation | None, policy: Policy) -> None:
        """Plan anew when that is due, or when a GPU was lost or came back."""
        ours = {v.model: v.gpus for m in policy.models for v in m.variants if v.gpus is not None}
        if not ours or observation is None or not observation.gpus:
            return
        if self._core.lost != self._lost:
            self._lost, self._due_s = self._core.lost, -math.inf
        busy = self._planning is not None and not self._planning.done()
        if busy or observation.now_s < self._due_s:
            return
        readings = observation.models.values()
        if readings and all(reading.paused for reading in readings):
            return
        standing = self._actuator.standings()
        if not standing:
            return
        gpus = [gpu for gpu in observation.gpus if gpu.index not in self._core.lost]
        if not gpus:
            return  # what was chosen stays so, for when one comes back
        self._due_s = observation.now_s + _EVERY_S
        ratios = self._core.device_ratios
        places = Places(
            [gpu.index for gpu in gpus],
            [room_of(gpu, policy, standing, observation) for gpu in gpus],
            [max(ratios.get(gpu.index, 1.0), 1.0) for gpu in gpus],
            self._core.costs.disturbances.share("load"),
        )
        left = _left_alone(observation, policy)
        standing = {
            k: v._replace(may_move=v.may_move and k not in left) for k, v in standing.items()
        }
        items = self._items(observation, ours, standing, tuple(gpu.index for gpu in gpus))
        self._planning = asyncio.create_task(self._plan(places, items, self._renewals))

    def _items(
        self,
        observation: Observation,
        ours: Mapping[str, tuple[int, ...]],
        standing: Mapping[str, Standing],
        gpus: tuple[int, ...],
    ) -> list[Placeable]:
        load_s = self._core.costs.load_s(standing)
        there = {name for name, one in standing.items() if one.held}
        work = self._core.work(observation.now_s, there)
        return placeables(work, standing, ours, gpus, load_s)

    async def _plan(self, places: Places, items: list[Placeable], renewals: int) -> None:
        try:
            plan = await asyncio.to_thread(places.plan, items)
        except Exception:  # noqa: BLE001 - a plan that fails leaves everything where it is
            _LOG.exception("places could not be planned")
            return
        if renewals != self._renewals:
            return  # the policy that this was for is another's past
        before = {} if self.plan is None else self.plan.aims
        self.plan = plan
        changed = {name: gpus for name, gpus in plan.aims.items() if before.get(name) != gpus}
        if changed:
            details = {
                "gpus": {name: list(gpus) for name, gpus in sorted(changed.items())},
                "gain_per_s": round(plan.gain, 5),
            }
            self._journal.event("place", None, "where variants are to run changed", details)
            told = ", ".join(f"{name} on GPU {gpus[0]}" for name, gpus in sorted(changed.items()))
            _LOG.info("to run: %s", told)
        self._actuator.place(plan.aims)


def _left_alone(observation: Observation, policy: Policy) -> frozenset[str]:
    """Return the variants of models that are paused or held: they keep what they have."""
    readings = {model.name: observation.models.get(model.name) for model in policy.models}
    left = {name for name, one in readings.items() if one and (one.paused or one.held)}
    return frozenset(v.model for m in policy.models if m.name in left for v in m.variants)


def room_of(
    gpu: GpuReading, policy: Policy, standing: Mapping[str, Standing], observation: Observation
) -> float:
    """Return what variants may hold of a GPU: its budget, and no more than others leave free.

    What others hold shows in what is free, in which our own variants are not.
    """
    limit = math.inf
    memory = observation.memory
    if memory is not None:
        limit = dict(zip(memory.gpus, memory.gpu_limits_bytes, strict=True)).get(
            gpu.index, memory.gpu_limit_bytes
        )
    if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
        return limit
    free = gpu.memory_total_bytes - gpu.memory_used_bytes - policy.memory.reserve_bytes
    own = sum(s.need_bytes for s in standing.values() if s.held and gpu.index in s.at)
    return min(limit, max(free + own, 0.0))
