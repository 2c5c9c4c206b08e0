"""What must hold between several values of a policy.

Owns the checks across fields. They read the plain data and skip whatever has the wrong shape, so
that they speak even while other values are wrong: an operator sees everything at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import starmap
from typing import Final

from controller.policy import units
from controller.policy.credentials import CredentialError, is_credential, secret_file
from controller.policy.devices import device_problems, names_gpus
from controller.policy.dispatchers import dispatcher_problems
from controller.policy.findings import Finding
from controller.policy.model import profile_name
from controller.policy.problems import Path, quoted

_TLS_FILES: Final = ("ca_file", "cert_file", "key_file")
SECRETS: Final[tuple[Path, ...]] = (
    ("triton", "restricted_key_file"),
    *(("triton", section, key) for section in ("tls", "metrics_tls") for key in _TLS_FILES),
    ("mqtt", "password_file"),
    *(("mqtt", f"tls_{key}") for key in _TLS_FILES),
)


def cross_check(data: object) -> Iterator[Finding]:
    """Yield what contradicts itself in the plain data of a policy, whatever its shape."""
    root = _mapping(data)
    models = _mapping(root.get("models"))
    for name, section in models.items():
        yield from _check_model(name, _mapping(section), models)
    yield from _check_shared(models)
    yield from starmap(Finding, device_problems(root))
    yield from _check_stale_after(root)
    yield from _check_mqtt(_mapping(root.get("mqtt")))
    yield from _check_tls(_mapping(root.get("triton")))
    yield from _check_gpu(_mapping(root.get("gpu")))
    yield from _check_schedules(_mapping(root.get("schedules")), models)
    for place in ("gpu", "host"):
        yield from _check_budget(root, place)


def check_credentials(data: object, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield which credentials are named that a process with this environment was not given."""
    for path in SECRETS:
        named: object = data
        for key in path:
            named = _mapping(named).get(str(key))
        if isinstance(named, str) and is_credential(named):
            try:
                secret_file(named, environment)
            except CredentialError as error:
                yield Finding(path, str(error))


def _check_model(
    name: str, section: Mapping[str, object], models: Mapping[str, object]
) -> Iterator[Finding]:
    path: Path = ("models", name)
    users: dict[str, str] = {}
    qualities: list[float] = []
    variants = _mapping(section.get("variants"))
    for content in variants.values():
        quality = _mapping(content).get("quality")
        if isinstance(quality, (int, float)) and not isinstance(quality, bool):
            qualities.append(quality)
    for where, variant, served_by in _served_by(path, variants):
        if served_by == name:
            yield Finding(
                where,
                f"{quoted(name)} is the name that clients call and becomes an alias: the alias "
                "would point at itself; give the model another name",
            )
        elif served_by in models:
            yield Finding(
                where,
                f"{quoted(served_by)} is a model of this policy, so an alias on the server: a "
                "variant must be a Triton model that computes",
            )
        if served_by in users:
            yield Finding(
                where, f"{quoted(served_by)} is the variant {quoted(users[served_by])} already"
            )
        users.setdefault(served_by, variant)
    yield from _check_profiles(path, section.get("client_max_batch", 1), variants)
    yield from _check_min_quality(path, section.get("min_quality"), qualities, len(variants))
    yield from _check_queue((*path, "queue"), section.get("queue"))
    yield from dispatcher_problems(path, section, models)


def _check_queue(path: Path, section: object) -> Iterator[Finding]:
    queue = _mapping(section)
    if isinstance(section, Mapping) and all(value is None for value in section.values()):
        yield Finding(path, "says nothing: name a timeout or a max_size, or leave it out")
    levels, default = queue.get("priority_levels"), queue.get("default_priority_level")
    if default is None:
        return
    where: Path = (*path, "default_priority_level")
    if levels is None:
        yield Finding(where, "needs priority_levels beside it", at_key=True)
    elif isinstance(levels, int) and isinstance(default, int) and default > levels:
        yield Finding(where, f"is not among the {levels} of priority_levels")


