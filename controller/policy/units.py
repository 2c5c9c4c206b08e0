"""Quantities as operators write them: `60ms`, `512MiB`, `5%`.

Owns the grammar of units in both directions, so that whatever is shown can be read back. It must
not know which setting a quantity belongs to. Imports nothing heavy: the CLI uses it as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

# Decimal, not float: 60ms is exactly the float 0.06, whatever the unit's factor.
DURATION_UNITS: Mapping[str, Decimal] = {
    "us": Decimal("0.000001"),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
BYTE_UNITS: Mapping[str, Decimal] = {
    "B": Decimal(1),
    "kB": Decimal(10**3),
    "MB": Decimal(10**6),
    "GB": Decimal(10**9),
    "KiB": Decimal(2**10),
    "MiB": Decimal(2**20),
    "GiB": Decimal(2**30),
    "TiB": Decimal(2**40),
}
PERCENT_UNITS: Mapping[str, Decimal] = {"%": Decimal("0.01")}
TEMPERATURE_UNITS: Mapping[str, Decimal] = {"C": Decimal(1)}
POWER_UNITS: Mapping[str, Decimal] = {"W": Decimal(1), "kW": Decimal(1000)}

_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,9})?"  # bounded: nobody means more digits than these
_QUANTITY = re.compile(rf"({_NUMBER}) ?([A-Za-z%µ]{{0,8}})", re.ASCII)
_BINARY_UNITS = ("TiB", "GiB", "MiB", "KiB", "B")
_MEANT: Mapping[str, str] = {
    "k": "KiB",
    "kib": "KiB",
    "kb": "kB",
    "mib": "MiB",
    "mb": "MB",
    "gib": "GiB",
    "gb": "GB",
    "g": "GiB",
    "t": "TiB",
    "tib": "TiB",
    "b": "B",
    "msec": "ms",
    "millis": "ms",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "min": "m",
    "mins": "m",
    "minute": "m",
    "minutes": "m",
    "hr": "h",
    "hour": "h",
    "hours": "h",
    "day": "d",
    "days": "d",
    "usec": "us",
    "µs": "us",
}


def pattern(units: Mapping[str, Decimal]) -> str:
    """Return the regular expression of a quantity in these units, for a JSON Schema."""
    return rf"^{_NUMBER.replace('(?:', '(')} ?({'|'.join(units)})$"


def parse_duration(text: object) -> float:
    """Return seconds. Raises ValueError with a sentence for the operator."""
    return float(_parse(text, DURATION_UNITS, "a duration", "60ms, 2s or 10m"))


def parse_bytes(text: object) -> int:
    """Return whole bytes. Raises ValueError with a sentence for the operator."""
    return int(_parse(text, BYTE_UNITS, "a size", "512MiB or 2GiB"))


def parse_percentage(text: object) -> float:
    """Return a ratio: 0.05 for `5%`. Raises ValueError with a sentence for the operator."""
    return float(_parse(text, PERCENT_UNITS, "a percentage", "5%"))


def parse_temperature(text: object) -> float:
    """Return degrees Celsius. Raises ValueError with a sentence for the operator."""
    return float(_parse(text, TEMPERATURE_UNITS, "a temperature", "84C"))


def parse_power(text: object) -> float:
    """Return watts. Raises ValueError with a sentence for the operator."""
    return float(_parse(text, POWER_UNITS, "a power", "300W"))


def format_temperature(celsius: float) -> str:
    """Return degrees Celsius."""
    return f"{_plain(Decimal(str(celsius)))}C"


def format_power(watts: float) -> str:
    """Return watts."""
    return f"{_plain(Decimal(str(watts)))}W"


def format_duration(duration_s: float) -> str:
    """Return the shortest spelling in the largest fitting unit that reads back as the same."""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        text = f"{_plain(Decimal(str(duration_s)) / DURATION_UNITS[unit])}{unit}"
        whole_or_small = unit in ("s", "ms", "us") or "." not in text
        fits = duration_s >= DURATION_UNITS[unit] and whole_or_small
        if fits and _reads_back(text, duration_s):
            return text
    return f"{_plain(Decimal(str(duration_s)))}s"


def format_bytes(size_bytes: int) -> str:
    """Return the size in the largest binary unit that divides it."""
    for unit in _BINARY_UNITS:
        factor = int(BYTE_UNITS[unit])
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def format_percentage(ratio: float) -> str:
    """Return a ratio as a percentage."""
    return f"{_plain(Decimal(str(ratio)) * 100)}%"


def _parse(text: object, units: Mapping[str, Decimal], what: str, examples: str) -> Decimal:
    scalar = isinstance(text, (str, int, float)) and not isinstance(text, bool)
    match = _QUANTITY.fullmatch(str(text)) if scalar else None
    if match is None:
        raise ValueError(f"must be {what} such as {examples}, not {_shown(text)}")
    number, unit = match.groups()
    if unit in units:
        return Decimal(number) * units[unit]
    if not unit:
        written = " or ".join(f"{number}{name}" for name in _common(units))
        raise ValueError(f"{number} has no unit: write {written}")
    known = ", ".join(units)
    raise ValueError(f"unknown unit {unit!r}: {what} is written in {known}{_hint(unit, units)}")


def _common(units: Mapping[str, Decimal]) -> tuple[str, ...]:
    if units is DURATION_UNITS:
        return ("ms", "s", "m")
    return ("MiB", "GiB") if units is BYTE_UNITS else tuple(units)


def _hint(unit: str, units: Mapping[str, Decimal]) -> str:
    by_lower = {name.lower(): name for name in units}
    meant = _MEANT.get(unit.lower())
    if meant not in units:
        meant = "MiB" if unit == "M" and "MiB" in units else by_lower.get(unit.lower())
    return f" (did you mean {meant}?)" if meant is not None else ""


def _reads_back(text: str, duration_s: float) -> bool:
    return _QUANTITY.fullmatch(text) is not None and parse_duration(text) == duration_s


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = "nothing" if value is None else str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...")
