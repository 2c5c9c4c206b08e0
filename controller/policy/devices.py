"""What must hold of the GPUs that a policy names, and of a variant of two models.

Owns the checks of `gpus`, `max_instances` and `memory.gpu_budgets` against the rest of the plain
data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from controller.policy.problems import Path, quoted


def device_problems(root: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    """Yield where GPUs are named that cannot be meant, and why."""
    gpu = _mapping(root.get("gpu"))
    devices = gpu.get("devices")
    watched = None
    if isinstance(devices, list):  # whatever else is in it is told by its own check
        watched = {one for one in devices if isinstance(one, int)}
    none = gpu.get("source") == "none"
    for path, named in _named(root):
        if none:
            yield path, "is about GPUs, and `source: none` watches none"
        elif watched is not None and not named <= watched:
            others = ", ".join(map(str, sorted(named - watched)))
            yield path, f"names GPU {others}, which gpu.devices does not: it is not watched"
    yield from _shared(root)


def _named(root: Mapping[str, object]) -> Iterator[tuple[Path, set[int]]]:
    """Yield each place that names GPUs."""
    budgets = _mapping(_mapping(root.get("memory")).get("gpu_budgets"))
    for gpu in budgets:
        if str(gpu).isdecimal():
            yield ("memory", "gpu_budgets", gpu), {int(gpu)}
    for name, section in _mapping(root.get("models")).items():
        path: Path = ("models", name)
        model = _mapping(section)
        places = [(path, model)]
        for variant, content in _mapping(model.get("variants")).items():
            places.append(((*path, "variants", variant), _mapping(content)))
        for where, fields in places:
            gpus = fields.get("gpus")
            if isinstance(gpus, list) and all(isinstance(one, int) for one in gpus):
                yield (*where, "gpus"), set(gpus)
            elif gpus == "auto":
                yield (*where, "gpus"), set()


def _shared(root: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    """Yield a variant of two models that want it in different places, or with other instances."""
    first: dict[str, tuple[str, object, object]] = {}
    for name, section in _mapping(root.get("models")).items():
        model = _mapping(section)
        for variant, content in _mapping(model.get("variants")).items():
            fields = _mapping(content)
            served_by = fields.get("model")
            gpus, most = fields.get("gpus"), fields.get("max_instances")
            gpus = model.get("gpus") if gpus is None else gpus
            if not isinstance(served_by, str):
                continue
            other, gpus_before, most_before = first.setdefault(served_by, (name, gpus, most))
            path: Path = ("models", name, "variants", variant, "model")
            text = f"{quoted(served_by)} is a variant of {quoted(other)}, too, which wants it"
            if gpus_before != gpus:
                yield path, f"{text} on other GPUs: a Triton model is in one place"
            if most_before != most:
                yield path, f"{text} with another max_instances: a Triton model has one"


def names_gpus(root: Mapping[str, object]) -> bool:
    """Return whether a policy tells its GPUs apart: then no one of them has to hold everything."""
    return any(True for _ in _named(root))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
