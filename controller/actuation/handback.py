"""Letting go of an alias: when the daemon stops, or when an operator takes a model back.

Owns the last switch of an alias and what is told of it after that. It must not choose a variant.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from controller.actuation import alias as shape
from controller.actuation.keeper import Keeper
from controller.actuation.state import Alias, Server
from controller.ports import ActionRecord, Outcome

_LOG = logging.getLogger(__name__)
_ASK_AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class AliasView:
    """An alias as it stands on the server."""

    virtual: bool  # nothing on disk: gone when Triton restarts, unless somebody puts it back
    target: str | None  # Triton model name
    config: Mapping[str, Any] | None  # without the governor's signature; None: not known


def view(server: Server, alias: Alias) -> AliasView:
    """Return what there is to tell of an alias; where it is not there, how it would be made."""
    if alias.config is not None and alias.ready is not False:
        return AliasView(alias.virtual, alias.target, shape.unsigned(alias.config))
    best = sorted(alias.policy.variants, key=lambda variant: -variant.quality)
    configs = server.ready_configs([variant.model for variant in best])
    rows = alias.policy.client_max_batch
    config = shape.build(alias.name, configs, client_max_batch=rows) if configs else None
    return AliasView(alias.virtual, None, config)


async def revert(keeper: Keeper, alias: Alias) -> None:
    """Put the best variant behind an alias, as before there was a governor."""
    best = max(alias.policy.variants, key=lambda variant: variant.quality).model
    if alias.target == best or alias.held is not None or not keeper.server.acts_on(alias):
        return
    record = await keeper.transactions.switch(alias, best, reason="on_stop: revert")
    if record.outcome is not Outcome.DONE:
        _LOG.warning("%s stays on %s: %s", alias.name, alias.target, record.error)


async def settle(keeper: Keeper, alias: Alias, *, within_s: float) -> str | None:
    """Wait until nothing is under way on an alias; return where it points then."""
    clock = keeper.server.clock
    ends_s = clock() + within_s
    while _is_busy(alias):
        left_s = ends_s - clock()
        if left_s <= 0.0:
            break
        await asyncio.sleep(min(_ASK_AGAIN_S, left_s))
    return None if alias.ready is False else alias.target


async def leave_on(keeper: Keeper, alias: Alias, target: str, *, within_s: float) -> ActionRecord:
    """Point an alias at a variant for good: returns when that is proven, or says why it is not.

    What is under way on the alias is waited for. As every switch it fails no request.

    Args:
        keeper: of the server.
        alias: what clients call.
        target: Triton model name.
        within_s: the time for all of it.
    """
    clock = keeper.server.clock
    ends_s = clock() + within_s
    while True:
        await settle(keeper, alias, within_s=ends_s - clock())
        record = await keeper.transactions.switch(alias, target, reason="released")
        if record.outcome is not Outcome.BUSY or clock() >= ends_s:
            break
        await asyncio.sleep(_ASK_AGAIN_S)
    if record.outcome not in (Outcome.DONE, Outcome.UNKNOWN):
        return record
    found = await settle(keeper, alias, within_s=ends_s - clock())
    if found != target:
        why = f"it points at {found}: the switch was put back, `governor history` says why"
        return replace(record, outcome=Outcome.ROLLED_BACK, error=why)
    if _is_busy(alias):
        return replace(record, outcome=Outcome.UNKNOWN, error="Triton has not proven it in time")
    return replace(record, outcome=Outcome.DONE)


def _is_busy(alias: Alias) -> bool:
    return alias.switching or alias.proof is not None or alias.unsettled is not None
