"""What a person has chosen in `governor top`, and what a key makes of it.

Pure: a state, a key and what is on the screen give the next state.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controller.cli.table import Json, list_of, number_of
from controller.cli.top.series import pressure

INTERVALS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
KEYS: Final = (  # as the help shows them
    ("up down k j", "choose a model (also page up, page down, g and G)"),
    ("enter e", "the newest decision of the model in plain English"),
    ("h", "what was done to the server, all models"),
    ("s", "sort: as in the policy, by name, load, p99 to objective, burn rate"),
    ("space", "freeze what is shown; again: go on"),
    ("+ -", "ask less often, more often"),
    ("?", "this help; any key ends it"),
    ("q", "quit"),
)


class Sort(enum.StrEnum):
    """The order of the models."""

    POLICY = "policy"
    NAME = "name"
    LOAD = "load"
    PRESSURE = "p99/goal"
    BURN = "burn"


@dataclass(frozen=True, slots=True)
class State:
    """What is shown, and how."""

    interval_s: float = 1.0
    selected: str | None = None  # None: the first
    sort: Sort = Sort.POLICY
    frozen: bool = False
    explained: bool = False
    history: bool = False
    helped: bool = False
    over: bool = False


def press(state: State, key: str, names: Sequence[str], page: int = 10) -> State:
    """Return the state after a key; `names` are the models in the order they are shown."""
    if state.helped:
        return replace(state, helped=False, over=key == "q")
    if key in _STEPS:
        return _moved(state, _STEPS[key](page), names)
    if key in {"+", "="}:
        slower = [value for value in INTERVALS_S if value > state.interval_s]
        return replace(state, interval_s=slower[0] if slower else state.interval_s)
    if key == "-":
        faster = [value for value in INTERVALS_S if value < state.interval_s]
        return replace(state, interval_s=faster[-1] if faster else state.interval_s)
    change = _CHANGES.get(key)
    return state if change is None else change(state)


def ordered(status: Json, sort: Sort) -> list[Json]:
    """Return the models in an order; what has no number comes last."""
    models = list_of(status, "models")
    if sort is Sort.NAME:
        return sorted(models, key=name_of)
    value_of = _VALUES.get(sort)
    if value_of is None:
        return models
    values = [(value_of(model), model) for model in models]
    known = [(value, model) for value, model in values if value is not None]
    known.sort(key=lambda pair: -pair[0])
    return [model for _, model in known] + [model for value, model in values if value is None]


def name_of(model: Json) -> str:
    """Return the name by which a model is chosen."""
    return str(model.get("name"))


def selected_of(state: State, names: Sequence[str]) -> int | None:
    """Return where the chosen model is, the first where it is gone; None: there is none."""
    if not names:
        return None
    return names.index(state.selected) if state.selected in names else 0


def _moved(state: State, by: int, names: Sequence[str]) -> State:
    at = selected_of(state, names)
    if at is None:
        return state
    return replace(state, selected=names[min(max(at + by, 0), len(names) - 1)])


_FAR: Final = 10**6
_STEPS: Final[dict[str, Callable[[int], int]]] = {
    "up": lambda _: -1,
    "k": lambda _: -1,
    "down": lambda _: 1,
    "j": lambda _: 1,
    "pageup": lambda page: -page,
    "pagedown": lambda page: page,
    "home": lambda _: -_FAR,
    "g": lambda _: -_FAR,
    "end": lambda _: _FAR,
    "G": lambda _: _FAR,
}
_ORDERS: Final[tuple[Sort, ...]] = tuple(Sort)
_CHANGES: Final[dict[str, Callable[[State], State]]] = {
    "q": lambda state: replace(state, over=True),
    "?": lambda state: replace(state, helped=True),
    "e": lambda state: replace(state, explained=not state.explained, history=False),
    "enter": lambda state: replace(state, explained=not state.explained, history=False),
    "h": lambda state: replace(state, history=not state.history),
    "esc": lambda state: replace(state, history=False, explained=False),
    "s": lambda state: replace(state, sort=_ORDERS[(_ORDERS.index(state.sort) + 1) % len(_ORDERS)]),
    " ": lambda state: replace(state, frozen=not state.frozen),
}
_VALUES: Final[dict[Sort, Callable[[Json], float | None]]] = {
    Sort.LOAD: lambda model: number_of(model, "rate_rps"),
    Sort.PRESSURE: pressure,
    Sort.BURN: lambda model: number_of(model, "burn_rate"),
}
