"""What the actuator knows of one server.

Owns the mutable picture that the other parts of this package share. It must not talk to the
server. Everything here is touched from one event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.actuation import alias as shape
from controller.actuation.client import TritonControl
from controller.actuation.memory import MemoryWatch
from controller.actuation.places import GROUPS, folder_number, gpus_of, is_placed
from controller.actuation.remembered import Memory, Override
from controller.actuation.timing import Timing
from controller.policy.model import (
    DISPATCHER,
    AliasKind,
    Mode,
    ModelPolicy,
    Policy,
    QueuePolicy,
)
from controller.ports import ActionRecord
from controller.telemetry.triton_metrics import ModelCounters

_LOG = logging.getLogger(__name__)

# When a model's requests were last counted, and the totals since it was loaded; None: not known.
Counted = Callable[[str], tuple[float, ModelCounters] | None]


@dataclass(slots=True)
class Variant:
    """One Triton model that can stand behind an alias."""

    model: str
    ready: bool = False
    proven: bool = False  # it answered a request since it was last loaded
    warm: bool = False  # loading it again reloads nothing
    config: dict[str, Any] | None = None  # as it was when last verified
    compared: tuple[dict[str, Any], dict[str, Any], str | None] | None = None  # with an alias
    override: Override | None = None
    met: Override | None = None  # the last override that Triton took
    reapply: bool = False  # the override was lost and is to be put back
    queue: QueuePolicy | None = None  # that the policy wants
    instances: int | None = None  # that the planner wants; None: those of its folder
    # The queue and the number of instances with which Triton did not load it.
    refused: tuple[QueuePolicy | None, int | None] | None = None
    queue_error: str | None = None  # what it said then
    queue_retry_s: float = 0.0  # not before
    placed: tuple[int, ...] = ()  # where it is, or last was; `place_of` knows what is newest
    placed_by: dict[str, Any] | None = None  # the config that says so
    weighed_on: tuple[int, ...] = ()  # where it was when it was last measured
    refused_aim: tuple[int, ...] = ()  # GPUs on which Triton did not load it
    operation: str | None = None  # load, unload, refresh: ours, under way
    outlasted: ActionRecord | None = None  # that operation went out of sight
    error: str | None = None
    failures: int = 0
    leaving: bool = False  # it was unloaded, but was not seen to be gone
    short: bool = False  # its load was refused for want of memory, and nothing else
    retry_s: float = 0.0  # not before
    hold_until_s: float = 0.0  # somebody else unloaded it: not ours to load until then
    used_until_s: float = 0.0  # somebody else's ensemble was seen to stand on it
    checked_s: float = float("-inf")
    refreshed_s: float = float("-inf")

    @property
    def wanted(self) -> tuple[QueuePolicy | None, int | None]:
        """Return what it is to have, wherever it is, beside what stands in its folder."""
        return self.queue, self.instances

    def forget(self) -> None:
        """Know nothing of its state on the server; what is wanted of it stays."""
        self.ready = self.proven = self.warm = self.reapply = False
        self.config = self.error = self.outlasted = self.operation = None
        self.failures, self.retry_s, self.hold_until_s = 0, 0.0, 0.0
        self.short = self.leaving = False
        self.checked_s = self.refreshed_s = float("-inf")


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An operation whose outcome was lost from sight."""

    record: ActionRecord
    config: Mapping[str, Any]  # what was sent
    until_s: float


