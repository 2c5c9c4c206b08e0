"""What is thought of a model's instances, in plain English.

Owns those sentences. Pure; the numbers are `controller.planning.sizing`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.policy.model import ModelPolicy
from controller.telemetry.observation import Instances

_WORTH_SAYING = 0.0005  # of a request's quality


def explain_instances(
    model: ModelPolicy, sizes: Mapping[str, Any], instances: Mapping[str, Instances]
) -> str:
    """Return what is known of the variants that may have more instances; "": there is none.

    Args:
        model: whose variants.
        sizes: what `GovernorCore.sizes` returns.
        instances: that each variant has, by Triton's name.
    """
    found = []
    for variant in model.variants:
        size, own = sizes.get(variant.model), instances.get(variant.model)
        if size is None or own is None:
            continue
        many = "instance" if own.number == 1 else "instances"
        text = f"{variant.name} has {own.number} {many} of at most {size['most']}"
        slower = 1.0 + size["overlap"]
        text += f" (beside another batch one takes {slower:.1f} times as long)"
        if size["wanted"] is not None and size["wanted"] != own.number:
            # A model's only variant always serves, and is given them there.
            when = ", when it does not serve" if len(model.variants) > 1 else " soon"
            text += f"; it is to have {size['wanted']}{when}"
        elif size["gain_of_more"] > _WORTH_SAYING:
            text += f"; one more would be worth {size['gain_of_more']:.3f} a request"
        found.append(text)
    return f" {'. '.join(found)}." if found else ""
