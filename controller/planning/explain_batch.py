"""Why this batch size and not another: the sentences about profiles of the same weights.

Owns those sentences. Pure: it must not decide, and must say nothing that the decision does not
hold.
"""

from __future__ import annotations

import math
from typing import Final

from controller.planning.decision import Candidate, Decision, Reason
from controller.planning.words import (
    EXCLUDED,
    candidate_of,
    spell_number,
    spell_percent,
    spell_s,
)
from controller.policy.model import ModelPolicy, VariantPolicy

_FIXED_SHAPE: Final = 0.75  # of a full batch's time that one request takes alone: from here on
_DRIFT_WORTH_SAYING: Final = 0.10


def why_this_batch(decision: Decision, model: ModelPolicy) -> list[str]:
    """Return why it moved to another batch size, and what speaks against every other one."""
    if decision.reason is Reason.FALLBACK:
        return []
    chosen = candidate_of(decision, decision.target or decision.serving)
    named = {variant.name: variant for variant in model.variants}
    own = None if chosen is None else named.get(chosen.variant)
    if chosen is None or own is None:
        return []
    weights = own.profile_of or own.name
    others = [
        (named[c.variant], c)
        for c in decision.candidates
        if c is not chosen
        and c.variant in named
        and weights in (c.variant, named[c.variant].profile_of)
    ]
    if not others:
        return []
    left = next((pair for pair in others if pair[1].variant == decision.serving), None)
    moved = "" if left is None or not decision.changes else _moved(*left, own, chosen, decision)
    words = "; ".join(
        f"{_batches(variant)} {_less_good(candidate, chosen, decision, model)}"
        for variant, candidate in others
    )
    against = f"It serves {weights} {_batches(own)}; {words}."
    return [sentence for sentence in (moved, against) if sentence]


def _moved(
    old: VariantPolicy, left: Candidate, new: VariantPolicy, chosen: Candidate, decision: Decision
) -> str:
    """Return why another batch size of the same weights; nothing where little is known."""
    if not (left.known and chosen.known and old.max_batch and new.max_batch):
        return ""
    start = f"{old.name} -> {new.name}: "
    fixed = _has_fixed_shape(old, left, decision) and _has_fixed_shape(new, chosen, decision)
    if new.max_batch > old.max_batch:
        return start + _larger(old, left, new, chosen, decision, fixed=fixed)
    return start + _smaller(old, left, new, chosen, decision, fixed=fixed)


def _larger(
    old: VariantPolicy,
    left: Candidate,
    new: VariantPolicy,
    chosen: Candidate,
    decision: Decision,
    *,
    fixed: bool,
) -> str:
    takes, longer = "", ""
    if fixed:
        takes = f", which take {spell_s(left.service_s)} each{_how_slow(decision)}"
        longer = f", which take {spell_s(chosen.service_s)}"
    text = (
        f"the {_rows_s(decision)} rows/s that are expected are"
        f" {spell_percent(left.utilization_ratio)} of what batches of {old.max_batch} bear{takes};"
        f" of batches of {new.max_batch}{longer}, they are"
        f" {spell_percent(chosen.utilization_ratio)}"
    )
    two_s = 2 * chosen.service_s
    if fixed and decision.objective_s is not None and two_s <= decision.objective_s:
        text += f", and two of them still fit into the {spell_s(decision.objective_s)}"
    return f"{text}."


def _smaller(
    old: VariantPolicy,
    left: Candidate,
    new: VariantPolicy,
    chosen: Candidate,
    decision: Decision,
    *,
    fixed: bool,
) -> str:
    bears = (
        f"{new.name} bears the {_rows_s(decision)} rows/s that are expected"
        f" ({spell_percent(chosen.utilization_ratio)} of what it can do)"
    )
    limit_s = decision.objective_s
    late = f"{spell_percent(left.miss_ratio)} of requests would be late"
    if not fixed or limit_s is None:
        return (
            f"in batches of up to {old.max_batch} {late}, {spell_percent(chosen.miss_ratio)} in"
            f" smaller ones; {bears}."
        )
    two_s = 2 * left.service_s
    text = (
        f"a batch of {old.max_batch} takes {spell_s(left.service_s)} now{_how_slow(decision)}, so a"
        f" request that comes just after one began would need up to {spell_s(two_s)} of the"
        f" {spell_s(limit_s)}"
    )
    if two_s <= limit_s:
        text += f", and as such times vary {late}"
    return f"{text}; {bears}, and two of its batches take {spell_s(2 * chosen.service_s)}."


def _how_slow(decision: Decision) -> str:
    drift = decision.drift_ratio
    if not math.isfinite(drift) or drift <= 0 or abs(drift - 1.0) <= _DRIFT_WORTH_SAYING:
        return ""
    if drift > 1.0:
        return f" ({drift:.1f} times as long as usual)"
    return f" ({spell_percent(drift)} of what is usual)"


def _has_fixed_shape(variant: VariantPolicy, candidate: Candidate, decision: Decision) -> bool:
    """Return whether one request alone takes it about as long as a full batch.

    What it bears at most follows from the load and the share that this is of it; where that is a
    full batch in the time of one request, the shape is fixed.
    """
    rows_s = decision.rate_rps * decision.rows_per_request
    if variant.max_batch is None or candidate.utilization_ratio <= 0.0 or rows_s <= 0.0:
        return False
    full_s = variant.max_batch * candidate.utilization_ratio / rows_s
    return candidate.service_s >= _FIXED_SHAPE * full_s


def _rows_s(decision: Decision) -> str:
    return spell_number(decision.rate_rps * decision.rows_per_request)


def _batches(variant: VariantPolicy) -> str:
    if variant.max_batch is None:
        return "in batches as large as it takes"
    if variant.max_batch == 1:
        return "request by request"
    return f"in batches of up to {variant.max_batch}"


def _less_good(
    candidate: Candidate, chosen: Candidate, decision: Decision, model: ModelPolicy
) -> str:
    if candidate.excluded is not None:
        return EXCLUDED[candidate.excluded]
    if not candidate.known:
        return "has not been measured yet"
    if candidate.variant == decision.desired:
        return "is wanted next"
    if candidate.utilization_ratio > 1.0:
        return (
            "would not keep up: what arrives is"
            f" {spell_percent(candidate.utilization_ratio)} of what it can do"
        )
    if candidate.miss_ratio > model.objective.allowed_miss_ratio:
        fewer = ", not so many fewer as a switch costs"
        return (
            f"would have {spell_percent(candidate.miss_ratio)} of requests late"
            f"{fewer if candidate.miss_ratio < chosen.miss_ratio else ''}"
        )
    if not candidate.feasible:
        return "would gather a backlog if the load rose as it may"
    if candidate.value < chosen.value:
        return "would be worth less with what waits or may come"
    return "would be as good, but not by enough to be worth a switch"
