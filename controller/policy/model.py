"""The policy as the rest of the program sees it: frozen values in SI units.

Owns the shape of what an operator wants. It must not read files, know YAML or check input:
`controller.policy.schema` and `controller.policy.load` do, and hand over these.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final


class AliasKind(enum.StrEnum):
    """How clients' stable name exists on the server."""

    VIRTUAL = "virtual"  # created over the API, nothing on disk
    REPOSITORY = "repository"  # a folder with the ensemble's config.pbtxt


class Mode(enum.StrEnum):
    """Whether decisions are carried out."""

    ACT = "act"
    ADVISE = "advise"


class GpuSource(enum.StrEnum):
    """Where GPU readings come from."""

    NVML = "nvml"
    NONE = "none"


class OnStop(enum.StrEnum):
    """What happens to an alias when the daemon stops."""

    KEEP = "keep"
    REVERT = "revert"  # to the best variant, which is what stood there before a governor


@dataclass(frozen=True, slots=True)
class Objective:
    """A latency and the share of requests that must meet it."""

    latency_s: float
    percentile: float  # 0 to 100, exclusive

    @property
    def allowed_miss_ratio(self) -> float:
        """Return the error budget: the share of requests that may miss."""
        return 1.0 - self.percentile / 100.0


@dataclass(frozen=True, slots=True)
class VariantPolicy:
    """One Triton model that can serve, and how good its answers are.

    A profile of a variant is one of its own: the same weights and quality under another name of
    Triton's, with another largest batch.
    """

    name: str  # the operator's word, unique within its model; of a profile: VARIANT.PROFILE
    model: str  # Triton's model name
    quality: float  # 0 to 1, as measured
    host_memory_bytes: int | None = None  # what a load of it takes; None: not declared
    gpu_memory_bytes: int | None = None  # the same, on every GPU that it has instances on
    max_batch: int | None = None  # rows of the largest batch it forms; None: not declared
    profile_of: str | None = None  # the variant whose weights it serves under another limit
    gpus: tuple[int, ...] | None = None  # we choose one of these, (): of all; None: as configured
    max_instances: int | None = None  # that it may be given; None: those of its own config


def profile_name(variant: str, profile: str) -> str:
    """Return what a profile of a variant is called wherever variants are."""
    return f"{variant}.{profile}"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What Triton does with requests that wait; None: as a variant's own config says."""

    timeout_s: float | None = None  # who waits longer is refused
    max_size: int | None = None  # of each priority: who finds so many waiting is refused
    max_delay_s: float | None = None  # that a batch is waited for
    priority_levels: int | None = None  # 1 is the most important
    default_priority_level: int | None = None  # of requests that name none; None: the last


DISPATCHER: Final = "dispatcher"  # what it is called where a variant of that model would be named


@dataclass(frozen=True, slots=True)
class DispatcherPolicy:
    """The Triton model that binds a model's requests late; `governor dispatcher write` makes it."""

    model: str  # Triton's name
    key_file: str  # holds the secret that plans are signed with


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """What is wanted for one name that clients call."""

    name: str
    objective: Objective
    variants: tuple[VariantPolicy, ...]  # in the file's order
    alias: AliasKind = AliasKind.VIRTUAL
    client_max_batch: int = 1  # rows a single request may have; the alias's promise
    min_quality: float = 0.0
    weight: float = 1.0  # of a request, beside those of other models on the same devices
    allowed: frozenset[str] | None = None  # the variants that may serve now; None: all
    queue: QueuePolicy | None = None  # of each variant; None: as its own config says
    mode: Mode | None = None  # None: as the policy's
    dispatcher: DispatcherPolicy | None = None  # None: a request is bound when it comes

    def variant(self, name: str) -> VariantPolicy:
        """Return a variant by the operator's name. Raises KeyError."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def lets(self, variant: VariantPolicy) -> bool:
        """Return whether a variant may serve, whatever the server says."""
        allowed = self.allowed is None or variant.name in self.allowed
        return allowed and variant.quality >= self.min_quality


@dataclass(frozen=True, slots=True)
class ScheduledModel:
    """What a schedule changes of one model."""

    model: str
    variants: frozenset[str] | None = None  # that alone may serve; None: as always
    min_quality: float | None = None


@dataclass(frozen=True, slots=True)
class SchedulePolicy:
    """A time of the week at which something else holds, by the machine's local time."""

    name: str
    days: frozenset[int]  # 0 is Monday
    from_minute: int  # of the day
    to_minute: int  # exclusive; not after `from_minute`: of the next day
    models: tuple[ScheduledModel, ...]


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """Whom to believe that he is the server, and who we are to him; the files are PEM."""

    ca_file: str
    cert_file: str | None = None  # None: we do not say who we are
    key_file: str | None = None
    server_name: str | None = None  # in the server's certificate; None: the host that is called
    prefix: str = "triton.tls."  # of these keys in the policy
    # Where each key stands, as FILE:LINE:COLUMN. A key that only moved is no other policy.
    places: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    def place(self, key: str) -> str:
        """Return what a sentence about one of the keys begins with."""
        where = dict(self.places).get(key)
        return f"{self.prefix}{key}" if where is None else f"{where}: {self.prefix}{key}"


@dataclass(frozen=True, slots=True)
class TritonPolicy:
    """Where the server is and how to talk to it."""

    grpc: str  # host:port
    metrics_url: str | None
    traces_listen: str | None  # host:port of the OTLP/HTTP receiver; None: statistics only
    restricted_key_file: str | None = None  # holds the secret of --grpc-restricted-protocol
    restricted_key_name: str = "admin-key"
    tls: TlsPolicy | None = None  # None: gRPC goes over the network as it is
    metrics_tls: TlsPolicy | None = None  # None: an https page is believed as the system does


