"""A decision in one paragraph of plain English.

Owns the sentences; every `Reason` has its own. Pure: it must not decide, and must say nothing
that the decision does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from controller.planning.decision import Candidate, Decision, Excluded, Reason
from controller.planning.explain_batch import why_this_batch
from controller.planning.words import (
    EXCLUDED,
    candidate_of,
    spell_number,
    spell_percent,
    spell_s,
)
from controller.policy.model import ModelPolicy
from controller.prediction.costs import ActionCosts

_DRIFT_WORTH_SAYING = 0.10
_HARDLY_ANY = 0.005  # of the requests late: it is the backlog to come that is escaped from
_SHOWN = 3  # better variants that are explained one by one

# Where it was not the comparison that decided, the comparison is not the explanation.
_DECIDED_OTHERWISE = frozenset(
    {
        Reason.PINNED,
        Reason.PAUSED,
        Reason.RELEASED,
        Reason.HELD,
        Reason.STALE_DATA,
        Reason.NO_CHOICE,
        Reason.IGNORANCE,
        Reason.LATE_BINDING,
    }
)


def explain_decision(
    decision: Decision, model: ModelPolicy, costs: ActionCosts | None = None
) -> str:
    """Return what was seen, what was compared, what was chosen, and why nothing better was.

    `costs`: what actions were seen to take; None: nothing is told of that.
    """
    sentences = [_seen(decision), _compared(decision, model), _SENTENCES[decision.reason](decision)]
    if decision.reason in _DECIDED_OTHERWISE:
        sentences.append(_would_choose(decision))
    else:
        sentences += [
            _prediction(decision),
            *why_this_batch(decision, model),
            *_why_not_better(decision, model),
        ]
    if costs is not None:
        sentences.append(_what_it_costs(decision, model, costs))
    return " ".join(sentence for sentence in sentences if sentence)


def _what_it_costs(decision: Decision, model: ModelPolicy, costs: ActionCosts) -> str:
    """Return what a switch was seen to take, and a load of each variant that is not loaded."""
    switch_s = costs.expected_s("switch", model.name)
    seen = costs.disturbances.view().get("load")
    late = f" ({spell_percent(seen['share'])} more requests late meanwhile)" if seen else ""
    told = (
        []
        if switch_s is None
        else [f"a switch, with its checks and its proof, {spell_s(switch_s)}"]
    )
    for candidate in decision.candidates:
        load_s = costs.expected_s("load", candidate.model)
        if candidate.excluded is Excluded.NOT_LOADED and load_s is not None:
            told.append(f"a load of {candidate.variant} {spell_number(load_s)} s{late}")
    return f"Of late took {', '.join(told)}." if told else ""


def _seen(decision: Decision) -> str:
    rate = f"about {spell_number(decision.rate_rps)} requests/s are expected"
    if math.isfinite(decision.rate_p95_rps) and decision.rate_p95_rps > decision.rate_rps:
        rate += f" ({spell_number(decision.rate_p95_rps)} at the 95th percentile)"
    if decision.backlog_requests == 0:
        backlog = "nothing waits"
    else:
        verb = "request waits" if decision.backlog_requests == 1 else "requests wait"
        backlog = f"{decision.backlog_requests} {verb} ({spell_s(decision.backlog_s)} of work)"
    text = f"{decision.model}: {rate}, and {backlog}."
    drift = decision.drift_ratio
    if math.isfinite(drift) and drift > 0 and abs(drift - 1.0) > _DRIFT_WORTH_SAYING:
        slower = drift > 1.0
        factor = drift if slower else 1.0 / drift
        text += (
            f" The machine runs {factor:.1f} times {'slower' if slower else 'faster'} than learned."
        )
    return text


def _compared(decision: Decision, model: ModelPolicy) -> str:
    if not decision.candidates:
        return ""
    allowed = [c for c in decision.candidates if c.excluded is None]
    known = [c for c in allowed if c.known]
    feasible = [c for c in known if c.feasible]
    total = len(decision.candidates)
    text = (
        f"Of {total} variant{'s' if total > 1 else ''}, {_count(len(feasible))} predicted to"
        f" answer {spell_percent(model.objective.percentile / 100)} of requests within"
        f" {spell_s(model.objective.latency_s)}"
    )
    if len(known) < len(allowed):
        unknown = len(allowed) - len(known)
        text += f"; {unknown} {'has' if unknown == 1 else 'have'} not been measured yet"
    if len(allowed) < total:
        text += f"; {_count(total - len(allowed))} excluded"
    return text + "."


def _why_not_better(decision: Decision, model: ModelPolicy) -> list[str]:
    chosen = candidate_of(decision, decision.target or decision.serving)
    if chosen is None:
        return []
    better = sorted(
        (c for c in decision.candidates if c.quality > chosen.quality and c is not chosen),
        key=lambda c: -c.quality,
    )
    sentences = [_why_not(c, decision, model) for c in better[:_SHOWN]]
    if len(better) > _SHOWN:
        sentences.append(f"{len(better) - _SHOWN} more of better quality were not chosen either.")
    return sentences


def _why_not(candidate: Candidate, decision: Decision, model: ModelPolicy) -> str:
    name = f"{candidate.variant} (quality {candidate.quality:.3f})"
    if candidate.excluded is not None:
        return f"{name} {EXCLUDED[candidate.excluded]}."
    if not candidate.known:
        return f"{name} has not been measured yet."
    if decision.reason is Reason.LULL and candidate.feasible:
        return f"{name} would do now, but be late when the load is back."
    objective = model.objective
    in_time = (
        candidate.p99_s <= objective.latency_s
        and candidate.miss_ratio <= objective.allowed_miss_ratio
    )
    if not candidate.feasible and in_time:
        return (
            f"{name} would meet the objective at first, but gather a backlog if the load reaches"
            f" the {spell_number(decision.rate_p95_rps)} requests a second that it may."
        )
    if not candidate.feasible:
        late = f"its {_ordinal(model.objective.percentile)} percentile would be"
        return (
            f"{name} would miss the objective: {late} {spell_s(candidate.p99_s)}, with"
            f" {spell_percent(candidate.miss_ratio)} of requests late."
        )
    if candidate.variant == decision.desired:
        return f"{name} would meet the objective and is wanted next."
    return (
        f"{name} would meet the objective with {spell_percent(candidate.miss_ratio)} of requests"
        " late, but too little would be left for the requests that wait or may come."
    )


def _best_feasible(d: Decision) -> str:
    return f"{_go(d)}: it gives the most quality that meets the objective."


def _escape(d: Decision) -> str:
    serving = candidate_of(d, d.serving)
    late, soon = "", ""
    if serving is not None and serving.excluded is not None:
        return f"{_go(d)} at once: {d.serving} {EXCLUDED[serving.excluded]}."
    if serving is not None and serving.known:
        late = f" ({spell_percent(serving.miss_ratio)} of requests late)"
        soon = "soon " if serving.miss_ratio < _HARDLY_ANY else ""
    return f"{_go(d)} at once: {d.serving or 'what serves'} would {soon}miss the objective{late}."


def _yields(d: Decision) -> str:
    return (
        f"{_go(d)}, though a better one would be in time: another model cannot meet its objective,"
        " and the device's time is worth more to it."
    )


def _cools(d: Decision) -> str:
    return (
        f"{_go(d)}, though a better one would be in time: the GPU is at the temperature or the"
        " power that the policy allows, and this one takes less of its time."
    )


def _recovery(d: Decision) -> str:
    return (
        f"Nothing meets the objective, so {_go(d, start=False)}: most in time now and once"
        " nothing waits any more, or the fastest if none can keep up."
    )


def _ignorance(d: Decision) -> str:
    return (
        f"Nothing is known about any variant yet, so {_go(d, start=False)}, taken for the fastest."
    )


def _fallback(d: Decision) -> str:
    return (
        f"The predictions are not to be trusted at the moment, so the length of the backlog"
        f" decided: {_go(d, start=False)}."
    )


def _stale_data(d: Decision) -> str:
    return f"The readings from Triton are too old to decide on; {_stay(d)}."


def _dwell(d: Decision) -> str:
    return f"{_wanted(d)}, but the last switch is too young; {_stay(d)} for a moment."


def _rate_limit(d: Decision) -> str:
    return f"{_wanted(d)}, but there were too many switches in the last minute; {_stay(d)}."


def _pinned(d: Decision) -> str:
    return f"An operator has pinned it to {d.target or d.serving or 'a variant'}."


def _paused(d: Decision) -> str:
    return f"An operator has paused the governor; {_stay(d)}."


def _released(d: Decision) -> str:
    return f"An operator has taken it back, so the governor only looks on; {_stay(d)}."


def _late_binding(d: Decision) -> str:
    may = [c for c in d.candidates if c.known and c.excluded is None]
    names = ", ".join(f"{c.variant} ({c.quality:.3f})" for c in may) or "none yet"
    return (
        f"{_go(d)}: for each batch it takes the best variant with which the oldest request, and"
        f" those that come meanwhile, are in time. It chooses among {names}. What is predicted of"
        " a variant here is for serving alone, without it."
    )


def _no_dispatcher(d: Decision) -> str:
    return f"Its dispatcher does not answer, so a variant serves meanwhile: {_go(d, start=False)}."


def _lull(d: Decision) -> str:
    return (
        "Little comes just now, and a better variant would do. But such lulls end soon, and when"
        f" the load is back that one would be late: {_go(d, start=False)}."
    )


def _dispatcher_late(d: Decision) -> str:
    return (
        "More of its dispatcher's requests are late than behind a variant alone, under a load that"
        f" the fastest bears, so a variant serves for a while: {_go(d, start=False)}."
    )


def _held(d: Decision) -> str:
    return f"Somebody else changed the alias on the server, so the governor keeps off; {_stay(d)}."


def _no_choice(d: Decision) -> str:
    why = "; ".join(
        f"{c.variant} {EXCLUDED[c.excluded]}" for c in d.candidates if c.excluded is not None
    )
    return f"No variant may be chosen{': ' + why if why else ''}; {_stay(d)}."


def _steady(d: Decision) -> str:
    return f"{d.serving or d.target or 'What serves'} is still the best choice."


_SENTENCES: Mapping[Reason, Callable[[Decision], str]] = {
    Reason.BEST_FEASIBLE: _best_feasible,
    Reason.ESCAPE: _escape,
    Reason.YIELDS: _yields,
    Reason.COOLS: _cools,
    Reason.RECOVERY: _recovery,
    Reason.IGNORANCE: _ignorance,
    Reason.FALLBACK: _fallback,
    Reason.STALE_DATA: _stale_data,
    Reason.DWELL: _dwell,
    Reason.RATE_LIMIT: _rate_limit,
    Reason.PINNED: _pinned,
    Reason.PAUSED: _paused,
    Reason.RELEASED: _released,
    Reason.LATE_BINDING: _late_binding,
    Reason.NO_DISPATCHER: _no_dispatcher,
    Reason.LULL: _lull,
    Reason.DISPATCHER_LATE: _dispatcher_late,
    Reason.HELD: _held,
    Reason.NO_CHOICE: _no_choice,
    Reason.STEADY: _steady,
}


def _go(decision: Decision, *, start: bool = True) -> str:
    if decision.changes:
        text = f"it switches to {decision.target}"
        if decision.serving is not None:
            text = f"it switches from {decision.serving} to {decision.target}"
    else:
        text = f"it stays on {decision.target or decision.serving or 'what it finds'}"
    return text[0].upper() + text[1:] if start else text


def _stay(decision: Decision) -> str:
    if decision.serving is None:
        return "everything is left as it is"
    return f"{decision.serving} goes on serving"


def _wanted(decision: Decision) -> str:
    wanted = candidate_of(decision, decision.desired)
    if wanted is None:
        return "A better variant is wanted"
    return f"{wanted.variant} (quality {wanted.quality:.3f}) is wanted"


def _would_choose(decision: Decision) -> str:
    if decision.desired is None or decision.desired == (decision.target or decision.serving):
        return ""
    return f"By itself the governor would choose {decision.desired}."


def _prediction(decision: Decision) -> str:
    chosen = candidate_of(decision, decision.target or decision.serving)
    if chosen is None or not chosen.known:
        return ""
    return (
        f"Predicted for {chosen.variant} (quality {chosen.quality:.3f}): {spell_s(chosen.p99_s)},"
        f" with {spell_percent(chosen.miss_ratio)} of requests late; by what came of such"
        f" predictions, {spell_s(chosen.told_p99_s)}."
    )


def _count(count: int) -> str:
    if count == 0:
        return "none is"
    return "1 is" if count == 1 else f"{count} are"


def _ordinal(percentile: float) -> str:
    number = f"{percentile:g}"
    last_two = number[-2:].lstrip(".")
    ending = {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
    return number + ("th" if last_two in ("11", "12", "13") or "." in number else ending)
