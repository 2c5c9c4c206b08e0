"""What must hold of a model's dispatcher beside the rest of the plain data of a policy.

Owns these checks, and the policy as the server is to see it: with each dispatcher as something an
alias can lead to. Data of the wrong shape is skipped: `controller.policy.schema` speaks of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from controller.policy.findings import Finding
from controller.policy.model import DISPATCHER, Policy, VariantPolicy
from controller.policy.problems import Path, quoted

_OF_TRITONS_QUEUE: Final = ("max_delay", "priority_levels")


def dispatcher_problems(
    path: Path, section: Mapping[str, object], models: Mapping[str, object]
) -> Iterator[Finding]:
    """Yield what speaks against the dispatcher of a model.

    Args:
        path: of the model.
        section: its plain data.
        models: all of the policy.
    """
    dispatcher = section.get("dispatcher")
    if not isinstance(dispatcher, Mapping):
        return
    queue = section.get("queue")
    for key in _OF_TRITONS_QUEUE:
        if isinstance(queue, Mapping) and queue.get(key) is not None:
            text = "is of Triton's queue, and with a dispatcher requests wait in its own"
            yield Finding((*path, "queue", key), text, at_key=True)
    where: Path = (*path, "dispatcher", "model")
    variants = section.get("variants")
    yield from _name_problems(where, dispatcher.get("model"), str(path[-1]), models)
    for variant, content in (variants if isinstance(variants, Mapping) else {}).items():
        here: Path = (*path, "variants", variant)
        if variant == DISPATCHER:
            text = "is what the dispatcher is called everywhere else; choose another name"
            yield Finding(here, text, at_key=True)
        if isinstance(content, Mapping) and content.get("max_instances") is not None:
            yield Finding(
                (*here, "max_instances"),
                "does nothing beside a dispatcher, which has one batch in execution at a time",
                at_key=True,
            )


def _name_problems(
    where: Path, name: object, own: str, models: Mapping[str, object]
) -> Iterator[Finding]:
    """Yield who else has the name of a model's dispatcher."""
    if not isinstance(name, str):
        return
    if name in models:
        yield Finding(where, f"{quoted(name)} is a model of this policy, so an alias on the server")
    for other, content in models.items():
        section = content if isinstance(content, Mapping) else {}
        variants, theirs = section.get("variants"), section.get("dispatcher")
        for variant in (variants if isinstance(variants, Mapping) else {}).values():
            if isinstance(variant, Mapping) and variant.get("model") == name:
                yield Finding(where, f"{quoted(name)} is a variant of {quoted(other)}")
        # Said once, of the later one of the two.
        if other < own and isinstance(theirs, Mapping) and theirs.get("model") == name:
            yield Finding(
                where, f"{quoted(name)} is the dispatcher of {quoted(other)}, too: each has its own"
            )


def with_dispatchers(policy: Policy) -> Policy:
    """Return a policy in which each dispatcher is something that the alias can lead to.

    First among the variants, which is last where the fastest is looked for, and of no quality:
    nobody takes it for the best.
    """
    models = tuple(
        model
        if model.dispatcher is None
        else replace(
            model,
            variants=(VariantPolicy(DISPATCHER, model.dispatcher.model, 0.0), *model.variants),
        )
        for model in policy.models
    )
    return replace(policy, models=models)
