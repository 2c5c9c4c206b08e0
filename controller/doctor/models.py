"""Checks of the policy's models: is every variant there, ready, and a fit for its alias.

Owns the questions about models on the server. It must load, unload and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from controller.actuation.alias import build, fits, is_ensemble, max_batch, target_of, unsuitable
from controller.actuation.queueing import unset
from controller.doctor.finding import Finding, Level, fail, ok, warn
from controller.doctor.server import DEADLINE_S, CallError, call
from controller.policy.model import AliasKind, ModelPolicy

Config = Mapping[str, Any]
Index = Mapping[str, tuple[str, str]]  # name -> state, reason


async def check_models(
    client: Any,
    headers: dict[str, str],
    models: Sequence[ModelPolicy],
    advised: frozenset[str] = frozenset(),
) -> list[Finding]:
    """Return the findings on every model of the policy; `advised` are not acted on."""
    try:
        answer = await call(
            "repository index",
            client.get_model_repository_index(headers=headers, client_timeout=DEADLINE_S),
        )
    except CallError as error:
        return [fail("repository", str(error), "allow the model-repository API to the governor")]
    index: dict[str, tuple[str, str]] = {}
    for entry in answer.models:
        if entry.name not in index or entry.state == "READY":
            index[entry.name] = (entry.state, entry.reason)
    findings = []
    for model in models:
        configs = await _configs(client, headers, model, index)
        findings += _variants(model, index, configs)
        findings += _fit(model, configs)
        findings += _dispatcher(model, index)
        findings.append(await _alias(client, headers, model, index, advised=model.name in advised))
    return findings


async def _configs(
    client: Any, headers: dict[str, str], model: ModelPolicy, index: Index
) -> dict[str, Config]:
    """Return the configs of the loaded variants by Triton's name."""
    configs: dict[str, Config] = {}
    for variant in model.variants:
        if index.get(variant.model, ("", ""))[0] == "READY":
            config = await _config(client, headers, variant.model)
            if config is not None:
                configs[variant.model] = config
    return configs


async def _config(client: Any, headers: dict[str, str], name: str) -> Config | None:
    try:
        answer = await call(
            f"config of {name}",
            client.get_model_config(name, headers=headers, client_timeout=DEADLINE_S),
        )
    except CallError:
        return None
    config: Config = MessageToDict(answer.config, preserving_proto_field_name=True)
    return config


def _dispatcher(model: ModelPolicy, index: Index) -> list[Finding]:
    """Return whether a model's dispatcher is there, and its key."""
    if model.dispatcher is None:
        return []
    name, own = f"dispatcher {model.name}", model.dispatcher
    write = "run `governor dispatcher write POLICY --repository FOLDER`"
    try:
        with Path(own.key_file).open("rb"):
            pass
    except OSError as error:
        return [fail(name, f"its key cannot be read: {error}", write)]
    if own.model not in index:
        return [fail(name, f"{own.model} is not in Triton's model repository", write)]
    found = [ok(name, f"{own.model} is in the repository, its key is there")]
    if model.queue is None or (model.queue.timeout_s is None and model.queue.max_size is None):
        found.append(
            warn(
                name,
                "its queue has no end: what waits there in an overload is kept in memory, and "
                "answered though its client is gone",
                f"set models.{model.name}.queue.timeout to the longest that clients wait",
            )
        )
    return found


def _variants(model: ModelPolicy, index: Index, configs: Mapping[str, Config]) -> list[Finding]:
    findings = []
    for variant in model.variants:
        name = f"variant {model.name}/{variant.name}"
        state, reason = index.get(variant.model, (None, ""))
        if state is None:
            findings.append(
                fail(
                    name,
                    f"{variant.model} is not in Triton's model repository",
                    f"put it there, or correct models.{model.name}.variants.{variant.name}.model",
                )
            )
        elif state in ("LOADING", "UNLOADING"):
            findings.append(
                warn(name, f"{variant.model} is {state.lower()}", "ask again in a moment")
            )
        elif state != "READY" and reason and reason != "unloaded":
            findings.append(
                fail(name, f"{variant.model} failed to load: {reason}", "look at Triton's log")
            )
        elif state != "READY":
            findings.append(
                warn(
                    name,
                    f"{variant.model} is not loaded",
                    "the governor loads it when it acts; until then it is no choice, and its "
                    "config was not checked",
                )
            )
        elif variant.model not in configs:
            findings.append(
                warn(name, f"the config of {variant.model} cannot be read", "ask again")
            )
        else:
            findings.append(ok(name, f"{variant.model} is ready"))
    return findings


