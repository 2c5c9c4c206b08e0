"""The last minutes of each model, as `governor top` saw them, and how they look as a line of bars.

Owns what is remembered between two answers. It must not read a clock: every answer comes with its
time, monotonic.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.cli.table import Json, list_of, number_of, part_of

KEPT_S: Final = 300
MINUTE_S: Final = 60.0
LATE: Final = "!"
_BARS: Final = "▁▂▃▄▅▆▇█"
_PLAIN_BARS: Final = "_.:-=+*#"
_LONGEST_MODELS: Final = 1000  # a daemon that invents names must not fill the memory


@dataclass(slots=True)
class Series:
    """The largest value of each second of the last five minutes."""

    seconds: dict[int, float] = field(default_factory=dict)
    last_s: float | None = None

    def add(self, now_s: float, value: float, reach_s: float) -> None:
        """Add a value; it stands for the time since the one before, where that is near enough."""
        second = math.floor(now_s)
        first = second
        if self.last_s is not None and now_s - self.last_s <= reach_s:
            first = min(math.floor(self.last_s) + 1, second)
        for at in range(max(first, second - KEPT_S), second + 1):
            self.seconds[at] = max(value, self.seconds.get(at, value))
        self.last_s = now_s
        if len(self.seconds) > KEPT_S:
            for at in [at for at in self.seconds if at <= second - KEPT_S]:
                del self.seconds[at]

    def columns(self, now_s: float, count: int, step_s: int) -> list[float | None]:
        """Return the largest value of each `step_s` seconds, the newest last; None: nothing known.

        Steps begin at whole multiples, so that what is drawn moves but does not flicker.
        """
        newest = math.floor(now_s) // step_s
        found: list[float | None] = []
        for step in range(newest - count + 1, newest + 1):
            values = [
                self.seconds[at]
                for at in range(step * step_s, (step + 1) * step_s)
                if at in self.seconds
            ]
            found.append(max(values, default=None))
        return found


@dataclass(slots=True)
class _Past:
    rates: Series = field(default_factory=Series)
    pressures: Series = field(default_factory=Series)
    counts: deque[tuple[float, float]] = field(default_factory=deque)  # time, switches so far


class Memory:
    """What of the answers is kept to be drawn."""

    def __init__(self) -> None:
        self._models: dict[str, _Past] = {}
        self._pid: object = None

    def remember(self, status: Json, now_s: float, interval_s: float) -> None:
        """Keep what an answer says of each model."""
        pid = part_of(status, "daemon").get("pid")
        if pid != self._pid:  # another daemon counts its switches from zero
            self._pid = pid
            for past in self._models.values():
                past.counts.clear()
        reach_s = 2.5 * interval_s + 1.0
        seen = list_of(status, "models")[:_LONGEST_MODELS]
        for model in seen:
            past = self._models.setdefault(str(model.get("name")), _Past())
            for series, value in (
                (past.rates, number_of(model, "rate_rps")),
                (past.pressures, pressure(model)),
            ):
                if value is not None:
                    series.add(now_s, value, reach_s)
            count = number_of(model, "switches")
            if count is not None:
                past.counts.append((now_s, count))
                while past.counts[0][0] < now_s - MINUTE_S and len(past.counts) > 1:
                    past.counts.popleft()
        names = {str(model.get("name")) for model in seen}
        self._models = {name: past for name, past in self._models.items() if name in names}

    def switches(self, name: str) -> float | None:
        """Return the switches in the last minute, or since there was an answer; None: unknown."""
        past = self._models.get(name)
        if past is None or len(past.counts) < 2:
            return None
        return max(past.counts[-1][1] - past.counts[0][1], 0.0)

    def rates(self, name: str) -> Series:
        """Return the requests per second of a model."""
        return self._models.get(name, _Past()).rates

    def pressures(self, name: str) -> Series:
        """Return the 99th percentile of a model, as a share of its objective."""
        return self._models.get(name, _Past()).pressures


def pressure(model: Json) -> float | None:
    """Return the measured percentile, else the predicted one, over the objective's latency."""
    goal_ms = number_of(part_of(model, "objective"), "latency_ms")
    value_ms = number_of(model, "measured_p99_ms")
    if value_ms is None:
        value_ms = number_of(model, "predicted_p99_ms")
    return None if value_ms is None or not goal_ms or goal_ms < 0 else value_ms / goal_ms


def bars(values: Sequence[float | None], *, unicode: bool) -> str:
    """Draw values from 0 to the largest of them."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    return "".join(_bar(value, top, unicode) for value in values)


def bars_to_goal(values: Sequence[float | None], *, unicode: bool) -> str:
    """Draw shares of the objective; what is above it is `!`, for eyes that see no red."""
    return "".join(
        LATE if value is not None and value > 1.0 else _bar(value, 1.0, unicode) for value in values
    )


def _bar(value: float | None, top: float, unicode: bool) -> str:
    if value is None:
        return " "
    scale = _BARS if unicode else _PLAIN_BARS
    return scale[min(max(round(value / top * (len(scale) - 1)), 0), len(scale) - 1)]
