"""An alias as data: an ensemble of one step, what it promises clients, and which variants fit.

Owns the shape of the configs that are sent for aliases and every check that can be made before
Triton is asked, since Triton answers a misfit by taking the alias down. Pure: it must not talk to
anybody. Configs are JSON values as `TritonControl.model_config` returns them.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# In the alias's own parameters, so that an alias which Triton re-creates from a stale graph can
# be told from one that a person changed: only Triton brings back an older serial of ours.
_MARKER = "triton_governor"

Config = Mapping[str, Any]


class Misfit(enum.StrEnum):
    """Why a variant cannot stand behind an alias. Append only."""

    NOT_AN_ALIAS = "not_an_alias"
    BATCH_LIMIT = "batch_limit"
    BATCHING = "batching"
    INPUT = "input"
    OUTPUT = "output"
    DECOUPLED = "decoupled"
    SEQUENCE = "sequence"
    RESPONSE_CACHE = "response_cache"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason against a variant, for programs and for people."""

    misfit: Misfit
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Marker:
    """Who wrote an alias, and as which of their writes."""

    owner: str
    serial: int


def max_batch(config: Config) -> int:
    """Return the largest batch a model takes; 0: it does not batch.

    A dispatcher takes more in one call, but of no client.
    """
    limit = int(config.get("max_batch_size", 0))
    own = config.get("parameters", {}).get("client_max_batch", {}).get("string_value", "")
    return min(limit, int(own)) if own.isdecimal() else limit


def is_decoupled(config: Config) -> bool:
    """Return whether a model may answer one request many times."""
    return bool(config.get("model_transaction_policy", {}).get("decoupled", False))


def is_ensemble(config: Config) -> bool:
    """Return whether a model is made of other models."""
    return bool(config.get("ensemble_scheduling", {}).get("step"))


def steps_of(config: Config) -> tuple[str, ...]:
    """Return the models an ensemble is made of; none for any other model."""
    steps = config.get("ensemble_scheduling", {}).get("step", ())
    return tuple(str(step["model_name"]) for step in steps)


def target_of(config: Config) -> str | None:
    """Return the variant an alias points at; None: the config is not that of an alias."""
    steps = steps_of(config)
    return steps[0] if len(steps) == 1 else None


def marker_of(config: Config) -> Marker | None:
    """Return who wrote an alias; None: no governor did."""
    text = config.get("parameters", {}).get(_MARKER, {}).get("string_value", "")
    owner, _, serial = str(text).rpartition("/")
    return Marker(owner, int(serial)) if owner and serial.isdecimal() else None


def unsuitable(config: Config) -> tuple[Problem, ...]:
    """Return why a model can be no variant at all, whatever the alias promises."""
    problems = []
    name = config.get("name")
    if "sequence_batching" in config:
        problems.append(
            Problem(Misfit.SEQUENCE, f"{name} batches sequences: a switch would lose their state")
        )
    if config.get("response_cache", {}).get("enable"):
        problems.append(
            Problem(
                Misfit.RESPONSE_CACHE,
                f"{name} has a response cache: it would answer from before a switch; "
                "set response_cache.enable to false",
            )
        )
    return tuple(problems)


def fits(alias: Config, variant: Config) -> tuple[Problem, ...]:
    """Return everything that speaks against pointing an alias at a variant; empty: it fits."""
    if target_of(alias) is None:
        text = f"{alias.get('name')} is no ensemble of one step"
        return (Problem(Misfit.NOT_AN_ALIAS, text),)
    step = alias["ensemble_scheduling"]["step"][0]
    problems = [
        *unsuitable(alias),
        *unsuitable(variant),
        *_batch_problems(alias, variant),
        *_input_problems(alias, variant, step.get("input_map", {})),
        *_output_problems(alias, variant, step.get("output_map", {})),
    ]
    if is_decoupled(alias) != is_decoupled(variant):
        kind = "streams" if is_decoupled(variant) else "does not stream"
        text = f"{variant.get('name')} {kind}, unlike {alias.get('name')}"
        problems.append(Problem(Misfit.DECOUPLED, text))
    return tuple(problems)


def _batch_problems(alias: Config, variant: Config) -> Iterable[Problem]:
    promised, limit, name = max_batch(alias), max_batch(variant), variant.get("name")
    if (promised > 0) != (limit > 0):
        has = "batches" if limit > 0 else "does not batch"
        yield Problem(Misfit.BATCHING, f"{name} {has}, unlike {alias.get('name')}")
    elif promised > limit:
        yield Problem(
            Misfit.BATCH_LIMIT,
            f"{name} takes {limit} rows, {alias.get('name')} promises clients {promised}; "
            "lower client_max_batch or raise max_batch_size",
        )


def _input_problems(alias: Config, variant: Config, names: Mapping[str, str]) -> Iterable[Problem]:
    has, promised = _tensors(variant, "input"), _tensors(alias, "input")
    for name in sorted(has.keys() | names.keys()):
        if name not in has:
            yield Problem(Misfit.INPUT, f"{variant.get('name')} has no input {name}")
        elif name not in names:
            if not has[name].get("optional"):
                text = f"{variant.get('name')} needs an input {name} that clients do not send"
                yield Problem(Misfit.INPUT, text)
        elif (sent := promised.get(names[name])) is None or not _accepts(has[name], sent):
            yield Problem(Misfit.INPUT, _differs(variant, "input", has[name], sent))


