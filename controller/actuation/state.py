"""What the actuator knows of one server, and the little it remembers across its own death.

Owns the mutable picture that the other parts of this package share, and its file. It must not
talk to the server. Everything here is touched from one event loop only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from controller.actuation import alias as shape
from controller.actuation.client import TritonControl
from controller.actuation.memory import MemoryWatch
from controller.actuation.places import GROUPS, gpus_of
from controller.actuation.state_file import LONGEST_BYTES, check_override, write_private
from controller.actuation.timing import Timing
from controller.policy.model import AliasKind, Mode, ModelPolicy, Policy, QueuePolicy
from controller.ports import ActionRecord
from controller.telemetry.small_file import read_small
from controller.telemetry.triton_metrics import ModelCounters

_LOG = logging.getLogger(__name__)

# When a model's requests were last counted, and the totals since it was loaded; None: not known.
Counted = Callable[[str], tuple[float, ModelCounters] | None]


@dataclass(frozen=True, slots=True)
class Override:
    """A config that a variant is to have instead of the one in its folder."""

    sent: Mapping[str, Any]
    expected: Mapping[str, Any]  # as the server tells it after the load; {}: not seen yet
    disk: Mapping[str, Any]  # as the server told it before; seen again: the override was lost
    of_policy: Sequence[str] = ()  # the fields that follow from the policy

    def is_met_by(self, seen: Mapping[str, Any]) -> bool:
        """Return whether a config is what was sent, with what Triton adds of its own."""
        return _holds(self.sent, seen)


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
    reapply: bool = False  # the override was lost and is to be put back
    queue: QueuePolicy | None = None  # that the policy wants
    refused_queue: QueuePolicy | None = None  # one with which Triton did not load it
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


def _holds(wanted: Any, found: Any) -> bool:
    """Return whether a value of a config holds all of another; what is a default may be absent."""
    if isinstance(wanted, Mapping):
        given = found if isinstance(found, Mapping) else {}
        return all(_holds(value, given.get(key)) for key, value in wanted.items())
    if isinstance(wanted, (list, tuple)):
        listed = found if isinstance(found, (list, tuple)) else ()
        return len(wanted) == len(listed) and all(map(_holds, wanted, listed))
    # 64-bit numbers are text in protobuf's JSON.
    return str(wanted) == str(found) or (found is None and wanted in (0, "", "0", False, None))


class Memory:
    """The last good targets, the overrides and what variants hold, in a small file; or nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.targets: dict[str, str] = {}
        self.overrides: dict[str, Override] = {}
        self.needs: dict[str, dict[str, int]] = {}  # bytes that variants were seen to hold, by GPU
        self.released: frozenset[str] = frozenset()
        self.unsaved = False
        self._writing = threading.Lock()  # two at once would take each other's unfinished file
        if path is None:
            return
        try:
            found = json.loads(read_small(str(path), LONGEST_BYTES))
            targets, overrides = found["targets"], found["overrides"]
            self.targets = {k: v for k, v in targets.items() if isinstance(v, str)}
            self.overrides = dict(_believed(path, overrides))
            needs = found.get("needs", {})  # files before this have none
            self.needs = {
                model: {str(gpu): int(held) for gpu, held in on.items() if int(held) >= 0}
                for model, on in needs.items()
                if isinstance(on, dict)
            }
            self.released = frozenset(map(str, found.get("released", ())))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _LOG.warning("%s cannot be read (%s): starting without it", path, error)

    def remember(self, alias: str, target: str) -> None:
        """Note the last good target of an alias; `save` writes it, off the loop."""
        if self.targets.get(alias) != target:
            self.targets[alias] = target
            self.unsaved = True

    def leave(self, models: frozenset[str]) -> None:
        """Note which models an operator took back, for the time until the journal can be read."""
        if self.released != models:
            self.released, self.unsaved = models, True

    def need(self, model: str, gpu_bytes: Mapping[str, int]) -> None:
        """Note what a variant holds of each GPU while it is loaded."""
        if self.needs.get(model) != gpu_bytes:
            self.needs[model] = dict(gpu_bytes)
            self.unsaved = True

    def override(self, model: str, override: Override | None) -> None:
        """Note the config that a variant is to have; None: the one in its folder."""
        if self.overrides.get(model) == override:
            return
        if override is None:
            del self.overrides[model]
        else:
            self.overrides[model] = override
        self.unsaved = True

    def save(self) -> None:
        """Replace the file as a whole, so that a death in between leaves the old one.

        From any thread; it may hang with its disk.
        """
        with self._writing:
            self._save()

    def _save(self) -> None:
        self.unsaved = False
        if self.path is None:
            return
        overrides = {name: asdict(override) for name, override in dict(self.overrides).items()}
        kept = {"targets": dict(self.targets), "overrides": overrides, "needs": dict(self.needs)}
        text = json.dumps({**kept, "released": sorted(self.released)})
        try:
            write_private(self.path, text)
        except OSError as error:
            _LOG.warning("%s cannot be written (%s): not remembered", self.path, error)


def _believed(path: Path, found: Mapping[str, Any]) -> Iterator[tuple[str, Override]]:
    for model, override in found.items():
        try:
            yield model, Override(**check_override(override))
        except ValueError as error:
            _LOG.warning("%s: the override of %s is not believed: %s", path, model, error)


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

    def __post_init__(self) -> None:
        self.aims = {  # as was chosen before a restart of ours
            name: gpus_of(override.sent)
            for name, override in self.memory.overrides.items()
            if GROUPS in override.of_policy
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
                variant.override = self.memory.overrides.get(name)
        for model in policy.models:
            for one in model.variants:  # where two models share it both say the same
                self.variants[one.model].queue = model.queue
        ours = {v.model for model in policy.models for v in model.variants if v.gpus is not None}
        self.aims = {name: gpus for name, gpus in self.aims.items() if name in ours}

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
