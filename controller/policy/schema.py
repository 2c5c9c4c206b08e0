"""The policy as it is written, and what becomes of it.

Owns the top of the schema, from which the JSON Schema, the checks and the messages come, and the
translation into `controller.policy.model`. It must not read files; the sections are those of
`controller.policy.sections` and `controller.policy.wires`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import starmap
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field

from controller.policy import model as policy
from controller.policy import values
from controller.policy.problems import Path
from controller.policy.schedules import DAYS
from controller.policy.sections import (
    GpuSection,
    Interval,
    JournalSection,
    MemorySection,
    ModelSection,
    Name,
    ProbingSection,
    QueueSection,
    ScheduleSection,
    Section,
    StabilitySection,
    VariantMemorySection,
    VariantSection,
)
from controller.policy.wires import MqttSection, PrometheusSection, TlsSection, TritonSection


class PolicySchema(Section):
    """A policy of Triton Governor."""

    # These two are gone when a policy is validated: `controller.policy.compose` has done them.
    include: list[Annotated[str, values.FILE_NAME]] | None = Field(
        default=None,
        min_length=1,
        description="Files that this one builds on, relative to it, such as [base.yaml]. Mappings "
        "merge by key, all else is replaced, and null removes a key; what comes later wins: the "
        "files in their order, then this file, then hosts.",
    )
    hosts: (
        dict[Annotated[str, values.HOST_PATTERN], Annotated[dict[str, Any], values.HOST_PART]]
        | None
    ) = Field(
        default=None,
        description="What is different on some hosts, by host name or pattern. All entries that "
        "match apply, in their order.",
    )
    version: Annotated[Literal[1], values.VERSION] = Field(description="Version of this format: 1.")
    triton: TritonSection = Field(description="The server that is governed.")
    gpu: GpuSection | None = Field(default=None, description="Which GPUs are watched.")
    memory: MemorySection | None = Field(
        default=None,
        description="How much memory the variants may hold, and how much loads must leave free.",
    )
    interval: Interval = Field(
        default=None,
        description="Time between two decisions, 20ms to 1s. auto: a tenth of the shortest "
        "objective, 20 to 100 ms, with glances at what waits in between; 100 ms without them while "
        "dispatchers choose for every model and nothing is left to measure.",
        json_schema_extra={"default": "auto"},
    )
    models: dict[Name, ModelSection] = Field(
        min_length=1,
        description="What is wanted, by the name that clients call. On the server the name becomes "
        "an alias: an ensemble of one step.",
    )
    stability: StabilitySection | None = Field(default=None, description="Damping.")
    probing: ProbingSection | None = Field(
        default=None, description="How unmeasured variants are measured."
    )
    journal: JournalSection | None = Field(
        default=None, description="What is kept of what was done."
    )
    schedules: dict[Name, ScheduleSection] | None = Field(
        default=None, description="What holds at some times of the week only."
    )
    prometheus: PrometheusSection | None = Field(
        default=None, description="The metrics page; off unless this says where."
    )
    mqtt: MqttSection | None = Field(
        default=None, description="The bus for fleets; off unless this names a broker."
    )
    mode: Literal["act", "advise"] = Field(
        default="act",
        description="act: carry decisions out. advise: decide and record, change nothing. "
        "A model may say otherwise.",
    )
    on_stop: Literal["keep", "revert"] = Field(
        default="keep",
        description="When the daemon stops: keep the serving variant, or revert to the best one.",
    )


def to_policy(schema: PolicySchema, *, sha256: str) -> policy.Policy:
    """Return the frozen policy of a valid schema."""
    triton = schema.triton
    gpu = schema.gpu or GpuSection()
    stability = schema.stability or StabilitySection()
    probing = schema.probing or ProbingSection()
    journal = schema.journal or JournalSection()
    memory = schema.memory or MemorySection()
    return policy.Policy(
        triton=policy.TritonPolicy(
            grpc=triton.grpc,
            metrics_url=triton.metrics,
            traces_listen=triton.traces.listen if triton.traces is not None else None,
            restricted_key_file=triton.restricted_key_file,
            restricted_key_name=triton.restricted_key_name,
            tls=_to_tls(triton.tls, "triton.tls."),
            metrics_tls=_to_tls(triton.metrics_tls, "triton.metrics_tls."),
        ),
        models=tuple(_to_model(name, section) for name, section in schema.models.items()),
        gpu=policy.GpuPolicy(
            policy.GpuSource(gpu.source), gpu.devices, gpu.max_temperature, gpu.max_power
        ),
        memory=policy.MemoryPolicy(
            memory.reserve,
            memory.max_loads_per_hour,
            memory.gpu_budget,
            memory.host_budget,
            tuple(sorted((int(gpu), most) for gpu, most in (memory.gpu_budgets or {}).items())),
        ),
        interval_s=schema.interval,
        stability=policy.StabilityPolicy(
            min_dwell_s=stability.min_dwell,
            max_switches_per_minute=stability.max_switches_per_minute,
            foreign_hold_s=stability.foreign_hold,
            stale_after_s=stability.stale_after,
        ),
        probing=policy.ProbingPolicy(
            probing.enabled, probing.max_busy, probing.batches, probing.while_advising
        ),
        journal=policy.JournalPolicy(journal.path, journal.max_size),
        schedules=tuple(starmap(_to_schedule, (schema.schedules or {}).items())),
        prometheus=None
        if schema.prometheus is None
        else policy.PrometheusPolicy(schema.prometheus.listen),
        mqtt=policy.MqttPolicy(**schema.mqtt.model_dump()) if schema.mqtt is not None else None,
        mode=policy.Mode(schema.mode),
        on_stop=policy.OnStop(schema.on_stop),
        sha256=sha256,
    )


def _to_tls(section: TlsSection | None, prefix: str) -> policy.TlsPolicy | None:
    return None if section is None else policy.TlsPolicy(**section.model_dump(), prefix=prefix)


def _to_schedule(name: str, section: ScheduleSection) -> policy.SchedulePolicy:
    days = DAYS if section.days is None else section.days
    return policy.SchedulePolicy(
        name,
        frozenset(map(DAYS.index, days)),
        section.begins,
        section.ends,
        tuple(
            policy.ScheduledModel(
                model,
                None if one.variants is None else frozenset(one.variants),
                one.min_quality,
            )
            for model, one in section.models.items()
        ),
    )


def _to_model(name: str, section: ModelSection) -> policy.ModelPolicy:
    return policy.ModelPolicy(
        name=name,
        objective=policy.Objective(section.objective.latency, section.objective.percentile),
        variants=tuple(
            one
            for variant_name, variant in section.variants.items()
            for one in _to_variants(variant_name, variant, section.gpus)
        ),
        alias=policy.AliasKind(section.alias),
        client_max_batch=section.client_max_batch,
        min_quality=section.min_quality,
        weight=section.weight,
        queue=_to_queue(section.queue),
        mode=None if section.mode is None else policy.Mode(section.mode),
        dispatcher=None
        if section.dispatcher is None
        else policy.DispatcherPolicy(section.dispatcher.model, section.dispatcher.key_file),
    )


def _to_queue(section: QueueSection | None) -> policy.QueuePolicy | None:
    if section is None:
        return None
    return policy.QueuePolicy(
        section.timeout,
        section.max_size,
        section.max_delay,
        section.priority_levels,
        section.default_priority_level,
    )


def _to_variants(
    name: str, section: VariantSection, gpus: tuple[int, ...] | None
) -> Iterator[policy.VariantPolicy]:
    """Yield a variant and then its profiles; `gpus`: where its model says nothing else."""
    memory = section.memory or VariantMemorySection()
    variant = policy.VariantPolicy(
        name,
        section.model,
        section.quality,
        memory.host,
        memory.gpu,
        section.max_batch,
        max_instances=section.max_instances,
        gpus=gpus if section.gpus is None else section.gpus,
    )
    yield variant
    for profile, one in (section.profiles or {}).items():
        yield replace(
            variant,
            name=policy.profile_name(name, profile),
            model=one.model,
            max_batch=one.max_batch,
            profile_of=name,
        )


def section_at(path: Path) -> type[Section] | None:
    """Return the section that a path of keys leads to, or None where there is none."""
    found: Any = PolicySchema
    for part in path:
        if _is_section(found):
            field = found.model_fields.get(str(part))
            found = None if field is None else _without_none(field.annotation)
        elif get_origin(found) is dict:
            found = get_args(found)[1]
        else:
            return None
    return found if _is_section(found) else None


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _without_none(annotation: Any) -> Any:
    kept = [part for part in get_args(annotation) if part is not type(None)]
    return kept[0] if isinstance(annotation, UnionType) and len(kept) == 1 else annotation
