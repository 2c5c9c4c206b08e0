"""The sections of a policy: keys, units, bounds, defaults, and a sentence for each.

Owns what a single value may be. It must not read files, and what concerns several values at once
belongs to `controller.policy.checks`. Defaults are those of `controller.policy.model`: one source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from controller.policy import model as policy
from controller.policy import units, values

_STABILITY = policy.StabilityPolicy()
_PROBING = policy.ProbingPolicy()
_JOURNAL = policy.JournalPolicy()
_MEMORY = policy.MemoryPolicy()

Name = Annotated[str, values.NAME]
HostPort = Annotated[str, values.HOST_PORT]
AbsolutePath = Annotated[str, values.ABSOLUTE_PATH]
Latency = Annotated[float, values.duration("100us", "1h")]
Interval = Annotated[float | None, values.INTERVAL]
Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class Section(BaseModel):
    """What all parts of a policy share: unknown keys are errors, and nothing is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GpuSection(Section):
    """Which GPUs are watched."""

    source: Literal["nvml", "none"] = Field(
        default="nvml",
        description="nvml: read through the driver, absent where there is none. none: do not look.",
    )
    devices: Annotated[tuple[int, ...] | None, values.DEVICES] = Field(
        default=None,
        description="`all`, or a list of NVML indices such as [0, 1].",
        json_schema_extra={"default": "all"},
    )
    max_temperature: Annotated[float, values.temperature("30C", "120C")] | None = Field(
        default=None,
        description="Above it, by NVML, models give way to faster variants. Omitted: no limit but "
        "the GPU's own.",
    )
    max_power: Annotated[float, values.power("1W", "10kW")] | None = Field(
        default=None,
        description="The same of what each watched GPU draws.",
    )


class ObjectiveSection(Section):
    """A latency and the share of requests that must meet it."""

    latency: Latency = Field(
        description="Longest acceptable latency of a request, queueing included, as in 60ms."
    )
    percentile: float = Field(
        gt=0,
        lt=100,
        allow_inf_nan=False,
        description="Percentage of requests that must meet the latency, as a number: 99, 99.9.",
    )


class QueueSection(Section):
    """What Triton does with requests that wait for a variant. What is omitted stays as it is."""

    timeout: Latency | None = Field(
        default=None,
        description="Who waits longer is refused, as UNAVAILABLE, instead of answered too late: "
        "the objective less what a full batch takes on the fastest variant.",
    )
    max_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Who finds so many requests waiting (of his priority, where there are "
        "several) is refused at once, as UNAVAILABLE.",
    )
    max_delay: Annotated[float, values.duration("0s", "1s")] | None = Field(
        default=None,
        description="How long Triton waits for a batch to fill (max_queue_delay).",
    )
    priority_levels: Annotated[int, Field(ge=2, le=16)] | None = Field(
        default=None,
        description="Number of priorities that requests may name; 1 is served first.",
    )
    default_priority_level: Annotated[int, Field(ge=1, le=16)] | None = Field(
        default=None,
        description="Priority of requests that name none. Omitted: the last.",
    )


class VariantMemorySection(Section):
    """What loading a variant takes, as seen on the server."""

    host: Annotated[int | None, values.size("1MiB", "64TiB")] = Field(
        default=None, description="Of the host's memory. Omitted: not known."
    )
    gpu: Annotated[int | None, values.size("1MiB", "64TiB")] = Field(
        default=None,
        description="Of the memory of each GPU that it has instances on; where that is not known, "
        "of each watched one (see gpu.devices).",
    )


class ProfileSection(Section):
    """The same weights as another Triton model, with another largest batch."""

    model: Name = Field(description="Triton's name of the model.")
    max_batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        description="Its max_batch_size; `governor profiles materialise` puts it there."
    )


