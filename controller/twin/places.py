"""Places on the simulated server: planned as in the daemon, moved one at a time.

Owns when a move is begun. What is loaded where is the server's, what is chosen the planner's.
"""

from __future__ import annotations

import math
from typing import Final

from controller.planning.core import GovernorCore
from controller.planning.placing import Places, Standing, placeables
from controller.policy.model import Policy
from controller.twin.server import SimulatedTriton

_EVERY_S: Final = 5.0


class Mover:
    """Keeps the variants of a simulated server on the GPUs where they are in nobody's way.

    Args:
        server: whose variants are moved.
        core: knows what they are asked.
        policy: says which may be moved, and where.
    """

    def __init__(self, server: SimulatedTriton, core: GovernorCore, policy: Policy) -> None:
        self._server = server
        self._core = core
        variants = [variant for model in policy.models for variant in model.variants]
        self._names = [variant.model for variant in variants]
        self._allowed = {v.model: v.gpus for v in variants if v.gpus is not None}
        self._alias_of = [at for at, model in enumerate(policy.models) for _ in model.variants]
        self._due_s = 0.0
        self._lost: frozenset[int] = frozenset()

    def after_tick(self) -> None:
        """Begin the next move, where one is due."""
        server, now_s = self._server, self._server.now_s
        if self._core.lost != self._lost:
            self._lost, self._due_s = self._core.lost, now_s
        moving = server.pool.next_s() < math.inf
        if not self._allowed or moving or now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        gpus = tuple(gpu for gpu in range(server.physics.gpus) if gpu not in self._core.lost)
        ratios = self._core.device_ratios
        slow = [max(ratios.get(gpu, 1.0), 1.0) for gpu in gpus]
        work = self._core.work(now_s, self._names)
        takes_s = [v.load_s for v in server.variants]
        load_s = {
            name: server.physics.load_s if took is None else took
            for name, took in zip(self._names, takes_s, strict=True)
        }
        items = placeables(work, self._standing(), self._allowed, gpus, load_s)
        limits = [server.physics.memory_bytes] * len(gpus)
        disturbed = self._core.costs.disturbances.share("load")
        plan = Places(gpus, limits, slow, disturbed).plan(items)
        if plan.move is not None and server.pool.move(
            self._names.index(plan.move), plan.aims[plan.move][0]
        ):
            self._due_s = now_s  # the next one as soon as it is done

    def _standing(self) -> dict[str, Standing]:
        server = self._server
        aliases = range(max(self._alias_of) + 1)
        serving = {server.serving_of(alias) for alias in aliases}
        switching = {alias for alias in aliases if server.is_switching(alias)}
        return {
            name: Standing(
                server.variants[at].memory_bytes,
                True,
                server.pool.places(at),
                at not in serving and self._alias_of[at] not in switching,
            )
            for at, name in enumerate(self._names)
        }
