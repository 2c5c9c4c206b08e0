"""What to do next: from a policy to a governor that acts on every model.

Owns the order: mend, advise, one model, all. It must not check anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.policy.model import Mode, Policy


def next_steps(
    policy: Policy | None,
    policy_file: str | None,
    status: Mapping[str, Any] | None,
    *,
    failed: bool,
) -> list[str]:
    """Return sentences, the next thing first.

    Args:
        policy: that was examined; None: there is none, or it is broken.
        policy_file: where it stands, as after `governor run --policy`.
        status: of the governor that runs; None: none does.
        failed: whether a check failed.
    """
    if failed:
        return ["mend what is marked fail, then ask again"]
    if policy is None:
        step = (
            "write a policy with `mode: advise` (policies/example.yaml has every key),"
            " `governor policy check FILE`, and ask again with --policy FILE"
        )
        return [step]
    advised = [m.name for m in policy.models if policy.mode_of(m) is Mode.ADVISE]
    acted = [m.name for m in policy.models if m.name not in advised]
    steps = []
    if status is None:
        steps.append(
            f"`governor run --policy {policy_file}`, or the service: it"
            + (" decides and changes nothing" if not acted else f" acts on {', '.join(acted)}")
        )
    if not advised:
        out = "out again: `governor release --all --on VARIANT`"
        return [*steps, f"`governor status` tells how it does, `governor explain` why; {out}"]
    if not policy.probing.while_advising:
        steps.append(
            "advice knows only variants that clients' requests ran on; `probing: {while_advising:"
            " true}` lets it measure the other loaded ones with a few synthetic requests"
        )
    first = advised[0]
    if not acted:
        steps.append(
            "is each `quality` measured? `governor quality MODEL --data FILE` does it"
            " (docs/quality.md)"
        )
    steps.append("after an hour of usual load: `governor advice --since 1h`")
    if not acted:
        steps.append(
            f"if that is better than what serves, one model first: `mode: act` of models.{first};"
            " an edit of the policy is in force within a second"
        )
    else:
        steps.append(
            f"as {', '.join(acted)} did well (MET % in `governor status`, `governor history`), the"
            f" next: `mode: act` of models.{first}"
        )
    steps.append("then all: `mode: act` at the top, and no `mode` of a model")
    return steps
