"""Taking models back from the governor, and giving them again.

Owns the order of the steps of a release: no more decisions, the last switch, hands off. It must
not touch the server itself: `controller.actuation.handback` does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from controller.actuation import handback
from controller.ports import Outcome

if TYPE_CHECKING:
    from controller.daemon.loop import Daemon

# For everything that a release waits for: less than a client waits for the answer.
WITHIN_S: Final = 6.0


@dataclass(frozen=True, slots=True)
class Released:
    """What became of one release."""

    ok: bool
    message: str


async def release(
    daemon: Daemon, model: str, on: str | None, *, why: str | None, who: str
) -> Released:
    """Leave a model on a variant and act on it no more; where that fails nothing has changed.

    Args:
        daemon: that governs it.
        model: of the policy.
        on: the operator's name of one of its variants; None: what serves now.
        why: for the journal.
        who: the same.
    """
    wishes, policy = daemon.wishes, daemon.policy.model(model)
    before, pin = wishes.releases.get(model), wishes.pins.get(model)
    names = {variant.model: variant.name for variant in policy.variants}
    # From here on no decision on it is carried out; one that is under way is waited for.
    why = why if why is not None or before is None else before.why
    wishes.release(model, on, why, who)
    acting = daemon.acting.tasks.get(model)
    if acting is not None:
        await asyncio.wait({acting}, timeout=WITHIN_S / 2.0)
    problem, serving = None, None
    hand = daemon.actuator.at_hand(model)
    if hand is not None:
        keeper, alias = hand
        serving = await handback.settle(keeper, alias, within_s=WITHIN_S / 2.0)
    if on is not None and serving != policy.variant(on).model:
        target = policy.variant(on).model
        if hand is None or not daemon.actuator.capability.can_act:
            problem = f"nothing can be switched now: {daemon.actuator.capability}"
        elif before is not None or daemon.standing.is_advised(model):
            problem = (
                "the governor does not act on it, so it cannot switch it: adopt it first, or"
                " release it as it is"
            )
        else:
            keeper, alias = hand
            record = await handback.leave_on(keeper, alias, target, within_s=WITHIN_S / 2.0)
            serving = alias.target
            if record.outcome is not Outcome.DONE:
                problem = record.error or record.outcome.value
    if problem is not None:
        _undo(daemon, model, before, pin)
        return Released(ok=False, message=f"{model} was not released on {on}: {problem}")
    variant = names.get(serving or "", serving)
    wishes.release(model, variant, why, who)
    daemon.standing.apply()
    stays = "nothing serves it" if variant is None else f"it stays on {variant}"
    message = (
        f"{model} is released: {stays}, and the governor acts on it no more until"
        f" `governor adopt {model}`"
    )
    return Released(ok=True, message=message)


def _undo(daemon: Daemon, model: str, before: Any, pin: Any) -> None:
    wishes = daemon.wishes
    wishes.releases.pop(model, None)
    if before is not None:
        wishes.releases[model] = before
    if pin is not None:
        wishes.pins[model] = pin


def alias_view(daemon: Daemon, model: str) -> dict[str, Any]:
    """Return how an alias stands on the server, and its config for a model repository.

    Raises KeyError.
    """
    policy = daemon.policy.model(model)
    hand = daemon.actuator.at_hand(model)
    seen = None if hand is None else handback.view(hand[0].server, hand[1])
    target = None if seen is None else seen.target
    return {
        "model": model,
        "virtual": None if seen is None else seen.virtual,
        "serving_model": target,
        "serving": next((v.name for v in policy.variants if v.model == target), None),
        "config_pbtxt": None if seen is None or seen.config is None else _pbtxt(seen.config),
    }


def _pbtxt(config: Any) -> str:
    """Return a config as protobuf's text, which is what a config.pbtxt is."""
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    text: str = text_format.MessageToString(message)
    return text
