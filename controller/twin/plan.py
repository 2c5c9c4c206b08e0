"""What is replayed: a trace on a ladder under an objective, and what the server is like.

Owns the scaling of the load to the ladder. It must not run or score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from controller.policy.model import Policy
from controller.twin.ladder import Ladder, TwinVariant
from controller.twin.rivals import Setting
from controller.twin.server import Change, Physics
from controller.twin.trace import Trace


class ReplayError(Exception):
    """A replay that cannot be run; the text says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed."""

    trace: Trace  # as recorded; scaled to the ladder when it is run
    ladder: Ladder
    limit_s: float
    percentile: float = 99.0
    peak_load: float = 1.67  # 99th percentile of the rate, in capacities of the best variant
    cap: float = 0.95  # highest rate, in capacities of the fastest variant
    slowdown: float = 1.0  # every latency times this ...
    slowdown_from: float = 0.5  # ... from this share of the trace on
    noise: float = 0.05
    max_batch: int = 64
    as_recorded: bool = False  # the rate is not scaled
    rows_per_request: float = 1.0  # mean; one and a Poisson number more
    policy: Policy | None = None  # None: what an operator would write for the ladder
    gpus: int = 1
    straggler_ratio: float = 0.0  # of batches ...
    straggler_factor: float = 1.0  # ... that take so many times as long
    cotenants: float = 0.0  # batches of others beside ours ...
    cotenants_from: float = 0.5  # ... from this share of the trace on
    queue_delay_s: float = 0.0  # for which a batch waits to fill
    instances: int = 1  # of each variant on each GPU, at first
    max_instances: int | None = None  # that the governor may give each; None: it leaves them alone
    parallel: float = 1.0  # batches that a GPU executes at full speed together

    @property
    def variants(self) -> tuple[TwinVariant, ...]:
        """Return the ladder's variants that meet the objective at all, with limited batches."""
        limited = (replace(v, table_s=v.table_s[: self.max_batch]) for v in self.ladder.variants)
        return tuple(v for v in limited if v.capacity_rps(self.limit_s) > 0.0)

    @property
    def most_rows(self) -> int:
        """Return the most rows that a request has."""
        smallest = min(variant.max_batch for variant in self.variants)
        return smallest if self.policy is None else self.policy.models[0].client_max_batch

    @property
    def drawn_rows(self) -> float:
        """Return the mean rows of a request as they are drawn."""
        more = np.arange(self.most_rows)
        chances = stats.poisson.pmf(more, self.rows_per_request - 1.0)
        return float(self.most_rows - (chances * (self.most_rows - 1 - more)).sum())

    def load(self) -> Trace:
        """Return the trace, scaled. Raises ReplayError where the ladder cannot bear any."""
        variants = self.variants
        if len(variants) < 2:
            raise ReplayError(
                f"{self.ladder.name}: fewer than two variants serve one row within half of "
                f"{self.limit_s * 1e3:g} ms; take a longer objective"
            )
        if self.as_recorded:
            return self.trace
        capacities = [variant.capacity_rps(self.limit_s) for variant in variants]
        best = max(range(len(variants)), key=lambda i: (variants[i].quality, capacities[i]))
        peak_rps, cap_rps = self.peak_load * capacities[best], self.cap * max(capacities)
        return self.trace.scaled(self.gpus * peak_rps, self.gpus * cap_rps)

    def physics(self, load: Trace) -> Physics:
        """Return what the simulated server is like under a load."""
        slower_s = self.slowdown_from * load.duration_s
        joined_s = self.cotenants_from * load.duration_s
        changes = [
            Change(
                at_s,
                self.slowdown if at_s >= slower_s else 1.0,
                self.cotenants if at_s >= joined_s else 0.0,
            )
            for at_s in sorted({slower_s, joined_s})
        ]
        return Physics(
            noise=self.noise,
            gpus=self.gpus,
            queue_delay_s=self.queue_delay_s,
            instances=self.instances,
            most_instances=max(self.instances, self.max_instances or 1),
            parallel=self.parallel,
            straggler_ratio=self.straggler_ratio,
            straggler_factor=self.straggler_factor,
            changes=tuple(changes),
        )

    def setting(self) -> Setting:
        """Return what a rival may know beforehand."""
        return Setting(self.variants, self.limit_s, 1.0 - self.percentile / 100.0, self.gpus)
