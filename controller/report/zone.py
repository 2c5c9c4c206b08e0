"""Local time, as the machine that makes a report has it.

Owns how times are written and which zone they are in. It must not ask what time it is.
"""

from __future__ import annotations

from datetime import UTC, datetime


def local(unix_s: float, pattern: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time as a clock on the wall showed it."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime(pattern)


def zone_of(unix_s: float) -> str:
    """Return the zone's name and its distance from UTC, such as `CET (UTC+01:00)`."""
    then = datetime.fromtimestamp(unix_s, UTC).astimezone()
    name, offset = then.strftime("%Z"), then.strftime("%z")
    distance = f"UTC{offset[:3]}:{offset[3:5]}"
    return distance if name in {"", "UTC"} or name[0] in "+-" else f"{name} ({distance})"


def offsets(since_unix_s: float, until_unix_s: float) -> list[tuple[int, int]]:
    """Return (Unix time from which it holds, seconds east of UTC), oldest first.

    Clocks change on the quarter of an hour, everywhere.
    """
    found: list[tuple[int, int]] = []
    at = int(since_unix_s) // 900 * 900
    while at <= until_unix_s:
        delta = datetime.fromtimestamp(at, UTC).astimezone().utcoffset()
        seconds = 0 if delta is None else int(delta.total_seconds())
        if not found or found[-1][1] != seconds:
            found.append((at, seconds))
        at += 900
    return found