def _output_problems(alias: Config, variant: Config, names: Mapping[str, str]) -> Iterable[Problem]:
    has, promised = _tensors(variant, "output"), _tensors(alias, "output")
    for name in sorted(names):
        if name not in has:
            yield Problem(Misfit.OUTPUT, f"{variant.get('name')} has no output {name}")
        elif (told := promised.get(names[name])) is None or not _accepts(told, has[name]):
            yield Problem(Misfit.OUTPUT, _differs(variant, "output", has[name], told))


def _differs(variant: Config, side: str, has: Config, other: Config | None) -> str:
    def words(tensor: Config | None) -> str:
        return "nothing" if tensor is None else f"{tensor['data_type']} {_dims(tensor)}"

    return (
        f"{side} {has['name']} of {variant.get('name')} is {words(has)}, "
        f"clients have {words(other)}"
    )


def _tensors(config: Config, side: str) -> dict[str, Config]:
    return {str(tensor["name"]): tensor for tensor in config.get(side, ())}


def _dims(tensor: Config) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.get("dims", ()))


def _accepts(wide: Config, narrow: Config) -> bool:
    """Return whether every tensor that `narrow` allows is one that `wide` allows."""
    takes, gets = _dims(wide), _dims(narrow)
    same_type = wide["data_type"] == narrow["data_type"]
    return (
        same_type
        and len(takes) == len(gets)
        and all(size in (-1, other) for size, other in zip(takes, gets, strict=True))
    )


def build(name: str, variants: Sequence[Config], *, client_max_batch: int) -> dict[str, Any]:
    """Return the config of an alias that points at the first variant that can keep its promise.

    It promises the rows that the operator says, so far as any variant takes them, and the
    narrowest inputs and the outputs that the variants share. A variant that contradicts the
    target is left out of that, and `fits` will say why.

    Args:
        name: what clients call.
        variants: configs of loaded variants, at least one, the most wanted first.
        client_max_batch: rows a single request may have, at most.
    """
    limit = min(max(client_max_batch, 1), max(map(max_batch, variants)))
    first = next(variant for variant in variants if max_batch(variant) >= limit)
    alias = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": limit,
        "input": [_tensor(tensor) for tensor in first.get("input", ())],
        "output": [_tensor(tensor) for tensor in first.get("output", ())],
        "model_transaction_policy": {"decoupled": is_decoupled(first)},
    }
    for other in variants:
        narrowed = _narrow(alias, other)
        if narrowed["output"] and not fits(_with_step(narrowed, other), other):
            alias = narrowed
    return _with_step(alias, first)


def _narrow(alias: Config, other: Config) -> dict[str, Any]:
    inputs, outputs = _tensors(other, "input"), _tensors(other, "output")
    return {
        **alias,
        "input": [
            _narrower(tensor, inputs.get(tensor["name"]))
            for tensor in alias["input"]
            if tensor["name"] in inputs or not tensor.get("optional")
        ],
        "output": [tensor for tensor in alias["output"] if tensor["name"] in outputs],
    }


def _narrower(tensor: Config, other: Config | None) -> dict[str, Any]:
    """Return an input with every size that is fixed on either side."""
    narrow = dict(tensor)
    if other is None:
        return narrow
    if len(_dims(tensor)) == len(_dims(other)):
        pairs = zip(_dims(tensor), _dims(other), strict=True)
        narrow["dims"] = [
            max(size, theirs) if -1 in (size, theirs) else size for size, theirs in pairs
        ]
    if not other.get("optional"):
        narrow.pop("optional", None)
    return narrow


def _tensor(tensor: Config) -> dict[str, Any]:
    kept = {"name": tensor["name"], "data_type": tensor["data_type"], "dims": list(_dims(tensor))}
    return {**kept, "optional": True} if tensor.get("optional") else kept


def _with_step(alias: Config, variant: Config) -> dict[str, Any]:
    step = {
        "model_name": variant["name"],
        "model_version": -1,
        "input_map": {tensor["name"]: tensor["name"] for tensor in alias["input"]},
        "output_map": {tensor["name"]: tensor["name"] for tensor in alias["output"]},
    }
    return {**alias, "ensemble_scheduling": {"step": [step]}}


def point(alias: Config, target: str, marker: Marker) -> dict[str, Any]:
    """Return an alias's config, pointing at a target, and signed. The promise stays the same."""
    config: dict[str, Any] = copy.deepcopy(dict(alias))
    config["ensemble_scheduling"]["step"][0]["model_name"] = target
    parameters = config.setdefault("parameters", {})
    parameters[_MARKER] = {"string_value": f"{marker.owner}/{marker.serial}"}
    return config


def unsigned(alias: Config) -> dict[str, Any]:
    """Return an alias's config without our signature, as anybody could have written it."""
    config: dict[str, Any] = copy.deepcopy(dict(alias))
    parameters = config.get("parameters", {})
    parameters.pop(_MARKER, None)
    if not parameters:
        config.pop("parameters", None)
    return config


def instances_of(config: Mapping[str, Any]) -> int | None:
    """Return the instances on each device; None: it has several groups of them, or none."""
    groups = config.get("instance_group") or []
    if len(groups) != 1:
        return None
    return max(int(groups[0].get("count", 1)), 1)