def _check_shared(models: Mapping[str, object]) -> Iterator[Finding]:
    """Find a variant of two models for which these want different queues."""
    first: dict[str, tuple[str, object]] = {}
    for name, content in models.items():
        section = _mapping(content)
        path: Path = ("models", name)
        queue = section.get("queue")
        for where, _, served_by in _served_by(path, _mapping(section.get("variants"))):
            other, wanted = first.setdefault(served_by, (name, queue))
            if wanted != queue:
                yield Finding(
                    where,
                    f"{quoted(served_by)} is a variant of {quoted(other)}, too, which wants "
                    "another queue: a Triton model has one",
                )


def _served_by(path: Path, variants: Mapping[str, object]) -> Iterator[tuple[Path, str, str]]:
    """Yield, of each variant and profile, where Triton's name stands, its own name and that."""
    for variant, content in variants.items():
        fields = _mapping(content)
        here: Path = (*path, "variants", variant)
        found = [((*here, "model"), variant, fields.get("model"))]
        for profile, one in _mapping(fields.get("profiles")).items():
            where = (*here, "profiles", profile, "model")
            found.append((where, profile_name(variant, profile), _mapping(one).get("model")))
        for where, name, served_by in found:
            if isinstance(served_by, str):
                yield where, name, served_by


def _check_profiles(
    path: Path, client_max_batch: object, variants: Mapping[str, object]
) -> Iterator[Finding]:
    named: dict[str, str] = dict.fromkeys(variants, "another variant")
    for variant, content in variants.items():
        here: Path = (*path, "variants", variant)
        fields = _mapping(content)
        profiles = _mapping(fields.get("profiles"))
        yield from _check_limit(here, fields, client_max_batch)
        if profiles and "max_batch" not in fields:
            yield Finding(
                (*here, "profiles"),
                "need the variant's own max_batch beside them, to be compared with",
                at_key=True,
            )
        for profile, one in profiles.items():
            where = (*here, "profiles", profile)
            name = profile_name(variant, profile)
            if name in named:
                text = f"is called {quoted(name)} everywhere else, as is {named[name]}"
                yield Finding(where, text, at_key=True)
            named[name] = f"a profile of {quoted(variant)}"
            yield from _check_limit(where, _mapping(one), client_max_batch)


def _check_limit(
    path: Path, fields: Mapping[str, object], client_max_batch: object
) -> Iterator[Finding]:
    limit = fields.get("max_batch")
    if not isinstance(limit, int) or not isinstance(client_max_batch, int):
        return
    if 1 <= limit < client_max_batch:
        yield Finding(
            (*path, "max_batch"),
            f"is less than client_max_batch, {client_max_batch}: clients may send requests of so "
            "many rows, and Triton would refuse them",
        )


def _check_min_quality(
    path: Path, min_quality: object, qualities: list[float], variants: int
) -> Iterator[Finding]:
    if not isinstance(min_quality, (int, float)) or isinstance(min_quality, bool):
        return
    if qualities and len(qualities) == variants and max(qualities) < min_quality:
        yield Finding(
            (*path, "min_quality"),
            f"no variant has a quality of {min_quality}: the best has {max(qualities)}",
        )


def _check_stale_after(root: Mapping[str, object]) -> Iterator[Finding]:
    stale_after = _mapping(root.get("stability")).get("stale_after")
    try:
        stale_after_s = units.parse_duration(stale_after)
        interval_s = units.parse_duration(root.get("interval"))
    except ValueError:  # absent or wrong: said elsewhere
        return
    if stale_after_s <= interval_s:
        yield Finding(
            ("stability", "stale_after"),
            f"must be longer than the interval, {root.get('interval')}: all readings would be "
            "stale",
        )


