"""A picture of arms on a real server: load, effective quality and tail by second, by trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

_BIN_S = 1.0
_NEVER_MS = 4000.0  # where a request is drawn that was not answered
_OTHERS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f")
_OURS = {"governor": "#d62728", "governor:late": "#111111"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """What an arm did with every counted request."""

    due_s: Floats
    latency_ms: Floats  # infinite: it failed
    worth: Floats  # quality of an answer in time, 0 of any other


def draw(
    path: Path, found: Mapping[str, Mapping[str, Served]], seconds: float, limit_ms: float
) -> None:
    """Draw a column for each trace, by its name and the arm's."""
    figure = Figure(figsize=(5.5 * len(found) + 1.0, 8), dpi=110, layout="constrained")
    rows = figure.subplots(
        3, len(found), sharex="col", sharey="row", height_ratios=[1.0, 1.6, 1.6], squeeze=False
    )
    edges_s = np.arange(0.0, seconds + _BIN_S, _BIN_S)
    middles_s = edges_s[:-1] + _BIN_S / 2
    for column, (trace, arms) in enumerate(found.items()):
        load, quality, tail = rows[:, column]
        load.set_title(trace)
        sent = next(iter(arms.values())).due_s
        load.stairs(np.histogram(sent, edges_s)[0] / _BIN_S, edges_s, fill=True)
        for number, (name, arm) in enumerate(arms.items()):
            own = _OURS.get(name)
            colour = _OTHERS[number % len(_OTHERS)] if own is None else own
            wide, above = (1.2, 2) if own is None else (2.0, 5)
            style = {"color": colour, "linewidth": wide, "zorder": above}
            mean, p99_ms = _by_second(arm, edges_s)
            quality.plot(middles_s, mean, label=name, **style)
            tail.plot(middles_s, p99_ms, **style)
        tail.axhline(limit_ms, color="#333333", linestyle="--", linewidth=1.0)
        tail.set_yscale("log")
        tail.set_xlabel("seconds")
    most = max(float(arm.worth.max()) for arms in found.values() for arm in arms.values())
    rows[1, 0].set_ylim(0.0, most + 0.02)
    rows[1, 0].legend(loc="lower left", ncols=2, frameon=False)
    rows[0, 0].set_ylabel("requests/s")
    rows[1, 0].set_ylabel("effective quality, each second")
    rows[2, 0].set_ylabel("p99 at the client, ms")
    figure.savefig(path)


def _by_second(arm: Served, edges_s: Floats) -> tuple[Floats, list[float]]:
    """Return effective quality and p99 in milliseconds, each second. [seconds]."""
    place = np.digitize(arm.due_s, edges_s) - 1
    bins = len(edges_s) - 1
    count = np.bincount(place, minlength=bins)[:bins]
    total = np.bincount(place, weights=arm.worth, minlength=bins)[:bins]
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    drawn_ms = np.minimum(arm.latency_ms, _NEVER_MS)
    p99_ms = [
        float(np.percentile(drawn_ms[place == b], 99)) if (place == b).any() else np.nan
        for b in range(bins)
    ]
    return mean, p99_ms