class VariantSection(Section):
    """One Triton model that can serve, and how good its answers are."""

    model: Name = Field(description="Triton's name of the model.")
    quality: Ratio = Field(
        description="How good its answers are, measured on data as the service sees it, 0 to 1."
    )
    memory: VariantMemorySection | None = Field(
        default=None,
        description="What loading it takes. It is not loaded where so much is not free.",
    )
    gpus: Annotated[tuple[int, ...], values.GPUS] | None = Field(
        default=None,
        description="Where its instances go, if not as the model says.",
    )
    max_batch: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None, description="Its max_batch_size; required beside profiles."
    )
    max_instances: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="The most instances that the governor may give it, on each of its GPUs or on "
        "the host; it has no fewer than its config.pbtxt says. Omitted: they are left alone.",
    )
    profiles: dict[Name, ProfileSection] | None = Field(
        default=None,
        description="The same weights as other Triton models, each with another largest batch; "
        "everywhere else one is called VARIANT.PROFILE.",
    )


class DispatcherSection(Section):
    """The Triton model that binds requests late; `governor dispatcher write` makes it."""

    model: Name = Field(description="Triton's name of the dispatcher.")
    key_file: AbsolutePath = Field(
        description="Holds the secret that the governor signs its plans with; the command makes it "
        "and puts it into the dispatcher's folder, too."
    )


class ModelSection(Section):
    """What is wanted for one name that clients call."""

    objective: ObjectiveSection = Field(description="What clients are promised.")
    alias: Literal["virtual", "repository"] = Field(
        default="virtual",
        description="virtual: created over the API, gone when Triton restarts until the governor "
        "puts it back. repository: a folder in the model repository, served even without the "
        "governor; recommended for production.",
    )
    client_max_batch: int = Field(
        default=1,
        ge=1,
        le=65_536,
        description="Most rows a single request may have. Every variant must accept as many.",
    )
    min_quality: Ratio = Field(
        default=0.0,
        description="Variants under this quality are never chosen, whatever the load.",
    )
    weight: float = Field(
        default=1.0,
        gt=0.0,
        le=1000.0,
        allow_inf_nan=False,
        description="What one of its requests is worth beside those of other models, where they "
        "share devices that do not suffice for all.",
    )
    queue: QueueSection | None = Field(
        default=None,
        description="Limits of Triton's queue of each variant: what becomes of requests when even "
        "the fastest variant is too slow. Omitted: as in each variant's config.pbtxt.",
    )
    gpus: Annotated[tuple[int, ...], values.GPUS] | None = Field(
        default=None,
        description="auto: the governor chooses the GPU that each variant's instances go on, when "
        "it loads it and later while it is idle. A list: the same, of these alone. Omitted: as in "
        "each variant's config.pbtxt.",
    )
    mode: Literal["act", "advise"] | None = Field(
        default=None,
        description="act or advise for this model alone, whatever the policy's `mode`: one first, "
        "then all. Omitted: as the policy's.",
    )
    dispatcher: DispatcherSection | None = Field(
        default=None,
        description="Binds a request to a variant when its batch begins, by a model inside Triton, "
        "instead of when it comes. Omitted: the alias leads to one variant at a time.",
    )
    variants: dict[Name, VariantSection] = Field(
        min_length=1,
        description="The Triton models that can serve, by a name of your choice. Their order has "
        "no meaning.",
    )


class MemorySection(Section):
    """How much memory the variants may hold, and how much loads must leave free."""

    reserve: Annotated[int, values.size("0B", "1TiB")] = Field(
        default=_MEMORY.reserve_bytes,
        description="What must stay free after a load, of the host and of each watched GPU.",
        json_schema_extra={"default": units.format_bytes(_MEMORY.reserve_bytes)},
    )
    gpu_budget: Annotated[int | None, values.size("1MiB", "64TiB")] = Field(
        default=None,
        description="Most that all variants together may hold of each watched GPU; those that are "
        "worth the most stay loaded. Omitted: no limit, every variant stays loaded.",
    )
    gpu_budgets: (
        dict[Annotated[str, values.GPU_INDEX], Annotated[int, values.size("1MiB", "64TiB")]] | None
    ) = Field(
        default=None,
        min_length=1,
        description="The same of single GPUs, by NVML's index, where they differ: it counts "
        "instead of gpu_budget there.",
    )
    max_loads_per_hour: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None,
        description="Most loads in an hour that a budget may ask for, those of the fastest variants"
        " not counted. Omitted: as many as are worth it.",
    )
    host_budget: Annotated[int | None, values.size("1MiB", "64TiB")] = Field(
        default=None,
        description="The same of the host's memory: measured where Triton runs on this host and its"
        " processes can be seen, else what `memory.host` says.",
    )


