"""The demo's picture: load, chosen variant, latency against the objective, arms over each other.

Owns the drawing. It must not compute what the table says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from controller.demo.arms import Arm, Result
from controller.demo.records import Records
from controller.demo.scenario import Schedule
from controller.demo.scores import Served

_BIN_S: Final = 0.25
_GOVERNOR: Final = "#d62728"
_INK: Final = "#333333"
_FLOOR_MS: Final = 0.5
_CEILING_MS: Final = 4000.0


def draw(
    path: Path,
    results: Sequence[Result],
    schedule: Schedule,
    served: Sequence[Served],
    objective_ms: float,
) -> None:
    """Write the picture; the kind of file follows from its name.

    Raises:
        OSError: it cannot be written.
        ValueError: matplotlib does not know this kind of file.
    """
    mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"})
    figure = Figure(figsize=(11, 11), dpi=110, layout="constrained")
    heights = [1.1, 1.2, 2.2, 0.35 + 0.28 * len(results)]
    if schedule.nights_s:
        heights.insert(1, 0.4)
    load, *neighbour, variant, latency, bars = figure.subplots(
        len(heights), 1, gridspec_kw={"height_ratios": heights}
    )
    for axes in (*neighbour, variant, latency):
        axes.sharex(load)
    governed = [result for result in results if result.governed is not None]
    shown = next(iter(governed), results[-1])
    _load(load, shown.records, schedule)
    for axes in neighbour:
        _neighbour(axes, shown, schedule)
    _variant(variant, shown, served, schedule)
    _latency(latency, results, served, schedule, objective_ms)
    _bars(bars, results, served)
    spans_s = [*((burst.start_s, burst.end_s) for burst in schedule.bursts), *schedule.nights_s]
    for axes in (load, *neighbour, variant, latency):
        for start_s, end_s in spans_s:
            axes.axvspan(start_s, end_s, color="#000000", alpha=0.05, linewidth=0)
        axes.set_xlim(0, schedule.duration_s)
    latency.set_xlabel("seconds")
    figure.savefig(path)


def _load(axes: Axes, records: Records, schedule: Schedule) -> None:
    edges_s = _edges(schedule)
    counts, _ = np.histogram(records.due_s, edges_s)
    axes.stairs(counts / _BIN_S, edges_s, fill=True, color="#9ecae1", label="sent")
    axes.plot(schedule.rate_at_s, schedule.rate_rps, color="#08519c", linewidth=1.2, label="mean")
    axes.set_title("Load: the same requests at the same times for every arm", loc="left")
    axes.set_ylabel("requests/s")
    axes.set_ylim(0)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, frameon=False)


def _neighbour(axes: Axes, result: Result, schedule: Schedule) -> None:
    """Draw what the neighbour had of the device in each night."""
    for (start_s, end_s), share in zip(schedule.nights_s, result.neighbour, strict=False):
        axes.bar(start_s, share, end_s - start_s, align="edge", color="#fdae6b")
        axes.annotate(f"{share:.0%}", ((start_s + end_s) / 2, share / 2), ha="center", va="center")
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1], ["0", "all"])
    axes.set_title("The neighbour's share of the device", loc="left")


def _variant(axes: Axes, result: Result, served: Sequence[Served], schedule: Schedule) -> None:
    """Draw which share of the answers each variant gave, the best on top."""
    counted = result.records.counted()
    order = _order(served)
    edges_s = _edges(schedule)
    centres = {number: place for place, number in enumerate(order)}
    answered = counted.answered
    for number in order:
        at_s = counted.answered_at_s[answered & (counted.variant == number)]
        share, _ = np.histogram(at_s, edges_s)
        everything, _ = np.histogram(counted.answered_at_s[answered], edges_s)
        height = 0.84 * share / np.maximum(everything, 1)
        axes.stairs(
            centres[number] - 0.42 + height,
            edges_s,
            baseline=centres[number] - 0.42,
            fill=True,
            color=_colours(served)[number],
        )
    axes.set_yticks(range(len(order)))
    axes.set_yticklabels([_label(served[n]) for n in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_ylabel("variant (quality)")
    switches = len(result.governed.switches) if result.governed else 0
    axes.set_title(
        f"Who answered, arm {result.arm.name}: share of each quarter second; {switches} switches",
        loc="left",
    )


def _latency(
    axes: Axes,
    results: Sequence[Result],
    served: Sequence[Served],
    schedule: Schedule,
    objective_ms: float,
) -> None:
    numbers = {variant.name: number for number, variant in enumerate(served)}
    for result in results:
        style: dict[str, Any]
        if result.governed is not None:
            style = {"color": _GOVERNOR, "linewidth": 2.0, "zorder": 5}
            if result.arm != Arm():
                style = {"color": _INK, "linewidth": 1.0, "linestyle": ":", "zorder": 4}
        else:
            style = {
                "color": _colours(served)[numbers[result.arm.variant or ""]],
                "linewidth": 1.1,
                "alpha": 0.9,
            }
        at_s, p99_ms = _tail(result.records.counted(), schedule)
        axes.plot(at_s, p99_ms, label=result.arm.name, **style)
    axes.axhline(objective_ms, color=_INK, linewidth=1.0, linestyle="--")
    axes.annotate(
        f"objective\n{objective_ms:g} ms",
        (1.005, objective_ms),
        xycoords=("axes fraction", "data"),
        va="center",
        color=_INK,
        annotation_clip=False,
    )
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR_MS, _CEILING_MS)
    axes.set_ylabel("ms, log scale")
    axes.grid(axis="y", which="major", color="#dddddd", linewidth=0.6)
    axes.set_title(
        "Latency at the client, 99th percentile of each quarter second (no answer: at the top)",
        loc="left",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=6, frameon=False)


def _bars(axes: Axes, results: Sequence[Result], served: Sequence[Served]) -> None:
    """Draw each arm's effective quality, with what late and lost answers took away."""
    numbers = {variant.name: number for number, variant in enumerate(served)}
    for place, result in enumerate(reversed(results)):
        score = result.score
        colour = _GOVERNOR if result.arm == Arm() else _INK
        if result.arm.variant is not None:
            colour = _colours(served)[numbers[result.arm.variant]]
        axes.barh(place, score.mean_quality or 0.0, color=colour, alpha=0.2, height=0.7)
        axes.barh(place, score.effective_quality, color=colour, height=0.7)
        axes.annotate(
            f"{score.effective_quality:.4f}   {score.slo_attainment:.2%} in time"
            + (f", {score.failed} failed" if score.failed else ""),
            (1.01, place),
            va="center",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(results)))
    axes.set_yticklabels([result.arm.name for result in reversed(results)])
    axes.set_xlim(0, 1)
    axes.set_xlabel("quality")
    axes.set_title(
        "Effective quality: quality of the answers in time, over all requests "
        "(pale: quality of all answers)",
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)


