"""What stands above the table of `governor status`.

Owns the lines of the daemon, of Triton, of the GPUs, of the warm pool and of the host. Like
`controller.cli.render`, it survives JSON with parts missing.
"""

from __future__ import annotations

import textwrap
from typing import Final

from controller.cli.table import (
    GAP,
    Json,
    Paper,
    clean,
    duration,
    list_of,
    milliseconds,
    number_of,
    part_of,
    percent,
)

_GIB: Final = 2**30
_UNBREAKABLE: Final = "\N{NO-BREAK SPACE}"


def head(status: Json, paper: Paper) -> list[str]:
    """Return the lines above the table: the daemon, Triton, GPUs, the pool and the host."""
    daemon, triton, host = (
        part_of(status, "daemon"),
        part_of(status, "triton"),
        part_of(status, "host"),
    )
    process, tick = part_of(status, "process"), part_of(status, "tick_ms")
    switch = part_of(part_of(status, "actions"), "switch_ms")
    tick_s = number_of(daemon, "tick_s")
    tick_text = None if tick_s is None else f"tick {milliseconds(tick_s * 1e3)} ms"
    if tick_text and number_of(tick, "p99") is not None:
        tick_text += f" (takes {milliseconds(number_of(tick, 'p99'))})"
    mode = _mode(status)
    lines = [
        fitted(
            paper,
            "governor",
            _joined(
                clean(daemon.get("version") or ""),
                "paused" if daemon.get("paused") else mode,
                f"up {duration(number_of(daemon, 'uptime_s'))}",
                tick_text,
                _percent_of(number_of(process, "cpu_ratio"), "of a core"),
                _bytes(number_of(process, "rss_bytes")),
            ),
        ),
        fitted(
            paper,
            "triton",
            _joined(
                clean(triton.get("version") or ""),
                "up" if triton.get("up") else "does not answer",
                clean(triton.get("grpc") or ""),
                _switches(switch),
            ),
            "" if triton.get("up") else "bad",
        ),
    ]
    gpus, load = list_of(status, "gpu"), number_of(host, "load_1m")
    lines += [fitted(paper, f"gpu {clean(g.get('index', ''))}", _gpu(g)) for g in gpus]
    pool = part_of(status, "memory")
    if pool:
        lines.append(fitted(paper, "pool", _pool(pool)))
    sized = _instances(part_of(status, "instances"))
    if sized:
        lines.append(fitted(paper, "instances", sized))
    lines.append(
        fitted(
            paper,
            "host",
            _joined(
                _percent_of(number_of(host, "cpu_ratio"), "busy"),
                None if load is None else f"load {load:.1f}",
                _of(number_of(host, "memory_used_bytes"), number_of(host, "memory_total_bytes")),
                None if gpus else "gpu: none",
            ),
        )
    )
    return lines


def _mode(status: Json) -> str:
    """Return what the governor does; where models differ, with how many of them."""
    modes = [model.get("mode") for model in list_of(status, "models")]
    acts = modes.count("act")
    if 0 < acts < len(modes):
        return f"acts on {acts} of {len(modes)} models"
    if modes and all(mode == "released" for mode in modes):
        return "released"
    return "act" if acts else clean(part_of(status, "daemon").get("mode") or "")


def fitted(paper: Paper, label: str, text: str, style: str = "") -> str:
    """Return a label and its text, the text wrapped beside the label."""
    body = textwrap.wrap(text, max(paper.width - 10, 20)) or [""]
    first, *rest = (piece.replace(_UNBREAKABLE, " ") for piece in body)
    lines = [f"{paper.ink(f'{label:<8}', style or 'dim')}{GAP}{paper.ink(first, style)}"]
    return "\n".join([*lines, *(" " * 10 + paper.ink(piece, style) for piece in rest)])


def _joined(*parts: str | None) -> str:
    """Join phrases so that a line breaks between them, never inside one."""
    return "   ".join(part.replace(" ", _UNBREAKABLE) for part in parts if part)


def _percent_of(value: float | None, of_what: str) -> str | None:
    return None if value is None else f"{percent(value)} % {of_what}"


def _switches(switch: Json) -> str | None:
    if not switch.get("count"):
        return None
    return (
        f"{clean(switch['count'])} switches, {milliseconds(number_of(switch, 'p50'))} ms median,"
        f" {milliseconds(number_of(switch, 'p99'))} ms p99"
    )


def _bytes(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value / _GIB:.1f} GiB" if value >= _GIB else f"{value / 2**20:.0f} MiB"


def _of(used: float | None, total: float | None) -> str | None:
    if used is None:
        return None
    return f"{used / _GIB:.1f} of {total / _GIB:.1f} GiB" if total else _bytes(used)


def _gpu(gpu: Json) -> str:
    reasons = gpu.get("throttle_reasons")
    throttle = reasons if isinstance(reasons, list) else []
    return _joined(
        clean(gpu.get("name") or ""),
        _percent_of(number_of(gpu, "utilization_ratio"), "busy"),
        _of(number_of(gpu, "memory_used_bytes"), number_of(gpu, "memory_total_bytes")),
        _whole(number_of(gpu, "temperature_celsius"), "C"),
        _whole(number_of(gpu, "power_watts"), "W"),
        f"throttled: {clean(', '.join(map(str, throttle)))}" if throttle else None,
    )


def _whole(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.0f} {unit}"


def _pool(pool: Json) -> str:
    """Return what of the memory budget is held, and what is being done about it."""
    gpus = {f"gpu {clean(gpu)}": place for gpu, place in part_of(pool, "gpus").items()}
    told = {**(gpus or {"gpu": pool.get("gpu")}), "host": pool.get("host")}
    places = [
        f"{name} {_of(number_of(place, 'held_bytes'), number_of(place, 'limit_bytes'))}"
        for name in told
        if (place := part_of(told, name))
    ]
    held, loading = _names(pool, "held"), _names(pool, "loading")
    return _joined(
        *places,
        f"{len(held)} of {len(part_of(pool, 'variants'))} variants loaded",
        f"loads {', '.join(loading)}" if loading else None,
        f"unloads {clean(pool['unloading'])}" if pool.get("unloading") else None,
    )


def _instances(sized: Json) -> str:
    """Return the instances of each variant that may have more, and what is wanted of them."""
    return _joined(*(_instances_of(clean(name), part_of(sized, name)) for name in sized))


def _instances_of(name: str, one: Json) -> str | None:
    number, wanted = number_of(one, "number"), number_of(one, "wanted")
    if number is None:
        return None  # it is not loaded
    text = f"{name} {number:.0f}"
    return text if wanted in (None, number) else f"{text}, to be {wanted:.0f}"


def _names(part: Json, key: str) -> list[str]:
    """Return the texts of a list; none where there is no list."""
    found = part.get(key)
    return [clean(name) for name in found] if isinstance(found, list) else []
