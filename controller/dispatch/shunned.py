"""Which variants are left alone for a while: they could not be asked, failed, or did not answer.

Of the standard library alone, like all that runs inside Triton. It must not choose.
"""

from __future__ import annotations

_FIRST_S = 1.0
_MOST_S = 60.0  # a variant that fails again and again
_FIRST_SILENT_S = 60.0  # one that did not answer at all: each try costs a batch
_MOST_SILENT_S = 600.0
_DOUBLED = 10  # times, at most
# A batch that takes so many times as long as planned is not answered at all: at least so long.
_SILENT, _SILENT_S, _SILENT_UNKNOWN_S = 20.0, 10.0, 60.0


class Shunned:
    """Remembers them, with why. Whoever answers is no longer one of them."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}
        self._why: dict[str, str] = {}

    def add(self, name: str, now_s: float, why: str, *, silent: bool = False) -> None:
        """Leave a variant alone, twice as long each time."""
        before = self._in_a_row.get(name, 0)
        first_s, most_s = (_FIRST_SILENT_S, _MOST_SILENT_S) if silent else (_FIRST_S, _MOST_S)
        self._until_s[name] = now_s + min(first_s * 2.0 ** min(before, _DOUBLED), most_s)
        self._in_a_row[name] = before + 1
        self._why[name] = why

    def pardon(self, name: str) -> None:
        """Take note that a variant answers, or was not to blame."""
        if name in self._until_s:
            for kept in (self._until_s, self._in_a_row, self._why):
                kept.pop(name, None)

    def has(self, name: str, now_s: float) -> bool:
        """Return whether a variant is to be left alone now."""
        until_s = self._until_s.get(name)
        return until_s is not None and now_s < until_s

    def why(self, now_s: float) -> dict[str, str]:
        """Return who is left alone now, and what was wrong."""
        return {name: self._why[name] for name in self._until_s if self.has(name, now_s)}


def longest_answer_s(planned_s: float | None) -> float:
    """Return after how long a batch is not answered at all; `planned_s`: None: it is not known."""
    return _SILENT_UNKNOWN_S if planned_s is None else max(_SILENT * planned_s, _SILENT_S)