def _check_mqtt(mqtt: Mapping[str, object]) -> Iterator[Finding]:
    if mqtt.get("password_file") is not None and mqtt.get("username") is None:
        yield Finding(
            ("mqtt", "password_file"),
            "needs a username beside it: MQTT sends no password alone",
            at_key=True,
        )

    yield from _check_pair(("mqtt",), mqtt, "tls_")
    if mqtt.get("tls_cert_file") is not None and mqtt.get("tls_ca_file") is None:
        yield Finding(
            ("mqtt", "tls_cert_file"),
            "needs tls_ca_file beside it: without it there is no TLS",
            at_key=True,
        )


def _check_tls(triton: Mapping[str, object]) -> Iterator[Finding]:
    for key in ("tls", "metrics_tls"):
        yield from _check_pair(("triton", key), _mapping(triton.get(key)), "")
    url = triton.get("metrics")
    if triton.get("metrics_tls") is not None and not str(url).startswith("https://"):
        yield Finding(
            ("triton", "metrics_tls"), "needs a triton.metrics that is an https URL", at_key=True
        )


def _check_pair(path: Path, section: Mapping[str, object], prefix: str) -> Iterator[Finding]:
    pair = (f"{prefix}cert_file", f"{prefix}key_file")
    for key, other in (pair, pair[::-1]):
        if section.get(key) is not None and section.get(other) is None:
            yield Finding((*path, key), f"needs {other} beside it", at_key=True)


def _check_gpu(gpu: Mapping[str, object]) -> Iterator[Finding]:
    if gpu.get("source") == "none" and isinstance(gpu.get("devices"), list):
        yield Finding(
            ("gpu", "devices"), "names devices while `source: none` watches none", at_key=True
        )
    for key in ("max_temperature", "max_power"):
        if gpu.get("source") == "none" and gpu.get(key) is not None:
            yield Finding(("gpu", key), "is a limit that `source: none` never sees", at_key=True)


def _check_schedules(
    schedules: Mapping[str, object], models: Mapping[str, object]
) -> Iterator[Finding]:
    for name, schedule in schedules.items():
        for model, section in _mapping(_mapping(schedule).get("models")).items():
            here: Path = ("schedules", name, "models", model)
            if model not in models:
                yield Finding(here, f"{quoted(model)} is no model of this policy", at_key=True)
                continue
            if not any(value is not None for value in _mapping(section).values()):
                yield Finding(here, "says nothing: name its variants or a min_quality", at_key=True)
            variants = _mapping(_mapping(models[model]).get("variants"))
            names = set(variants)
            for variant, content in variants.items():
                profiles = _mapping(_mapping(content).get("profiles"))
                names |= {profile_name(variant, profile) for profile in profiles}
            listed = _mapping(section).get("variants")
            for at, one in enumerate(listed if isinstance(listed, list) else ()):
                if one not in names:
                    text = f"{quoted(str(one))} is no variant of {quoted(model)}"
                    yield Finding((*here, "variants", at), text)


def _check_budget(root: Mapping[str, object], place: str) -> Iterator[Finding]:
    """Find a budget in which not even the smallest variant of each model has room."""
    memory = _mapping(root.get("memory"))
    key = f"{place}_budget"
    if key not in memory:
        return
    if place == "gpu" and _mapping(root.get("gpu")).get("source") == "none":
        yield Finding(("memory", key), "is a budget of GPUs, and `source: none` watches none")
    try:
        budget = units.parse_bytes(memory[key])
    except ValueError:  # said elsewhere
        return
    if place == "gpu" and names_gpus(root):
        return
    smallest: dict[object, int] = {}  # by Triton's name: two models may share one
    for section in _mapping(root.get("models")).values():
        variants = [_mapping(one) for one in _mapping(_mapping(section).get("variants")).values()]
        try:
            sizes = {
                str(one.get("model")): units.parse_bytes(_mapping(one.get("memory")).get(place))
                for one in variants
            }
        except ValueError:  # not declared: measured; or wrong
            continue
        if sizes:
            least = min(sizes, key=sizes.__getitem__)
            smallest[least] = sizes[least]
    needed = sum(smallest.values())
    if needed > budget:
        yield Finding(
            ("memory", key),
            f"is too small: one variant of each model, the smallest, needs "
            f"{units.format_bytes(needed)}",
        )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
