"""The metrics that Prometheus scrapes: their names, units, help and labels.

Owns the translation of the status document into metric families. Pure: it must not read a clock or
a socket, and survives parts of the document that are missing; what is not known has no sample.

Base units throughout: seconds, bytes, ratios. docs/metrics.md and the dashboard name these; a test
holds them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

Json = Mapping[str, Any]

_MS: Final = 1e-3
_PREFIX: Final = "governor_"


def exposition(document: Json) -> bytes:
    """Return the page for a status document with its histograms."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Document(document))
    return generate_latest(collectors)


class _Document(Collector):
    """A status document as a collector."""

    def __init__(self, document: Json) -> None:
        self._document = document

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        document = self._document
        yield from _daemon(document)
        yield from _sources(document)
        yield from _durations(document)
        yield from _costs(document)
        models = _list(document, "models")
        yield from _models(models)
        yield from _variants(document, models)
        yield from _dispatchers(models)
        yield from _machine(document)
        yield from _pool(_part(document, "memory"))
        yield from _sized(_part(document, "instances"))


class _Gauges:
    """One gauge or counter with its samples; of numbers only."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str] = (), *, counts: bool = False
    ) -> None:
        family = CounterMetricFamily if counts else GaugeMetricFamily
        self.family = family(_PREFIX + name, text, labels=labels)

    def add(self, value: Any, *labels: Any, scale: float = 1.0) -> _Gauges:
        """Add a sample, where there is a number."""
        if isinstance(value, bool):
            value = float(value)
        if isinstance(value, (int, float)):
            self.family.add_metric([str(label) for label in labels], round(value * scale, 9))
        return self


def _daemon(document: Json) -> Iterator[Metric]:
    daemon, triton = _part(document, "daemon"), _part(document, "triton")
    build = InfoMetricFamily(_PREFIX + "build", "The governor.")
    build.add_metric([], {"version": str(daemon.get("version") or "")})
    yield build
    policy = InfoMetricFamily(_PREFIX + "policy", "The policy in force.")
    policy.add_metric([], {"sha256": str(daemon.get("policy_sha256") or "")})
    yield policy
    error = daemon.get("policy_error") is not None
    yield _one(
        "policy_refused", "Whether the policy file was edited to one that is refused.", error
    )
    yield _one("uptime_seconds", "Since the daemon started.", daemon.get("uptime_s"))
    yield _one("tick_interval_seconds", "Between two decisions.", daemon.get("tick_s"))
    paused = daemon.get("paused") is not None
    yield _one("paused", "Whether an operator paused the governor as a whole.", paused)
    acts = daemon.get("advice") is None
    yield _one("acting", "Whether decisions are carried out; 0: it only advises.", acts)
    yield _one("triton_up", "Whether Triton answers.", triton.get("up"))
    held = triton.get("lease") == "held"
    yield _one(
        "triton_lease_held", "Whether this governor is the one that acts on the server.", held
    )


def _sources(document: Json) -> Iterator[Metric]:
    sources = _list(document, "sources")
    up = _Gauges("source_up", "Whether a source of readings works.", ["source"])
    age = _Gauges("source_age_seconds", "Age of a source's newest reading.", ["source"])
    failures = _Gauges("source_failures_total", "Failed readings.", ["source"], counts=True)
    for source in sources:
        up.add(source.get("up"), source.get("name"))
        age.add(source.get("age_s"), source.get("name"))
        failures.add(source.get("failures"), source.get("name"))
    yield from (up.family, age.family, failures.family)
    journal = _part(document, "journal")
    yield _one("journal_up", "Whether the journal can be written.", journal.get("up"))


def _durations(document: Json) -> Iterator[Metric]:
    texts = {
        "tick_duration_seconds": "What a tick takes: reading, learning, deciding.",
        "switch_duration_seconds": "From sending an alias's load call to its return.",
        "transaction_duration_seconds": "A switch with its checks and its proof.",
    }
    histograms = _part(document, "histograms")
    for name, text in texts.items():
        seen = _part(histograms, name)
        if seen:
            family = HistogramMetricFamily(_PREFIX + name, text)
            family.add_metric([], [(le, count) for le, count in seen["buckets"]], seen["sum"])
            yield family


def _costs(document: Json) -> Iterator[Metric]:
    actions = _part(document, "actions")
    costs, disturbs = _part(actions, "learned_s"), _part(actions, "learned_disturbance")
    expected = _Gauges(
        "action_expected_seconds", "What an action is learned to take.", ["action", "target"]
    )
    for action in costs:
        for target, seconds in _part(costs, action).items():
            expected.add(seconds, action, target)
    late = _Gauges(
        "action_disturbance_ratio", "Requests that miss by an action while it lasts.", ["action"]
    )
    for action in disturbs:
        late.add(_part(disturbs, action).get("share"), action)
    yield from (expected.family, late.family)


_MODEL_GAUGES: Final = (  # (name, help, key, scale)
    ("model_forecast_requests_per_second", "Arrivals expected now.", "rate_rps", 1.0),
    ("model_queue_requests", "Requests that wait.", "queue", 1.0),
    ("model_backlog_seconds", "Work that waits.", "backlog_ms", _MS),
    (
        "model_predicted_latency_seconds",
        "At the objective's percentile, of the variant that serves.",
        "predicted_p99_ms",
        _MS,
    ),
    (
        "model_measured_latency_seconds",
        "The same, of the last minute's traced requests.",
        "measured_p99_ms",
        _MS,
    ),
    (
        "model_attainment_ratio",
        "Requests of the last minute that met the objective.",
        "attainment",
        1.0,
    ),
    (
        "model_error_budget_burn_rate",
        "Misses over those that the objective allows.",
        "burn_rate",
        1.0,
    ),
    (
        "model_effective_quality_ratio",
        "Quality summed over requests in time, over all.",
        "effective_quality",
        1.0,
    ),
    ("model_quality_ratio", "Of the variant that serves.", "quality", 1.0),
    ("model_paused", "Whether an operator paused this model.", "paused", 1.0),
)


def _models(models: Sequence[Json]) -> Iterator[Metric]:
    for name, text, key, scale in _MODEL_GAUGES:
        gauge = _Gauges(name, text, ["model"])
        for model in models:
            gauge.add(model.get(key), model.get("name"), scale=scale)
        yield gauge.family
    share = _Gauges("model_objective_ratio", "Requests that are to be in time.", ["model"])
    goal = _Gauges("model_objective_seconds", "What clients are promised.", ["model", "percentile"])
    acting = _Gauges("model_acting", "Whether decisions on it are carried out.", ["model"])
    held = _Gauges("model_held", "Whether the governor keeps its hands off.", ["model"])
    pinned = _Gauges("model_pinned", "Whether an operator pinned a variant.", ["model"])
    covered = _Gauges(
        "model_calibration_coverage_ratio", "Requests within what was stated of them.", ["model"]
    )
    switches = _Gauges("model_switches_total", "Switches.", ["model"], counts=True)
    failed = _Gauges(
        "model_failed_actions_total",
        "Actions that failed, or were rolled back.",
        ["model"],
        counts=True,
    )
    rejected = _Gauges(
        "model_rejected_requests_total",
        "Requests that Triton refused, as its queue was at its limit.",
        ["model"],
        counts=True,
    )
    decisions = _Gauges(
        "model_decisions_total", "Decisions, by their reason.", ["model", "reason"], counts=True
    )
    for model in models:
        name, objective = str(model.get("name")), _part(model, "objective")
        share.add(objective.get("percentile"), name, scale=0.01)
        goal.add(objective.get("latency_ms"), name, objective.get("percentile"), scale=_MS)
        acting.add(None if "mode" not in model else model["mode"] == "act", name)
        held.add(model.get("held") is not None, name)
        pinned.add(model.get("pinned") is not None, name)
        covered.add(_part(model, "calibration").get("coverage"), name)
        switches.add(model.get("switches"), name)
        failed.add(model.get("failed_actions"), name)
        rejected.add(model.get("rejected"), name)
        for reason, count in _part(model, "decisions").items():
            decisions.add(count, name, reason)
    every = (share, goal, acting, held, pinned, covered, switches, failed, rejected, decisions)
    yield from (gauge.family for gauge in every)


_VARIANT_GAUGES: Final = (
    ("variant_quality_ratio", "As the policy says.", "quality", 1.0),
    ("variant_known", "Whether it was ever measured.", "known", 1.0),
    ("variant_feasible", "Whether it would meet the objective now.", "feasible", 1.0),
    ("variant_service_seconds", "A batch of one request, now.", "service_ms", _MS),
    (
        "variant_utilization_ratio",
        "Work that arrives for what it can do.",
        "utilization_ratio",
        1.0,
    ),
    (
        "variant_predicted_latency_seconds",
        "At the objective's percentile, if it served.",
        "told_p99_ms",
        _MS,
    ),
    ("variant_predicted_miss_ratio", "Requests that would miss the objective.", "miss_ratio", 1.0),
)


def _variants(document: Json, models: Sequence[Json]) -> Iterator[Metric]:
    labels = ["model", "variant"]
    for name, text, key, scale in _VARIANT_GAUGES:
        gauge = _Gauges(name, text, labels)
        for model, candidate in _candidates(models):
            gauge.add(candidate.get(key), model.get("name"), candidate.get("variant"), scale=scale)
        yield gauge.family
    serving = _Gauges("variant_serving", "Whether it stands behind the alias.", labels)
    ready = _Gauges("variant_ready", "Whether Triton has it loaded.", labels)
    factor = _Gauges("variant_calibration_factor", "What predictions are multiplied with.", labels)
    states = _part(_part(document, "triton"), "variants")
    for model, candidate in _candidates(models):
        of = (model.get("name"), candidate.get("variant"))
        served_by = str(candidate.get("model"))
        serving.add(candidate.get("variant") == model.get("serving"), *of)
        ready.add(_part(states, served_by).get("ready"), *of)
        factor.add(_part(_part(model, "calibration"), "factors").get(served_by), *of)
    yield from (serving.family, ready.family, factor.family)


def _dispatchers(models: Sequence[Json]) -> Iterator[Metric]:
    well = _Gauges("dispatcher_healthy", "Whether it answers, and has our plan.", ["model"])
    waiting = _Gauges("dispatcher_waiting_requests", "Requests in its queue.", ["model"])
    slower = _Gauges("dispatcher_slowdown_ratio", "Batches' times over the plan's.", ["model"])
    left = _Gauges("dispatcher_left", "1: it was late, a variant serves for a while.", ["model"])
    for model in models:
        own = _part(model, "dispatcher")
        if own:
            left.add(own.get("left_for_s") is not None, model.get("name"))
            well.add(own.get("healthy"), model.get("name"))
            waiting.add(own.get("waiting"), model.get("name"))
            slower.add(own.get("slowdown"), model.get("name"))
    yield from (well.family, left.family, waiting.family, slower.family)


def _machine(document: Json) -> Iterator[Metric]:
    yield _one(
        "gpus_at_limit",
        "GPUs at a temperature or power that the policy allows and no more.",
        len(_texts(document, "limits")),
    )
    texts = {
        "utilization_ratio": ("gpu_utilization_ratio", "As NVML tells it."),
        "memory_used_bytes": ("gpu_memory_used_bytes", "By everybody."),
        "triton_memory_bytes": ("gpu_memory_triton_bytes", "By Triton's processes."),
        "memory_total_bytes": ("gpu_memory_bytes", "In all."),
        "temperature_celsius": ("gpu_temperature_celsius", "Of the GPU."),
        "power_watts": ("gpu_power_watts", "Drawn."),
        "lost": ("gpu_lost", "Whether it fell off the bus, needs a reset, or is gone."),
    }
    gpus = _list(document, "gpu")
    for key, (name, text) in texts.items():
        gauge = _Gauges(name, text, ["gpu"])
        for gpu in gpus:
            gauge.add(gpu.get(key), gpu.get("index"))
        yield gauge.family
    throttled = _Gauges(
        "gpu_throttled", "Whether clocks are held down, by reason.", ["gpu", "reason"]
    )
    for gpu in gpus:
        for reason in _texts(gpu, "throttle_reasons"):
            throttled.add(1.0, gpu.get("index"), reason)
    yield throttled.family
    host, process = _part(document, "host"), _part(document, "process")
    yield _one("host_cpu_ratio", "Of all cores of the host.", host.get("cpu_ratio"))
    yield _one("host_memory_used_bytes", "Of the host.", host.get("memory_used_bytes"))
    yield _one("process_cpu_ratio", "The daemon's share of one core.", process.get("cpu_ratio"))
    yield _one("process_resident_bytes", "The daemon's memory.", process.get("rss_bytes"))


def _sized(sized: Json) -> Iterator[Metric]:
    number = _Gauges(
        "variant_instances", "On each of its devices, where it may have more.", ["triton_model"]
    )
    for name in sized:
        number.add(_part(sized, name).get("number"), name)
    yield number.family


def _pool(pool: Json) -> Iterator[Metric]:
    limit = _Gauges("memory_budget_bytes", "What variants may hold together.", ["place"])
    held = _Gauges("memory_held_bytes", "What loaded variants hold together.", ["place"])
    gpus = _part(pool, "gpus")
    single = {f"gpu{gpu}": _part(gpus, gpu) for gpu in gpus}
    for name, place in {"gpu": _part(pool, "gpu"), **single, "host": _part(pool, "host")}.items():
        limit.add(place.get("limit_bytes"), name)
        held.add(place.get("held_bytes"), name)
    need = _Gauges(
        "variant_memory_bytes", "What a variant holds while loaded.", ["triton_model", "place"]
    )
    wanted = _Gauges("variant_wanted", "Whether it is to stay loaded.", ["triton_model"])
    for name in _part(pool, "variants"):
        one = _part(_part(pool, "variants"), name)
        if not one.get("guessed"):
            need.add(one.get("gpu_bytes") or None, name, "gpu")
        if not one.get("host_guessed"):
            need.add(one.get("host_bytes") or None, name, "host")
        wanted.add(name in _texts(pool, "wanted"), name)
    yield from (limit.family, held.family, need.family, wanted.family)


def _one(name: str, text: str, value: Any) -> Metric:
    return _Gauges(name, text).add(value).family


def _candidates(models: Sequence[Json]) -> Iterator[tuple[Json, Json]]:
    return ((model, one) for model in models for one in _list(model, "candidates"))


def _part(document: Json, key: str) -> Json:
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _list(document: Json, key: str) -> Sequence[Json]:
    found = document.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _texts(document: Json, key: str) -> Sequence[str]:
    found = document.get(key)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
