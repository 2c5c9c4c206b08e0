"""What one tick sees, as plain values.

Owns the vocabulary between telemetry and the pure core. It must not read anything itself: the
adapters beside it do. What a device or driver does not support is None, never zero. Variants are
keyed by *Triton's* model name here, since two policy models may share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, as NVML tells it."""

    index: int
    uuid: str | None
    name: str | None
    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    triton_memory_bytes: int | None = None
    mig: bool | None = None
    error: str | None = None  # this device is degraded, and why
    lost: bool = False  # it fell off the bus, needs a reset, or is not there any more


@dataclass(frozen=True, slots=True)
class HostReading:
    """The host, as psutil tells it."""

    cpu_ratio: float | None = None  # of all cores
    cpu_count: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    load_1m: float | None = None


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """How well a source of readings does."""

    name: str
    up: bool
    age_s: float | None  # of its newest reading; None: it never gave one
    failures: int
    error: str | None = None  # beside `up`: it works, and this will end it if nobody looks
    detail: str | None = None  # one short phrase for people, such as "gpu: none"


@dataclass(frozen=True, slots=True)
class VariantReading:
    """One Triton model: its queue now, and what it did since the previous observation.

    Increments are never negative: adapters treat a counter that falls as restarted.
    """

    model: str
    ready: bool | None
    pending_requests: int | None  # waiting in Triton's queue
    completed_requests: int = 0
    completed_rows: int = 0
    executions: int = 0  # batches
    failed_requests: int = 0
    queue_s: float = 0.0  # summed over completed requests
    compute_s: float = 0.0  # summed over completed requests (in, infer and out)
    rejected_requests: int = 0  # of those that failed: a limit of its queue refused them


@dataclass(frozen=True, slots=True)
class BatchSample:
    """The exact mean of batches of one size that ended between two polls."""

    model: str
    rows: int
    executions: int
    mean_service_s: float  # compute input + infer + output, of one batch
    age_s: float  # from the middle of the poll's window to the observation
    after_action: bool = False  # a first run, or just after an action: not for the fit
    probe: bool = False
    shared_ratio: float = 0.0  # of its time, in which other models used the device, too
    siblings_ratio: float = 0.0  # the same, of other instances of its own variant


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One traced request as its client's alias saw it. Times on the monotonic clock."""

    alias: str
    model: str | None  # the Triton model that served it
    start_s: float
    latency_s: float
    queue_s: float | None = None
    compute_s: float | None = None
    batch_requests: int | None = None  # requests known to share its batch


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One alias, as the actuator knows it."""

    name: str
    serving: str | None  # Triton model name; None: unknown or gone
    since_s: float | None = None  # when `serving` began, monotonic
    ready: bool | None = None
    switching: bool = False  # an operation on this alias is under way
    held: str | None = None  # why the governor keeps its hands off: "foreign change", ...
    pinned: str | None = None  # the operator's variant name
    paused: bool = False
    unusable: frozenset[str] = frozenset()  # Triton models that cannot be switched to now
    advised: bool = False  # decisions on it are recorded, and nobody carries them out
    released: bool = False  # an operator took it back; `paused` as well

    @property
    def is_free(self) -> bool:
        """Return whether it is moved to where a decision says."""
        return not (self.held or self.paused or self.pinned is not None or self.advised)


@dataclass(frozen=True, slots=True)
class VariantMemory:
    """What a variant holds while it is loaded, under a memory budget."""

    gpu_bytes: float  # of each GPU that it is on, at most; declared or measured
    host_bytes: float
    held: bool  # it is loaded, or may be: an operation on it is under way
    guessed: bool = False  # of a GPU, neither: it is to be measured
    blocked: bool = False  # it cannot be loaded now
    humble: bool = False  # its last load failed or was refused: it must not take others' room
    kept: bool = False  # somebody uses it whom we do not know
    on_bytes: tuple[float, ...] = ()  # of each of the GPUs that are told apart
    host_guessed: bool = False  # of the host nothing is known: it is to be measured


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What a dispatcher did since the previous observation, and how it is."""

    model: str  # Triton's name of it
    healthy: bool  # it answers us, and a plan of ours is in force
    ill: bool = False  # it was asked, and does not answer
    arrived_requests: int = 0
    arrived_rows: int = 0
    failed_requests: int = 0
    rejected_requests: int = 0  # of these, by a limit of its queue
    waiting_requests: int = 0
    ended_requests: int = 0  # that it reported as answered since, by its clock
    late_requests: int = 0  # of these
    quality: float | None = None  # mean, of what it answered lately
    told_s: float | None = None  # latency that its last request was told, at the percentile

    def as_reading(self) -> VariantReading:
        """Return the same as of a variant: what came will be answered but for what failed."""
        return VariantReading(
            self.model,
            ready=self.healthy,
            pending_requests=self.waiting_requests,
            completed_requests=max(self.arrived_requests - self.failed_requests, 0),
            completed_rows=self.arrived_rows,
            failed_requests=self.failed_requests,
            rejected_requests=self.rejected_requests,
        )


class Instances(NamedTuple):
    """How many instances a variant has on each of its devices."""

    number: int
    least: int  # by the config in its folder
    may_change: bool = False  # it is idle, and nothing is under way on it


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The memory budget and what is under it."""

    gpu_limit_bytes: float  # infinite: no limit; less what Triton holds beside its variants
    host_limit_bytes: float
    variants: Mapping[str, VariantMemory]  # by Triton's name
    gpus: tuple[int, ...] = ()  # that are told apart; (): what holds of one holds of all
    gpu_limits_bytes: tuple[float, ...] = ()  # of each of these


@dataclass(frozen=True, slots=True)
class ActionCost:
    """What an action took, fed back so that costs are learned."""

    kind: str
    model: str
    target: str
    duration_s: float
    ended_s: float
    ok: bool


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """A synthetic request of ours that ended: Triton's counters hold it, no client sent it."""

    model: str
    rows: int


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything one decision may depend on."""

    now_s: float  # monotonic
    sequence: int
    models: Mapping[str, ModelReading]
    variants: Mapping[str, VariantReading]
    window_s: float  # the time the increments in `variants` cover
    readings_age_s: float | None = None  # of the variants' readings; None: there are none
    gpus: tuple[GpuReading, ...] = ()
    host: HostReading = HostReading()
    batch_samples: tuple[BatchSample, ...] = ()
    request_samples: tuple[RequestSample, ...] = ()
    actions: tuple[ActionCost, ...] = ()
    # What is under way on variants (load, reload, unload), by Triton's name.
    operations: Mapping[str, str] = field(default_factory=dict)
    probes: tuple[ProbeDone, ...] = ()
    # The models that a request of ours was sent to, to see whether they answer; once for each.
    proofs: tuple[str, ...] = ()
    # The GPUs that each variant has instances on, by Triton's name; those that are not known are
    # missing.
    placement: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    # By Triton's name, of those of which it is known; the others are taken to have one.
    instances: Mapping[str, Instances] = field(default_factory=dict)
    memory: MemoryReading | None = None  # None: no budget, everything stays loaded
    dispatched: Mapping[str, Dispatched] = field(default_factory=dict)  # by alias
    sources: tuple[SourceHealth, ...] = field(default=())