@dataclass(slots=True)
class Alias:
    """One name that clients call."""

    policy: ModelPolicy
    virtual: bool = True
    config: dict[str, Any] | None = None  # the last good one; its step may be out of date
    target: str | None = None  # Triton model name
    marker: shape.Marker | None = None
    baseline: tuple[shape.Marker | None, str | None] | None = None  # as it was adopted
    trusted_baseline: bool = True  # an unsigned baseline is taken for Triton's doing only once
    since_s: float | None = None
    ready: bool | None = None
    known: bool = False  # looked at since the server was last reached
    writes: int = 0  # operations sent; a look that spans one is worthless
    switching: bool = False  # an operation on it is under way
    aimed_at: str | None = None  # where that is to point it
    proof: asyncio.Task[None] | None = None
    unsettled: Unsettled | None = None
    held: str | None = None
    held_until_s: float = 0.0
    order: tuple[str, ...] = ()  # Triton model names, the fastest first
    heals: int = 0
    heal_after_s: float = 0.0
    successes: int = 0
    failed: int = 0
    asked_s: float = float("-inf")  # the last request of our own through it
    counted_s: float = float("-inf")
    written_s: float = float("-inf")  # Triton counts from zero since

    @property
    def name(self) -> str:
        """The name that clients call."""
        return self.policy.name


def _within(variant: Variant, most: int | None) -> int | None:
    """Return how many instances a variant is to have: as many as it was to have, but not more.

    And not fewer than in its folder.
    """
    wanted, override = variant.instances, variant.override
    least = None if override is None else folder_number(override.sent, override.disk)
    if wanted is None and override is not None and GROUPS in override.of_policy:
        number = shape.instances_of(override.sent)
        if number != least:  # else it was only placed
            wanted = number
    return None if most is None or wanted is None else max(min(wanted, most), least or 1)


