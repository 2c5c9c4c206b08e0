"""Whether this server lets a governor act, tried out on an alias that nobody calls.

Owns the throw-away alias. It must not touch one that clients call, but to load it again exactly
as it stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.actuation import alias as shape
from controller.actuation.client import Fault, TritonError
from controller.actuation.state import Server

PROBE_NAME = "triton_governor_probe"


@dataclass(frozen=True, slots=True)
class Capability:
    """What can be done on a server, and why not more."""

    can_act: bool
    virtual: bool = True  # an alias needs no folder in the repository
    why: str | None = None

    def __str__(self) -> str:
        if self.can_act:
            return "act" if self.why is None else f"act: {self.why}"
        return f"advise only: {self.why}"


async def try_out(server: Server, variants: Sequence[Mapping[str, Any]]) -> Capability:
    """Create an alias, ask it, switch it, ask it again and unload it.

    Args:
        server: the server; an alias that stands there already is the second thing tried.
        variants: configs of one or two variants that are ready.

    Raises:
        TritonError: the server was lost meanwhile: nothing is known.
    """
    control, timing = server.control, server.timing
    first, last = variants[0], variants[-1]
    if shape.fits(shape.build(PROBE_NAME, [first], client_max_batch=1), last):
        last = first
    alias = shape.build(PROBE_NAME, [first, last], client_max_batch=1)
    try:
        for variant in (first, last):
            config = shape.point(alias, str(variant["name"]), server.next_marker())
            await control.load_alias(config, virtual=True, deadline_s=timing.alias_load_s)
            await control.prove(config, str(variant["name"]), deadline_s=timing.probe_s)
    except TritonError as error:
        if error.fault is Fault.UNREACHABLE:
            raise
        if error.fault not in (Fault.OVERLOADED, Fault.UNKNOWN):
            return await _fall_back(server, error)
    finally:
        with contextlib.suppress(TritonError):
            await control.unload(PROBE_NAME, deadline_s=timing.answer_s)
    return Capability(can_act=True)


async def _fall_back(server: Server, problem: TritonError) -> Capability:
    """Try whether an alias that has a folder can be loaded with a config of ours."""
    control, timing = server.control, server.timing
    if problem.fault is Fault.REFUSED:
        return Capability(can_act=False, why=refusal(str(problem)))
    for alias in filter(server.acts_on, server.aliases.values()):
        try:
            config = await control.model_config(alias.name, deadline_s=timing.answer_s)
            if shape.target_of(config) is None:
                continue
            await control.load_alias(config, virtual=False, deadline_s=timing.alias_load_s)
        except TritonError as error:
            if error.fault is Fault.UNREACHABLE:
                raise
            continue
        return Capability(can_act=True, virtual=False, why=f"repository aliases only ({problem})")
    return Capability(
        can_act=False,
        why=f"a virtual alias failed ({problem}) and no repository alias is loaded; "
        "add a folder for the alias and set alias: repository",
    )


def refusal(said: str) -> str:
    """Return what to do about a server that refuses model control."""
    return (
        f"Triton refuses model control ({said}); start it with --model-control-mode=explicit, "
        "and name the key of --grpc-restricted-protocol in the policy if there is one"
    )
