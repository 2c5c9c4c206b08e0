"""Which variant served a model at a moment, as far as the journal knows.

Owns the reading of what was recorded around that moment, and how sure it is. It must not ask the
server: what nobody recorded is said not to be known.

A switch takes effect somewhere between the beginning of its transaction and its end. Requests that
Triton took in before are still answered by the variant of before.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.journal.reader import JournalReader

_NEAR_S: Final = 30.0
# Decisions are recorded at least once a second: with more than this between two of them nobody
# looked.
_WATCHED_S: Final = 5.0
# A change that somebody else makes is seen so much later, at most.
_LOOK_S: Final = 1.5
_ALIAS_KINDS: Final = frozenset({"switch", "heal", "reassert", "adopt"})


class Certainty(enum.StrEnum):
    """How sure an answer is. Append only."""

    CERTAIN = "certain"  # recorded before and after, with nothing in between
    SWITCHING = "switching"  # it was being changed: one or the other
    UNWATCHED = "unwatched"  # the same before and after, but nobody looked in between
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Served:
    """What served at a moment; times in Unix seconds."""

    certainty: Certainty
    models: tuple[str, ...]  # Triton's names: one, or those that come into question
    from_unix_s: float | None  # the answer holds from here: recorded then
    to_unix_s: float | None  # to here; None: nothing was recorded since


@dataclass(frozen=True, slots=True)
class _Fact:
    """Something recorded: what served before it and after it."""

    begin_unix_s: float
    end_unix_s: float
    before: str | None
    after: str | None

    @property
    def is_change(self) -> bool:
        return self.end_unix_s > self.begin_unix_s


def served_at(reader: JournalReader, model: str, at_unix_s: float) -> Served:
    """Return which variant served a model. Raises JournalUnreadableError."""
    names = {operators: tritons for tritons, operators in reader.variants(model).items()}
    seen = reader.servings(model, at_unix_s, _NEAR_S)
    facts = [
        _Fact(time_unix_s, time_unix_s, names.get(serving, serving), names.get(serving, serving))
        for time_unix_s, _, serving in seen
        if serving is not None
    ]
    for action in reader.actions_near(model, at_unix_s, _NEAR_S):
        fact = _of_action(action, seen)
        if fact is not None:
            facts.append(fact)
    return _answer(facts, at_unix_s)


def _of_action(
    action: dict[str, Any], seen: Sequence[tuple[float, float, str | None]]
) -> _Fact | None:
    """Return what an action says of the alias; None: nothing."""
    outcome, source, target = action["outcome"], action["source"], action["target"]
    if action["kind"] not in _ALIAS_KINDS or outcome in ("nothing_to_do", "refused", "busy"):
        return None
    if action["kind"] == "adopt" and source is None and "foreign change" in action["reason"]:
        return None  # of a variant, not of the alias
    end = float(action["time_unix_s"])
    if action["transaction_s"] is not None:
        begin = end - float(action["transaction_s"])
    else:  # its proof was cut short: the other clock tells when it began
        offsets = [unix_s - monotonic_s for unix_s, monotonic_s, _ in seen]
        begin = min((action["monotonic_s"] + one for one in offsets), default=end - _NEAR_S)
        begin = min(max(begin, end - _NEAR_S), end)
    if action["kind"] == "adopt":
        begin -= _LOOK_S
    after = {"done": target, "rolled_back": source}.get(outcome)
    # Of a time in which nothing changed nothing is uncertain.
    begin = end if source == after and outcome == "done" else begin
    return _Fact(begin, end, source, after)


def _answer(facts: list[_Fact], at: float) -> Served:
    during = [f for f in facts if f.is_change and f.begin_unix_s <= at <= f.end_unix_s]
    if during:
        names = dict.fromkeys(n for f in during for n in (f.before, f.after) if n is not None)
        begin, end = min(f.begin_unix_s for f in during), max(f.end_unix_s for f in during)
        return Served(Certainty.SWITCHING, tuple(names), begin, end)
    before = max((f for f in facts if f.end_unix_s <= at), key=_end, default=None)
    after = min((f for f in facts if f.begin_unix_s > at), key=_begin, default=None)
    if before is None:
        return Served(Certainty.UNKNOWN, (), None, None if after is None else after.begin_unix_s)
    since, until = before.end_unix_s, None if after is None else after.begin_unix_s
    found = before.after
    if after is None:
        # The newest record: it holds as long as decisions keep coming.
        fresh = at - since <= _WATCHED_S
        certainty = Certainty.CERTAIN if fresh and found is not None else Certainty.UNWATCHED
        return Served(_known(found, certainty), _named(found), since, None)
    if after.before is not None and found is not None and after.before != found:
        return Served(Certainty.SWITCHING, (found, after.before), since, until)
    found = found if found is not None else after.before
    watched = until is not None and until - since <= _WATCHED_S
    certainty = Certainty.CERTAIN if watched else Certainty.UNWATCHED
    return Served(_known(found, certainty), _named(found), since, until)


def _known(found: str | None, certainty: Certainty) -> Certainty:
    return Certainty.UNKNOWN if found is None else certainty


def _named(found: str | None) -> tuple[str, ...]:
    return () if found is None else (found,)


def _end(fact: _Fact) -> float:
    return fact.end_unix_s


def _begin(fact: _Fact) -> float:
    return fact.begin_unix_s