@dataclass(slots=True)
class Server:
    """The shared picture of one server."""

    policy: Policy
    control: TritonControl
    owner: str
    clock: Callable[[], float]
    timing: Timing
    memory: Memory
    on_record: Callable[[ActionRecord], None]
    on_step: Callable[[str, str], Awaitable[None]] | None = None
    free_memory: MemoryWatch | None = None
    counted: Counted | None = None  # what the watch on Triton knows, so that it is asked once
    aliases: dict[str, Alias] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    loadable: frozenset[str] | None = None  # what may be loaded now; None: everything
    surplus: str | None = None  # what is to be unloaded next
    serial: int = 0
    reachable: bool | None = None
    refused: str | None = None  # what Triton said when it refused model control
    released: frozenset[str] = frozenset()  # models that an operator took back
    aims: dict[str, tuple[int, ...]] = field(default_factory=dict)  # GPUs that were chosen for some
    dispatchers: frozenset[str] = frozenset()  # of the variants, those that only hand on
    placed: frozenset[str] = frozenset()  # the variants whose GPUs the policy leaves to us

    def __post_init__(self) -> None:
        self.aims = {  # as was chosen before a restart of ours
            name: gpus_of(override.sent)
            for name, override in self.memory.overrides.items()
            if is_placed(override)
        }
        self.set_policy(self.policy)

    def set_policy(self, policy: Policy) -> None:
        """Look after what a policy names, and no longer after what it does not."""
        self.policy = policy
        # Under a budget nothing is loaded before somebody chose what.
        self.loadable = frozenset() if policy.memory.is_limited else None
        self.surplus = None
        kept, self.aliases = self.aliases, {}
        for model in policy.models:
            alias = kept.get(model.name) or Alias(model)
            alias.policy, alias.virtual = model, model.alias is AliasKind.VIRTUAL
            # The policy's file goes from the best to the fastest until somebody knows better.
            order = tuple(variant.model for variant in reversed(model.variants))
            if set(alias.order) != set(order):
                alias.order = order
            self.aliases[model.name] = alias
        used, known = (
            {name for alias in self.aliases.values() for name in alias.order},
            self.variants,
        )
        self.variants = {name: known.get(name) or Variant(name) for name in sorted(used)}
        for name, variant in self.variants.items():
            if name not in known:
                override = variant.override = self.memory.overrides.get(name)
                variant.met = override if override is not None and override.expected else None
        for model in policy.models:
            for one in model.variants:  # where two models share it both say the same
                variant = self.variants[one.model]
                variant.queue = None if one.name == DISPATCHER else model.queue
                variant.instances = _within(variant, one.max_instances)
        self.dispatchers = frozenset(
            v.model for model in policy.models for v in model.variants if v.name == DISPATCHER
        )
        self.placed = frozenset(
            v.model for model in policy.models for v in model.variants if v.gpus is not None
        )
        self.aims = {name: gpus for name, gpus in self.aims.items() if name in self.placed}

    def acts_on(self, alias: Alias) -> bool:
        """Return whether an alias is ours to change, and its variants ours to look after."""
        return self.policy.mode_of(alias.policy) is Mode.ACT and alias.name not in self.released

    def acted_on(self) -> frozenset[str]:
        """Return the variants of the aliases that are ours to change."""
        ours = filter(self.acts_on, self.aliases.values())
        return frozenset(name for alias in ours for name in alias.order)

    def next_marker(self) -> shape.Marker:
        """Return the signature of our next write."""
        self.serial += 1
        return shape.Marker(self.owner, self.serial)

    def serving(self) -> frozenset[str]:
        """Return the Triton models that stand behind an alias, or are about to."""
        targets = {alias.target for alias in self.aliases.values()}
        lost = {
            shape.target_of(alias.unsettled.config)
            for alias in self.aliases.values()
            if alias.unsettled is not None
        }
        # Who is about to operate on a variant has claimed it (`operation`) before he looks here,
        # and who switches has aimed before he sends: one of them sees the other.
        aimed = {alias.aimed_at for alias in self.aliases.values()}
        return frozenset(name for name in targets | lost | aimed if name is not None)

    def held(self) -> list[str]:
        """Return the variants that hold memory, or may: operations under way count."""
        return [
            name
            for name, variant in self.variants.items()
            if variant.ready or variant.operation is not None or variant.leaving
        ]

    def users(self, variant: str) -> Iterator[Alias]:
        """Yield the aliases that a variant could serve."""
        return (alias for alias in self.aliases.values() if variant in alias.order)

    def ready_configs(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the configs of those variants that are ready, in the order given."""
        found = (self.variants.get(name) for name in names)
        return [v.config for v in found if v is not None and v.ready and v.config is not None]

    async def step(self, alias: str, name: str) -> None:
        """Pass a boundary between two steps; tests inject faults here."""
        if self.on_step is not None:
            await self.on_step(alias, name)

    def emit(self, record: ActionRecord) -> None:
        """Hand a finished action over; a broken listener is no reason to stop acting."""
        try:
            self.on_record(record)
        except Exception:  # noqa: BLE001 - whatever a listener does
            _LOG.exception("an action could not be recorded: %s", record)


def why_not(alias: Alias, variant: Variant) -> str | None:
    """Return why an alias cannot be pointed at a variant now; None: it can."""
    if variant.error is not None:
        return variant.error
    if not variant.ready or variant.config is None:
        return f"{variant.model} is not loaded"
    if variant.reapply:
        return f"{variant.model} lost its override, which is being put back"
    if variant.operation not in (None, "refresh"):
        return f"{variant.model}: {variant.operation} is under way"
    if alias.config is not None:
        compared = variant.compared
        # Asked at every tick: compared anew only when either config was read anew.
        if compared is None or compared[0] is not alias.config or compared[1] is not variant.config:
            problems = "; ".join(map(str, shape.fits(alias.config, variant.config)))
            variant.compared = compared = (alias.config, variant.config, problems or None)
        return compared[2]
    return None


def unusable(server: Server, alias: Alias) -> frozenset[str]:
    """Return the variants that a decision should not name now.

    Those are also the ones that have not answered a request yet, where another has.
    """
    variants = [server.variants[name] for name in alias.order]
    able = [variant for variant in variants if why_not(alias, variant) is None]
    proven = [variant for variant in able if variant.proven or variant.model == alias.target]
    if not server.acts_on(alias):
        proven = able  # nobody proves what is only advised on
    return frozenset(alias.order) - {variant.model for variant in proven or able}