def _label(served: Served) -> str:
    rows = "" if served.max_batch is None else f", batches of {served.max_batch}"
    return f"{served.name}{rows} ({served.quality:.3f})"


def _order(served: Sequence[Served]) -> list[int]:
    """Return the variants' numbers from the lowest quality up, of one variant larger engines."""
    return sorted(range(len(served)), key=lambda n: (served[n].quality, served[n].max_batch or 0))


def _edges(schedule: Schedule) -> NDArray[np.float64]:
    return np.arange(0.0, schedule.duration_s + _BIN_S, _BIN_S)


def _tail(records: Records, schedule: Schedule) -> tuple[Any, Any]:
    """Return the 99th percentile of each bin of sending; no answer counts as the ceiling."""
    edges_s = _edges(schedule)
    latency_ms = np.where(records.answered, records.latency_ms, _CEILING_MS)
    place = np.digitize(records.due_s, edges_s) - 1
    tails = np.full(len(edges_s) - 1, np.nan)
    for index in range(len(tails)):
        inside = latency_ms[place == index]
        if len(inside):
            tails[index] = np.percentile(inside, 99)
    known = np.isfinite(tails)
    return (edges_s[:-1] + _BIN_S / 2)[known], np.clip(tails[known], _FLOOR_MS, _CEILING_MS)


def _colours(served: Sequence[Served]) -> dict[int, Any]:
    """Return a colour for each variant: one scale from the lowest quality to the highest."""
    order = _order(served)
    scale = mpl.colormaps["viridis"]
    return {
        number: scale(0.85 * (1 - place / max(len(order) - 1, 1)))
        for place, number in enumerate(order)
    }