@dataclass(frozen=True, slots=True)
class GpuPolicy:
    """Which GPUs are watched."""

    source: GpuSource = GpuSource.NVML
    devices: tuple[int, ...] | None = None  # None: all
    max_temperature_celsius: float | None = None  # of each; None: no limit of ours
    max_power_watts: float | None = None

    @property
    def watched(self) -> tuple[int, ...] | None:
        """Return the GPUs that are watched; None: all."""
        return () if self.source is GpuSource.NONE else self.devices

    @property
    def is_limited(self) -> bool:
        """Return whether a GPU may be too warm or draw too much."""
        return self.max_temperature_celsius is not None or self.max_power_watts is not None


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """How much memory the variants may hold, and how much loads must leave free."""

    reserve_bytes: int = 256 * 1024 * 1024  # of the host, and of each GPU that is watched
    max_loads_per_hour: int | None = None  # under a budget; None: no limit
    gpu_budget_bytes: int | None = None  # for all variants, on each GPU; None: no limit
    host_budget_bytes: int | None = None
    gpu_budgets_bytes: tuple[tuple[int, int], ...] = ()  # (GPU, the same of it alone)

    @property
    def limits_gpus(self) -> bool:
        """Return whether a GPU may not be filled."""
        return self.gpu_budget_bytes is not None or bool(self.gpu_budgets_bytes)

    @property
    def is_limited(self) -> bool:
        """Return whether not every variant may stay loaded."""
        return self.limits_gpus or self.host_budget_bytes is not None

    def gpu_limit_bytes(self, gpu: int) -> int | None:
        """Return what all variants may hold of a GPU; None: no limit."""
        return dict(self.gpu_budgets_bytes).get(gpu, self.gpu_budget_bytes)


@dataclass(frozen=True, slots=True)
class StabilityPolicy:
    """Damping. No damping ever delays an escape."""

    min_dwell_s: float = 0.05  # between a switch and the next one towards better quality
    max_switches_per_minute: int = 600  # towards better quality; escapes always pass
    foreign_hold_s: float = 600.0
    stale_after_s: float = 2.0  # readings older than this are absent


@dataclass(frozen=True, slots=True)
class ProbingPolicy:
    """How variants nobody has measured are measured."""

    enabled: bool = True
    max_busy_ratio: float = 0.05  # share of a second that probes may keep a device busy
    batches: tuple[int, ...] = ()  # () : 1, the full batch and its square root
    while_advising: bool = False  # also variants of models that are only advised on


@dataclass(frozen=True, slots=True)
class MqttPolicy:
    """The bus for fleets. The daemon has none unless the policy names a broker."""

    host: str
    port: int = 1883
    node: str | None = None  # None: the machine's name
    topic_prefix: str = "triton-governor"
    username: str | None = None
    password_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    places: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    @property
    def tls(self) -> TlsPolicy | None:
        """Return how the broker is verified; None: no TLS."""
        if self.tls_ca_file is None:
            return None
        return TlsPolicy(
            self.tls_ca_file,
            self.tls_cert_file,
            self.tls_key_file,
            prefix="mqtt.tls_",
            places=self.places,
        )


@dataclass(frozen=True, slots=True)
class PrometheusPolicy:
    """Where Prometheus scrapes. Nothing listens unless the policy says where."""

    listen: str  # host:port


@dataclass(frozen=True, slots=True)
class JournalPolicy:
    """What is kept of what was done."""

    path: str | None = None  # None: the state folder
    max_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything an operator wants of one daemon."""

    triton: TritonPolicy
    models: tuple[ModelPolicy, ...]
    gpu: GpuPolicy = GpuPolicy()
    memory: MemoryPolicy = MemoryPolicy()
    interval_s: float | None = None  # None: a tenth of the shortest objective, 20 to 100 ms
    stability: StabilityPolicy = StabilityPolicy()
    probing: ProbingPolicy = ProbingPolicy()
    journal: JournalPolicy = JournalPolicy()
    schedules: tuple[SchedulePolicy, ...] = ()
    prometheus: PrometheusPolicy | None = None
    mqtt: MqttPolicy | None = None
    mode: Mode = Mode.ACT
    on_stop: OnStop = OnStop.KEEP
    sha256: str = ""  # of the text this came from, for the journal

    @property
    def tick_s(self) -> float:
        """Return the interval between ticks in seconds."""
        if self.interval_s is not None:
            return self.interval_s
        shortest_s = min(model.objective.latency_s for model in self.models)
        return min(max(shortest_s / 10.0, 0.020), 0.100)

    @property
    def glance_s(self) -> float | None:
        """Return how often what waits is looked at between ticks; None: not at all."""
        if self.interval_s is not None:
            return None  # an operator who sets it wants no more than that
        shortest_s = min(model.objective.latency_s for model in self.models)
        return min(max(shortest_s / 20.0, 0.005), self.tick_s)

    @property
    def notice_s(self) -> float:
        """Return how long a rise of the load may go unnoticed."""
        # A glance may come just before it shows in what waits.
        return self.tick_s if self.glance_s is None else min(2.0 * self.glance_s, self.tick_s)

    def mode_of(self, model: ModelPolicy) -> Mode:
        """Return whether decisions on a model are carried out."""
        return self.mode if model.mode is None else model.mode

    @property
    def acts(self) -> bool:
        """Return whether decisions on any model are carried out."""
        return any(self.mode_of(model) is Mode.ACT for model in self.models)

    def model(self, name: str) -> ModelPolicy:
        """Return a model by its name. Raises KeyError."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)