def _fit(model: ModelPolicy, configs: Mapping[str, Config]) -> list[Finding]:
    """Return whether the loaded variants can stand behind one alias."""
    findings: list[Finding] = []
    suited: list[Config] = []
    for variant in model.variants:
        config = configs.get(variant.model)
        if config is None:
            continue
        name = f"variant {model.name}/{variant.name}"
        problems = unsuitable(config)
        findings += [fail(name, str(p), "or take the variant out of the policy") for p in problems]
        cannot = unset(config, model.queue)
        if cannot is not None:
            advice = f"or take `queue` out of models.{model.name}: it has no effect on this one"
            findings.append(warn(name, f"{variant.model}: {cannot}", advice))
        limit = max_batch(config)
        if variant.max_batch not in (None, limit):
            findings.append(
                fail(
                    name,
                    f"{variant.model} takes {limit} rows at once, but the policy says "
                    f"{variant.max_batch}: what is predicted of it is wrong",
                    "run `governor profiles materialise` and load it anew, or correct max_batch",
                )
            )
        if model.client_max_batch > max(limit, 1):
            findings.append(
                fail(
                    name,
                    f"{variant.model} takes {limit} rows at once, but client_max_batch promises "
                    f"{model.client_max_batch}",
                    f"raise its max_batch_size, or lower models.{model.name}.client_max_batch",
                )
            )
        elif not problems:
            suited.append(config)
    if not suited:
        return findings
    alias = build(model.name, suited, client_max_batch=model.client_max_batch)
    first = suited[0].get("name")
    misfits = [p for config in suited for p in fits(alias, config)]
    findings += [
        fail(
            f"model {model.name}",
            f"{p}; the alias is built after {first}",
            "all variants need the same tensors, types and batching",
        )
        for p in misfits
    ]
    if all(finding.level is not Level.FAIL for finding in findings):
        findings.append(
            ok(f"model {model.name}", f"its {len(suited)} loaded variants fit one alias")
        )
    return findings


async def _alias(
    client: Any, headers: dict[str, str], model: ModelPolicy, index: Index, *, advised: bool
) -> Finding:
    name = f"alias {model.name}"
    on_disk = model.name in index
    config = await _config(client, headers, model.name)
    target = None if config is None else target_of(config)
    if model.alias is AliasKind.REPOSITORY and not on_disk:
        return fail(
            name,
            "alias: repository, but Triton's model repository has no such folder",
            f"make a folder {model.name} with the ensemble's config.pbtxt and a folder 1 in it, "
            "and start Triton with --load-model, or choose alias: virtual",
        )
    if config is not None and not is_ensemble(config):
        return warn(
            name,
            f"a model named {model.name} is loaded; the governor would put its alias in its place",
            "clients then get the variants' answers; a plain load of that name reverts it",
        )
    if target is not None and target not in {v.model for v in model.variants}:
        return warn(
            name,
            f"it points at {target}, which is none of the policy's variants",
            f"add {target} to models.{model.name}.variants, or let the governor move it",
        )
    if target is not None:
        return ok(name, f"it points at {target}")
    if advised:
        return warn(
            name,
            "it is not there, and a governor that only advises makes none: until clients call an"
            " alias of that name there is nothing to observe",
            f"`governor alias {model.name} --write-config MODEL_REPOSITORY` writes one for Triton"
            f" to load, or let the governor make it: `mode: act` of models.{model.name}",
        )
    return ok(name, "it is not there yet; the governor makes it when it acts")