class StabilitySection(Section):
    """Damping. No damping ever delays an escape from a variant that fails its objective."""

    min_dwell: Annotated[float, values.duration("0s", "1h")] = Field(
        default=_STABILITY.min_dwell_s,
        description="Shortest time between a switch and the next one towards better quality.",
        json_schema_extra={"default": units.format_duration(_STABILITY.min_dwell_s)},
    )
    max_switches_per_minute: int = Field(
        default=_STABILITY.max_switches_per_minute,
        ge=1,
        le=60_000,
        description="Most switches towards better quality in a minute.",
    )
    foreign_hold: Annotated[float, values.duration("0s", "30d")] = Field(
        default=_STABILITY.foreign_hold_s,
        description="How long a model is left alone after somebody else changed it on the server; "
        "`governor resume` ends it earlier.",
        json_schema_extra={"default": units.format_duration(_STABILITY.foreign_hold_s)},
    )
    stale_after: Annotated[float, values.duration("100ms", "1h")] = Field(
        default=_STABILITY.stale_after_s,
        description="Readings older than this count as absent; without readings what serves stays.",
        json_schema_extra={"default": units.format_duration(_STABILITY.stale_after_s)},
    )


class ProbingSection(Section):
    """How variants that nobody has measured are measured: synthetic requests."""

    enabled: bool = Field(
        default=_PROBING.enabled,
        description="false: a variant is known only after real requests have run on it.",
    )
    max_busy: Annotated[float, values.percentage("0.1%", "100%")] = Field(
        default=_PROBING.max_busy_ratio,
        description="Largest share of a second that probes may keep a device busy.",
        json_schema_extra={"default": units.format_percentage(_PROBING.max_busy_ratio)},
    )
    batches: Annotated[tuple[int, ...], values.BATCHES] = Field(
        default=_PROBING.batches,
        description="Batch sizes to probe, such as [1, 4, 8]. Empty: 1, the full batch and its "
        "square root.",
        json_schema_extra={"default": []},
    )
    while_advising: bool = Field(
        default=_PROBING.while_advising,
        description="true: loaded variants of models that are only advised on are measured too. "
        "false: advice knows only those that clients' requests run on.",
    )


class JournalSection(Section):
    """What is kept of what was done."""

    path: AbsolutePath | None = Field(
        default=_JOURNAL.path,
        description="The journal's file. Omitted: journal.sqlite3 in the state folder.",
    )
    max_size: Annotated[int, values.size("1MiB", "1TiB")] = Field(
        default=_JOURNAL.max_bytes,
        description="Size on disk at which the oldest entries are dropped.",
        json_schema_extra={"default": units.format_bytes(_JOURNAL.max_bytes)},
    )


class ScheduledModelSection(Section):
    """What holds of one model then."""

    variants: list[Name] | None = Field(
        default=None,
        min_length=1,
        description="The only variants that may serve then, and their profiles. Omitted: all.",
    )
    min_quality: Ratio | None = Field(
        default=None, description="The least quality then, if it is more than always."
    )


class ScheduleSection(Section):
    """A time of the week at which something else holds."""

    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] | None = Field(
        default=None, min_length=1, description="On which it begins. Omitted: every day."
    )
    begins: Annotated[int, values.TIME_OF_DAY] = Field(
        alias="from", description="When, in the machine's local time."
    )
    ends: Annotated[int, values.TIME_OF_DAY] = Field(
        alias="to", description="Until when; no later than `from`: on the next day."
    )
    models: dict[Name, ScheduledModelSection] = Field(
        min_length=1, description="What holds then, by model."
    )
