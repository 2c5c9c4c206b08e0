"""Numbers in sentences: times, shares and counts as people say them.

Owns how they are written in explanations. Pure.
"""

from __future__ import annotations

import math
from typing import Final

_MS: Final = 1e3


def count_are(count: int) -> str:
    """Return how many are."""
    if count == 0:
        return "none is"
    return "1 is" if count == 1 else f"{count} are"


def ordinal(percentile: float) -> str:
    """Return which percentile: 95th, 99.9th."""
    digits = f"{percentile:g}"
    last_two = digits[-2:].lstrip(".")
    ending = {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th")
    return digits + ("th" if last_two in ("11", "12", "13") or "." in digits else ending)


def in_ms(value_s: float) -> str:
    """Return a time in milliseconds, or in seconds where it is long."""
    if not math.isfinite(value_s):
        return "without end"
    value_ms = value_s * _MS
    if value_ms >= 10_000:
        return f"{value_s:.0f} s"
    return f"{value_ms:.0f} ms" if value_ms >= 10 else f"{value_ms:.1f} ms"


def percent(value: float) -> str:
    """Return a share of one as a percentage."""
    if not math.isfinite(value):
        return "an unknown share"
    of_100 = value * 100.0
    return "under 0.01 %" if 0.0 < of_100 < 0.01 else f"{of_100:.3g} %"


def number(value: float) -> str:
    """Return a number of something."""
    if not math.isfinite(value):
        return "an unknown number of"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
